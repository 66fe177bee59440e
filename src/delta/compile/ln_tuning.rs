//! LN tuning (Zhao et al. 2023): the saved gain replaces a norm's stored weight. Where the family adds an offset to
//! stored weights (Gemma: 1 + w), it is added to the saved one too.

use super::{Compilation, key};
use crate::delta::DeltaError;
use crate::delta::layout::ModuleKind;
use crate::delta::peft::targets::Targets;
use crate::delta::program::DeltaOp;

pub(super) fn compile(compilation: &mut Compilation<'_>) -> Result<&'static str, DeltaError> {
    let targets = Targets::read(&compilation.fields)?;
    let layout = compilation.base.layout;
    for module in layout.modules() {
        if !targets.contain(module)? {
            continue;
        }
        if module.kind != ModuleKind::Norm {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: "LN tuning" });
        }
        let saved = compilation.tensors.take_shaped(&key(module, "ln_tuning_layers.weight"), &[module.output])?;
        let missing = || DeltaError::MissingTensor { module: module.path.clone(), missing: "ln_tuning_layers.weight" };
        let g = saved.ok_or_else(missing)?.to_f32().iter().map(|w| w + layout.norm_offset).collect();
        compilation.push(module, DeltaOp::Gain { g });
    }
    Ok("LN tuning")
}
