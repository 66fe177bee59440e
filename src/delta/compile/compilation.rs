//! What the compiler of a method works with: the base, the tensors of the file, and the ops so far. Knows no method.

use super::super::class::DeltaOp;
use super::super::error::DeltaError;
use super::super::layout::{BaseLayout, BaseReadError, BaseWeights, Module, ModuleKind, Site};
use super::super::peft::fields::UnknownFields;
use super::super::peft::keys::{self, PREFIX, SparsePart};
use super::super::peft::saved_embedding::SavedEmbedding;
use super::super::peft::targets::Targets;
use super::tensors::TensorSet;
use crate::ops::HostTensor;

/// Limits of one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Largest rank.
    pub max_rank: usize,
    /// Most virtual tokens.
    pub max_virtual_tokens: usize,
    /// Let fields of the config pass that are not known here; the program says which. Known ones that change the maths
    /// and are not implemented are refused all the same.
    pub allow_unknown_fields: bool,
}

impl CompileLimits {
    pub(super) fn unknown_fields(self) -> UnknownFields {
        if self.allow_unknown_fields { UnknownFields::Noted } else { UnknownFields::Refused }
    }
}

/// The base an adapter is compiled against.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Modules and sizes.
    pub layout: &'a BaseLayout,
    /// Numbers, where a method needs them.
    pub weights: &'a dyn BaseWeights,
}

/// One compilation in progress.
pub(super) struct Compilation<'a> {
    pub(super) base: Base<'a>,
    pub(super) tensors: TensorSet<'a>,
    pub(super) saved: SavedEmbedding,
    /// Tokens of the adapter's vocabulary.
    pub(super) vocab_size: usize,
    pub(super) ops: Vec<(Site, DeltaOp)>,
    /// Of the method, for people.
    kind: &'static str,
    /// What stands in the keys of the method's own tensors.
    own_key: Option<&'static str>,
}

impl<'a> Compilation<'a> {
    /// Nothing compiled yet.
    pub(super) fn new(
        base: Base<'a>,
        tensors: TensorSet<'a>,
        saved: SavedEmbedding,
        kind: &'static str,
        own_key: Option<&'static str>,
    ) -> Self {
        Self { base, tensors, saved, vocab_size: base.layout.vocab_size, ops: Vec::new(), kind, own_key }
    }

    /// The ops, where every tensor was taken and every computed number is finite.
    pub(super) fn finish(mut self) -> Result<Vec<(Site, DeltaOp)>, DeltaError> {
        self.drop_base_copies()?;
        if let Some(tensor) = self.tensors.left().next() {
            return Err(self.leftover(tensor));
        }
        if self.ops.is_empty() {
            return Err(DeltaError::NothingMatched { shown: String::new() });
        }
        self.ops.sort_by_key(|(site, op)| (*site, op.class()));
        for (site, op) in &self.ops {
            check_computed(*site, op)?;
        }
        Ok(self.ops)
    }

    /// PEFT puts embedding and head into the file as they are: beside an adapter on them, and where
    /// `save_embedding_layers` asks for it. A copy of the base's does nothing. Beside an adapter any other means another
    /// base; alone it replaces the base's and is left to be refused.
    fn drop_base_copies(&mut self) -> Result<(), DeltaError> {
        let layout = self.base.layout;
        for module in layout.modules().filter(|m| m.kind == ModuleKind::Embedding || m.site == Site::LmHead) {
            let (beside, alone) = (key(module, "base_layer.weight"), key(module, "weight"));
            if !self.tensors.has(&beside) && !self.tensors.has(&alone) {
                continue;
            }
            for name in [&beside, &alone] {
                self.check_vocabulary(module, name, &[layout.vocab_size, layout.hidden_size])?;
            }
            if self.tensors.has_no_numbers() {
                // Whether they are copies is seen when their numbers have come.
                self.tensors.remove(&alone);
                self.tensors.remove(&beside);
                continue;
            }
            let base = self.base_tensor(&module.weight)?;
            self.tensors.drop_copy(&alone, &base)?;
            if !self.tensors.drop_copy(&beside, &base)? {
                let tensor = self.tensors.own_key(&beside).unwrap_or(&beside).to_owned();
                return Err(DeltaError::BaseMismatch { tensor });
            }
        }
        Ok(())
    }

