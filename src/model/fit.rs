//! Does the checkpoint hold the network that config.json describes? Asked of headers alone, before memory is taken for
//! anything: every tensor the decoder will read is there and has its shape.

use super::checkpoint::{Checkpoint, EMBEDDING, HEAD};
use super::spec::DecoderSpec;
use super::{ModelError, base_layout, read_spec};
use crate::delta::{Module, ModuleKind};

impl Checkpoint {
    /// The decoder that the folder holds: as config.json describes it, with a head of its own where the checkpoint has
    /// one that differs from the embedding.
    ///
    /// # Errors
    /// Those of [`read_spec`]; [`ModelError::MissingTensor`] and [`ModelError::TensorShape`]; and what reading the head
    /// says, where it must be compared with the embedding.
    pub fn spec(&self) -> Result<DecoderSpec, ModelError> {
        let mut spec = read_spec(self.config())?;
        // As transformers: what is tied by config.json and there twice with different numbers is not tied.
        if spec.tied && self.shape(HEAD).is_some() && !self.head_is_embedding(&spec)? {
            tracing::warn!(
                "config.json ties the head to the embedding, the checkpoint has another head: that one counts"
            );
            spec.tied = false;
        }
        for module in base_layout(&spec).modules() {
            self.check_shape(&module.weight, &weight_shape(module))?;
            if module.bias {
                self.check_shape(&format!("{}.bias", module.path), &[module.output])?;
            }
        }
        Ok(spec)
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
