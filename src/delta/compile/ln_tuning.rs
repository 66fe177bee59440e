//! LN tuning (Zhao et al. 2023): the saved gain replaces a norm's stored weight. Where the family adds an offset to
//! stored weights (Gemma: 1 + w), it is added to the saved one too.

use super::compilation::Compilation;
use crate::delta::DeltaError;
use crate::delta::class::Gain;
use crate::delta::layout::ModuleKind;
use crate::delta::peft::targets::Targets;

pub(super) const KIND: &str = "LN tuning";

pub(super) fn compile(targets: &Targets, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
    let layout = compilation.base.layout;
    for module in layout.modules() {
        if !compilation.is_target(targets, module)? {
            continue;
        }
        if module.kind != ModuleKind::Norm {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: KIND });
        }
        let saved = compilation.required(module, "ln_tuning_layers.weight", &[module.output])?.to_f32();
        let g = saved.iter().map(|w| w + layout.norm_offset).collect();
        compilation.push(module.site, Gain { g });
    }
    Ok(())
}