    /// Take a tensor that must be there.
    pub(super) fn required(
        &mut self,
        module: &Module,
        parameter: &'static str,
        shape: &[usize],
    ) -> Result<HostTensor, DeltaError> {
        self.check_vocabulary(module, &key(module, parameter), shape)?;
        match self.tensors.take_shaped(&key(module, parameter), shape)? {
            Some(tensor) => Ok(tensor),
            None => Err(self.missing(module, parameter)),
        }
    }

    /// Refuse a tensor of embedding or head that differs from the expected shape in the number of tokens alone.
    fn check_vocabulary(&self, module: &Module, name: &str, expected: &[usize]) -> Result<(), DeltaError> {
        let vocab_size = self.base.layout.vocab_size;
        let Some(found) = self.tensors.shape(name) else { return Ok(()) };
        let of_tokens = match module.site {
            Site::Embed | Site::LmHead => expected.iter().position(|size| *size == vocab_size),
            _ => None,
        };
        let others = |at| found.len() == expected.len() && (0..found.len()).all(|i| i == at || found[i] == expected[i]);
        match of_tokens.filter(|at| others(*at) && found[*at] != vocab_size) {
            Some(at) => {
                let of = self.tensors.own_key(name).unwrap_or(name).to_owned();
                let reason = "only LoRA, modules_to_save and trainable tokens may be on an embedding or a head of another size, \
                              and the file must have both whole";
                Err(DeltaError::ResizedVocabulary { of, tokens: found[at], vocab_size, reason })
            }
            None => Ok(()),
        }
    }

    /// Why a target without a parameter is refused.
    pub(super) fn missing(&self, module: &Module, parameter: &'static str) -> DeltaError {
        let found = self.tensors.examples(&key(module, ""));
        DeltaError::MissingTensor { module: module.path.clone(), missing: parameter, found }
    }

    /// Take a tensor that belongs to no module and must be there, by its key.
    pub(super) fn required_shared(&mut self, key: &'static str, shape: &[usize]) -> Result<HostTensor, DeltaError> {
        match self.tensors.take_shaped(key, shape)? {
            Some(tensor) => Ok(tensor),
            None => Err(self.missing_shared(key)),
        }
    }

    /// Sizes of a tensor that belongs to no module.
    pub(super) fn shared_sizes<const N: usize>(&self, key: &'static str) -> Result<[usize; N], DeltaError> {
        let Some(shape) = self.tensors.shape(key) else { return Err(self.missing_shared(key)) };
        shape.try_into().map_err(|_| {
            let tensor = self.tensors.own_key(key).unwrap_or(key).to_owned();
            DeltaError::Shape { tensor, found: shape.to_vec(), expected: vec![0; N] }
        })
    }

    fn missing_shared(&self, key: &'static str) -> DeltaError {
        DeltaError::MissingTensor { module: "base_model".to_owned(), missing: key, found: self.tensors.examples(key) }
    }

    /// Whether the config targets a module, by its path in the model the adapter was trained on. One that is in the file whole
    /// is no target.
    pub(super) fn is_target(&self, targets: &Targets, module: &Module) -> Result<bool, DeltaError> {
        if self.saved.contains(module) {
            return Ok(false);
        }
        match self.tensors.level().path(module) {
            Some(path) => targets.contain(module, &path),
            None => Ok(false),
        }
    }

