//! LN tuning (Zhao et al. 2023): the saved gain replaces a norm's stored weight. Where the family adds an offset to
//! stored weights (Gemma: 1 + w), it is added to the saved one too.

use super::compilation::Compilation;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::Gain;
use crate::delta::layout::{BaseLayout, ModuleKind};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;

const KIND: &str = "LN tuning";

pub(super) struct LnTuningConfig {
    targets: Targets,
}

impl LnTuningConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        Ok(Self { targets: Targets::read(fields, defaults::ln_targets(layout.model_type))? })
    }
}

impl Method for LnTuningConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".ln_tuning_layers.")
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if !compilation.is_target_of_kind(&self.targets, module, ModuleKind::Norm)? {
                continue;
            }
            let saved = compilation.required(module, "ln_tuning_layers.weight", &[module.output])?.to_f32();
            let g = saved.iter().map(|w| w + layout.norm_offset).collect();
            compilation.push(module.site, Gain { g });
        }
        Ok(())
    }
}
