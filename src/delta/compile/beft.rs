//! BEFT: a vector added to what a module gives, its bias included. Unlike a saved bias it is the difference itself.

use super::compilation::Compilation;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::Bias;
use crate::delta::layout::{BaseLayout, ModuleKind};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;

const KIND: &str = "BEFT";

pub(super) struct BeftConfig {
    targets: Targets,
}

impl BeftConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        Ok(Self { targets: Targets::read(fields, defaults::beft_targets(layout.model_type))? })
    }
}

impl Method for BeftConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".beft_bias")
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if !compilation.is_target_of_kind(&self.targets, module, ModuleKind::Linear)? {
                continue;
            }
            let b = compilation.required(module, "beft_bias", &[1, module.output])?.to_f32();
            compilation.push(module.site, Bias { b });
        }
        Ok(())
    }
}