    /// Whether the config targets a module, for a method that goes on modules of one kind alone.
    pub(super) fn is_target_of_kind(
        &self,
        targets: &Targets,
        module: &Module,
        kind: ModuleKind,
    ) -> Result<bool, DeltaError> {
        match self.is_target(targets, module)? {
            true if module.kind != kind => {
                Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.kind })
            }
            is_target => Ok(is_target),
        }
    }

    /// Attach an op to a site.
    pub(super) fn push(&mut self, site: Site, op: impl Into<DeltaOp>) {
        self.ops.push((site, op.into()));
    }

    /// A tensor of the embedding that the head of a tied base shares may be in the file for the head, too, and is the same
    /// there. `own` is its key.
    pub(super) fn same_in_head(&mut self, parameter: &str, own: &str, tensor: &HostTensor) -> Result<(), DeltaError> {
        let Some(head) = self.base.layout.modules().find(|module| module.site == Site::LmHead) else { return Ok(()) };
        let of_head = key(head, parameter);
        let second = self.tensors.own_key(&of_head).unwrap_or_default().to_owned();
        match self.tensors.take_shaped(&of_head, &tensor.shape)? {
            Some(twin) if !twin.data.equals(&tensor.data) => Err(DeltaError::Untied { first: own.to_owned(), second }),
            _ => Ok(()),
        }
    }

    /// A tensor of the base that its config promises.
    pub(super) fn base_tensor(&self, name: &str) -> Result<HostTensor, DeltaError> {
        let missing = || BaseReadError { name: name.to_owned(), reason: "it is not there".to_owned() };
        Ok(self.base.weights.tensor(name)?.ok_or_else(missing)?)
    }

    /// Why a tensor nobody took is refused: a feature of PEFT that is known by its keys, or nothing known.
    pub(super) fn leftover(&self, tensor: &str) -> DeltaError {
        let layout = self.base.layout;
        if let Some((part, is_lora)) = keys::sparse_part(tensor, layout) {
            return of_sparse(tensor.to_owned(), part, is_lora);
        }
        let is_known = !self.tensors.unknown().iter().any(|key| key == tensor);
        if self.own_key.is_some_and(|own| tensor.contains(own)) && is_known {
            return DeltaError::NotTargeted { tensor: tensor.to_owned() };
        }
        if tensor.contains("trainable_tokens_delta") {
            return DeltaError::NotTargeted { tensor: tensor.to_owned() };
        }
        let module = keys::module_of(tensor, layout);
        let is_saved = tensor.starts_with(PREFIX) && keys::is_of_a_model(tensor) && tensor.ends_with(".weight");
        let tensor = tensor.to_owned();
        if is_saved && module.is_some_and(|module| module.layer().is_some() || module.kind == ModuleKind::Norm) {
            return DeltaError::NotTargeted { tensor };
        }
        if is_saved {
            return DeltaError::UnsupportedTensor { tensor, feature: "modules_to_save or a resized vocabulary" };
        }
        let nearest = keys::nearest(&tensor, layout);
        DeltaError::UnknownTensor { tensor, kind: self.kind, nearest }
    }
}

/// Why a tensor of a router or of experts is refused that nobody took.
fn of_sparse(tensor: String, part: SparsePart<'_>, is_lora: bool) -> DeltaError {
    match part {
        SparsePart::NoExpert(block, expert) => DeltaError::NoSuchExpert { tensor, expert, experts: block.experts },
        _ if is_lora => DeltaError::NotTargeted { tensor },
        _ => DeltaError::UnsupportedTensor {
            tensor,
            feature: "an adapter other than LoRA of the base's experts or their router",
        },
    }
}

/// Key of a parameter of a module in the file.
pub(super) fn key(module: &Module, parameter: &str) -> String {
    format!("{PREFIX}{}.{parameter}", module.path)
}

/// Numbers computed from finite ones can overflow (a magnitude over a norm of nearly 0, a scaling of a scaling).
pub(in crate::delta) fn check_computed(site: Site, op: &DeltaOp) -> Result<(), DeltaError> {
    if op.as_op().scaling().is_some_and(|scaling| !scaling.is_finite()) {
        return Err(DeltaError::NonFinite { tensor: format!("the scaling of {site}"), index: 0 });
    }
    match op.as_op().computed().iter().position(|number| !number.is_finite()) {
        Some(index) => Err(DeltaError::NonFinite { tensor: format!("{} of {site}", op.class().as_str()), index }),
        None => Ok(()),
    }
}
