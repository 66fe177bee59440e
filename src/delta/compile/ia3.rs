//! IA3 (Liu et al. 2022): one learned vector per target, on its output (bias included) or, for feed-forward targets,
//! on its input.

use super::compilation::Compilation;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::{InputScale, OutputScale};
use crate::delta::layout::{BaseLayout, ModuleKind};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::{Feedforward, Targets};

const KIND: &str = "IA3";

pub(super) struct Ia3Config {
    targets: Targets,
    feedforward: Feedforward,
}

impl Ia3Config {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        // PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["init_ia3_weights", "fan_in_fan_out"]);
        let targets = Targets::read(fields, defaults::ia3_targets(layout.model_type))?;
        let feedforward = Feedforward::read(fields, defaults::ia3_feedforward(layout.model_type))?;
        Ok(Self { targets, feedforward })
    }
}

impl Method for Ia3Config {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".ia3_l")
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if !compilation.is_target_of_kind(&self.targets, module, ModuleKind::Linear)? {
                continue;
            }
            let path = compilation.tensors.level().path(module).unwrap_or_default();
            let on_input = self.feedforward.contain(&path)?;
            let shape = if on_input { [1, module.input] } else { [module.output, 1] };
            let g = compilation.required(module, "ia3_l", &shape)?.to_f32();
            if on_input {
                compilation.push(module.site, InputScale { g });
            } else {
                compilation.push(module.site, OutputScale { g, after_bias: true });
            }
        }
        Ok(())
    }
}
