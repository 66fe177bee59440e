//! What the compiler of a method works with: the base, the tensors of the file, and the ops so far. Knows no method.

use super::super::class::DeltaOp;
use super::super::error::DeltaError;
use super::super::layout::{BaseLayout, BaseReadError, BaseWeights, Module, ModuleKind, Site};
use super::super::peft::fields::UnknownFields;
use super::super::peft::keys::{self, PREFIX};
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
    ops: Vec<(Site, DeltaOp)>,
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
        kind: &'static str,
        own_key: Option<&'static str>,
    ) -> Self {
        Self { base, tensors, ops: Vec::new(), kind, own_key }
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
        match self.tensors.take_shaped(&key(module, parameter), shape)? {
            Some(tensor) => Ok(tensor),
            None => {
                let found = self.tensors.examples(&key(module, ""));
                Err(DeltaError::MissingTensor { module: module.path.clone(), missing: parameter, found })
            }
        }
    }

    /// Whether the config targets a module, by its path in the model the adapter was trained on.
    pub(super) fn is_target(&self, targets: &Targets, module: &Module) -> Result<bool, DeltaError> {
        match self.tensors.level().path(module) {
            Some(path) => targets.contain(module, &path),
            None => Ok(false),
        }
    }

    /// Attach an op to a site.
    pub(super) fn push(&mut self, site: Site, op: impl Into<DeltaOp>) {
        self.ops.push((site, op.into()));
    }

    /// A tensor of the base that its config promises.
    pub(super) fn base_tensor(&self, name: &str) -> Result<HostTensor, DeltaError> {
        let missing = || BaseReadError { name: name.to_owned(), reason: "it is not there".to_owned() };
        Ok(self.base.weights.tensor(name)?.ok_or_else(missing)?)
    }

    /// Why a tensor nobody took is refused: a feature of PEFT that is known by its keys, or nothing known.
    pub(super) fn leftover(&self, tensor: &str) -> DeltaError {
        let layout = self.base.layout;
        if self.own_key.is_some_and(|own| tensor.contains(own)) && keys::is_of_base(tensor, layout) {
            return DeltaError::NotTargeted { tensor: tensor.to_owned() };
        }
        let feature = if tensor.contains("trainable_tokens_delta") {
            Some("trainable tokens")
        } else if tensor.starts_with(PREFIX) && !tensor.contains("lora_") && tensor.ends_with(".weight") {
            Some("modules_to_save or a resized vocabulary")
        } else {
            None
        };
        match feature {
            Some(feature) => DeltaError::UnsupportedTensor { tensor: tensor.to_owned(), feature },
            None => DeltaError::UnknownTensor {
                tensor: tensor.to_owned(),
                kind: self.kind,
                nearest: keys::nearest(tensor, layout),
            },
        }
    }
}

/// Key of a parameter of a module in the file.
pub(super) fn key(module: &Module, parameter: &str) -> String {
    format!("{PREFIX}{}.{parameter}", module.path)
}

/// Vectors computed from finite numbers can overflow (a magnitude over a norm of nearly 0).
fn check_computed(site: Site, op: &DeltaOp) -> Result<(), DeltaError> {
    match op.as_op().computed().iter().position(|number| !number.is_finite()) {
        Some(index) => Err(DeltaError::NonFinite { tensor: format!("{} of {site}", op.class().as_str()), index }),
        None => Ok(()),
    }
}
