//! IA3 (Liu et al. 2022): one learned vector per target, on its output (bias included) or, for feed-forward targets,
//! on its input.

use super::{Compilation, key};
use crate::delta::DeltaError;
use crate::delta::layout::ModuleKind;
use crate::delta::peft::targets::{Feedforward, Targets};
use crate::delta::program::DeltaOp;

pub(super) fn compile(compilation: &mut Compilation<'_>) -> Result<&'static str, DeltaError> {
    compilation.fields.ignore(&["init_ia3_weights"]);
    let targets = Targets::read(&compilation.fields)?;
    let feedforward = Feedforward::read(&compilation.fields)?;
    let layout = compilation.base.layout;
    for module in layout.modules() {
        if !targets.contain(module)? {
            continue;
        }
        if module.kind != ModuleKind::Linear {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: "IA3" });
        }
        let on_input = feedforward.contain(module)?;
        let shape = if on_input { [1, module.input] } else { [module.output, 1] };
        let g = compilation.tensors.take_shaped(&key(module, "ia3_l"), &shape)?;
        let missing = || DeltaError::MissingTensor { module: module.path.clone(), missing: "ia3_l" };
        let g = g.ok_or_else(missing)?.to_f32();
        let op = if on_input { DeltaOp::InputScale { g } } else { DeltaOp::OutputScale { g, after_bias: true } };
        compilation.push(module, op);
    }
    Ok("IA3")
}
