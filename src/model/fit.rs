//! Does the checkpoint hold the network that config.json describes? Asked of headers alone, before memory is taken for
//! anything: every tensor the decoder will read is there and has its shape.

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, EMBEDDING, HEAD};
use super::experts::{ExpertTensors, sparse_layers};
use super::source::{GgufRefusal, ROPE_FACTORS};
use super::spec::{DecoderSpec, RopeScaling};
use super::{ModelError, base_layout, read_spec};
use crate::delta::{BaseLayout, Module, ModuleKind};

impl Checkpoint {
    /// The decoder that the folder holds: as config.json describes it, with a head of its own where the checkpoint has
    /// one that differs from the embedding.
    ///
    /// # Errors
    /// Those of [`read_spec`]; [`ModelError::MissingTensor`] and [`ModelError::TensorShape`]; [`ModelError::Gguf`] for a
    /// tensor of a GGUF file that has no place; and what reading the head says, where it must be compared with the
    /// embedding.
    pub fn spec(&self) -> Result<DecoderSpec, ModelError> {
        let mut spec = self.described()?;
        // As transformers: what is tied by config.json and there twice with different numbers is not tied.
        if spec.tied && self.shape(HEAD).is_some() && !self.head_is_embedding(&spec)? {
            tracing::warn!(
                "config.json ties the head to the embedding, the checkpoint has another head: that one counts"
            );
            spec.tied = false;
        }
        let layout = base_layout(&spec);
        for module in layout.modules() {
            self.check_shape(&module.weight, &weight_shape(module))?;
            if module.bias {
                self.check_shape(&format!("{}.bias", module.path), &[module.output])?;
            }
        }
        for (name, shape) in self.experts(&spec) {
            self.check_shape(&name, &shape)?;
        }
        // Who wrote a GGUF file knew the network: what has no place in it changes what is computed.
        if self.metadata().is_some()
            && let Some(name) = self.unused(&spec, &layout).next()
        {
            return Err(self.refused(GgufRefusal::UnknownTensor { name: name.to_owned() }));
        }
        Ok(spec)
    }

    /// Every tensor of routers and experts, and its shape.
    fn experts(&self, spec: &DecoderSpec) -> BTreeMap<String, Vec<usize>> {
        sparse_layers(spec).flat_map(|(layer, experts)| ExpertTensors::of(spec, layer, experts, self).all()).collect()
    }

    /// Tensors that the decoder has no place for.
    pub(super) fn unused<'a>(&'a self, spec: &DecoderSpec, layout: &BaseLayout) -> impl Iterator<Item = &'a str> {
        let experts = self.experts(spec);
        let known = move |name: &str| {
            let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias"));
            let tied_head = spec.tied && name == HEAD;
            let by_path = module.and_then(|path| layout.module(path));
            tied_head
                || name == ROPE_FACTORS && self.metadata().is_some()
                || name.ends_with("rotary_emb.inv_freq")
                || by_path.is_some_and(|module| module.bias || name.ends_with(".weight"))
                || experts.contains_key(name)
        };
        self.names().filter(move |name| !known(name))
    }

    /// What config.json or the metadata describe, and the tensor that only GGUF has.
    fn described(&self) -> Result<DecoderSpec, ModelError> {
        if self.metadata().is_none() {
            return read_spec(self.config());
        }
        let network = |reason| ModelError::GgufNetwork { path: self.path().to_owned(), reason: Box::new(reason) };
        let mut spec = read_spec(self.config()).map_err(network)?;
        if let Some(divisors) = self.rope_divisors(&spec)? {
            let rope = spec.ropes.iter_mut().find(|rope| rope.scaling == RopeScaling::Default);
            let key = || format!("{}.rope.scaling.type", spec.family.model_type());
            rope.ok_or_else(|| self.refused(GgufRefusal::RopeTwice { key: key() }))?.scaling =
                RopeScaling::Divided { divisors };
        }
        Ok(spec)
    }

    /// `rope_freqs.weight`: one divisor for each frequency.
    fn rope_divisors(&self, spec: &DecoderSpec) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(shape) = self.shape(ROPE_FACTORS) else { return Ok(None) };
        let expected = spec.head_dim / 2;
        let refused = |found| self.refused(GgufRefusal::RopeFactors { found, expected });
        if shape != [expected] {
            return Err(refused(format!("the shape {shape:?}")));
        }
        let divisors = self.tensor(ROPE_FACTORS, &[expected])?.to_f32();
        match divisors.iter().find(|divisor| !divisor.is_finite() || **divisor <= 0.0) {
            Some(divisor) => Err(refused(divisor.to_string())),
            None => Ok(Some(divisors)),
        }
    }

    fn refused(&self, reason: GgufRefusal) -> ModelError {
        ModelError::Gguf { path: self.path().to_owned(), reason }
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        match self.shape(name) {
            None => Err(ModelError::MissingTensor { name: name.to_owned() }),
            Some(found) if found != expected => {
                let (found, expected) = (found.to_vec(), expected.to_vec());
                Err(ModelError::TensorShape { name: name.to_owned(), found, expected })
            }
            Some(_) => Ok(()),
        }
    }

    fn head_is_embedding(&self, spec: &DecoderSpec) -> Result<bool, ModelError> {
        for name in [EMBEDDING, HEAD] {
            self.check_shape(name, &[spec.vocab_size, spec.hidden_size])?;
        }
        self.equal(EMBEDDING, HEAD)
    }
}

/// `[out, in]` as the checkpoint stores the weight of a module.
pub(super) fn weight_shape(module: &Module) -> Vec<usize> {
    match module.kind {
        ModuleKind::Linear => vec![module.output, module.input],
        ModuleKind::Embedding => vec![module.input, module.output],
        ModuleKind::Norm => vec![module.output],
    }
}
