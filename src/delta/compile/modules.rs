//! Methods that change every linear module they target by itself: which ones those are, and the biases saved beside.

use super::biases::SavedBiases;
use super::compilation::Compilation;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::Bias;
use crate::delta::layout::{Module, ModuleKind};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;

/// A method that gives each module it targets ops of its own, with numbers that it works out.
pub(super) trait OfModules {
    /// See [`Method::own_key`].
    const OWN_KEY: &'static str;

    /// Which modules.
    fn modules(&self) -> &Modules;

    /// Take a module's tensors and attach its ops.
    ///
    /// # Errors
    /// The first reason to refuse.
    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError>;
}

impl<M: OfModules> Method for M {
    fn kind(&self) -> &'static str {
        self.modules().kind()
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(M::OWN_KEY)
    }

    fn works_out_numbers(&self) -> bool {
        true
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        self.modules().compile(compilation, |compilation, module| self.give(compilation, module))
    }
}

/// What the configs of these methods have in common.
pub(super) struct Modules {
    targets: Targets,
    biases: Option<SavedBiases>,
    kind: &'static str,
}

impl Modules {
    /// `default` is what null means for `target_modules`; `only` the method's name for saved biases of its own modules
    /// alone, `None` where it saves no biases.
    pub(super) fn read(
        fields: &Fields,
        default: Option<&[&str]>,
        kind: &'static str,
        only: Option<&str>,
    ) -> Result<Self, DeltaError> {
        let targets = Targets::read_with_layers(fields, default)?;
        let biases = only.map(|only| SavedBiases::read(fields, only)).transpose()?;
        Ok(Self { targets, biases, kind })
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Why a module is refused that the method cannot be cut to.
    pub(super) fn wrong(&self, module: &Module) -> DeltaError {
        DeltaError::WrongModule { module: module.path.clone(), kind: self.kind }
    }

    /// Have every targeted module given its ops, and attach the biases.
    pub(super) fn compile(
        &self,
        compilation: &mut Compilation<'_>,
        mut give: impl FnMut(&mut Compilation<'_>, &Module) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let mut matched = false;
        for module in layout.modules() {
            let is_target = compilation.is_target_of_kind(&self.targets, module, ModuleKind::Linear)?;
            matched |= is_target;
            if is_target {
                give(compilation, module)?;
            }
            if let Some(biases) = self.biases
                && let Some(b) = biases.take(compilation, module, is_target)?
            {
                compilation.push(module.site, Bias { b });
            }
        }
        if matched { Ok(()) } else { Err(DeltaError::NothingMatched { shown: String::new() }) }
    }
}
