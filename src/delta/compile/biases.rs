//! Biases of the base that a file replaces: what `bias` in a config says, whatever the method.

use super::compilation::{Compilation, key};
use crate::delta::DeltaError;
use crate::delta::layout::Module;
use crate::delta::peft::fields::Fields;
use crate::ops::HostTensor;

/// `bias` of a config: which biases of the base the file replaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SavedBiases {
    None,
    All,
    /// Those of the modules that the method changes.
    TargetsOnly,
}

impl SavedBiases {
    /// `only` is what the method calls the third: `lora_only`.
    pub(super) fn read(fields: &Fields, only: &str) -> Result<Self, DeltaError> {
        match fields.str("bias")? {
            None | Some("none") => Ok(Self::None),
            Some("all") => Ok(Self::All),
            Some(name) if name == only => Ok(Self::TargetsOnly),
            Some(_) => Err(fields.bad("bias", "none, all, or the method's own with _only")),
        }
    }

    /// What the saved bias of a module adds, where the file has one. `is_target`: the method changes the module.
    pub(super) fn take(
        self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        is_target: bool,
    ) -> Result<Option<Vec<f32>>, DeltaError> {
        let parameter = match (self, is_target) {
            (Self::None, _) | (Self::TargetsOnly, false) => return Ok(None),
            (_, true) => "base_layer.bias",
            (Self::All, false) => "bias",
        };
        if !module.bias {
            return Ok(None);
        }
        let Some(saved) = compilation.tensors.take_shaped(&key(module, parameter), &[module.output])? else {
            return Ok(None);
        };
        difference(compilation, module, &saved).map(Some)
    }
}

/// Saved biases replace the base's; the op adds the difference.
pub(super) fn difference(
    compilation: &Compilation<'_>,
    module: &Module,
    saved: &HostTensor,
) -> Result<Vec<f32>, DeltaError> {
    let base = compilation.base_tensor(&format!("{}.bias", module.path))?.to_f32();
    Ok(saved.to_f32().iter().zip(base).map(|(saved, base)| saved - base).collect())
}
