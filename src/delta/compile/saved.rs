//! `modules_to_save` of any method's config: modules that the file has whole, in place of the base's.

use super::biases::difference;
use super::compilation::Compilation;
use super::saved_embedding;
use crate::delta::DeltaError;
use crate::delta::class::{Bias, Dense, Gain};
use crate::delta::layout::{BaseLayout, Module, ModuleKind, Site};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::saved::SavedNames;
use crate::delta::peft::saved_embedding::SavedEmbedding;
use crate::files::Json;

const FIELD: &str = "modules_to_save";

pub(super) struct SavedModules {
    names: SavedNames,
    /// What they say of the embedding.
    pub(super) embedding: SavedEmbedding,
}

impl SavedModules {
    /// No module.
    pub(super) fn none() -> Self {
        Self { names: SavedNames::default(), embedding: SavedEmbedding::default() }
    }

    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let names = SavedNames::read(fields)?;
        let is_of_base = |name: SavedNames| layout.modules().any(|module| name.contain(&module.path));
        if !names.each().all(is_of_base) {
            return Err(fields.unsupported(FIELD, ": the base has no module of one of these names"));
        }
        let is_tied = layout.tied && matches!(fields.peek("ensure_weight_tying"), Some(Json::Bool(true)));
        let embedding = SavedEmbedding::of(&names, layout, is_tied);
        Ok(Self { names, embedding })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Take the tensors of all of them. The head of a tied base that is kept tied goes with the embedding.
    pub(super) fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if !compilation.tensors.level().path(module).is_some_and(|path| self.names.contain(&path)) {
                continue;
            }
            match module.kind {
                ModuleKind::Linear if module.site == Site::LmHead && self.embedding.is_tied => {}
                ModuleKind::Linear => linear(compilation, module)?,
                ModuleKind::Norm => {
                    let saved = compilation.required(module, "weight", &[module.output])?.to_f32();
                    let g = saved.iter().map(|w| w + layout.norm_offset).collect();
                    compilation.push(module.site, Gain { g });
                }
                ModuleKind::Embedding => {}
            }
        }
        saved_embedding::take(compilation)
    }
}

fn linear(compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
    let d = compilation.required(module, "weight", &[module.output, module.input])?;
    compilation.push(module.site, Dense { d, scaling: 1.0, replaces: true });
    if module.bias {
        let saved = compilation.required(module, "bias", &[module.output])?;
        let b = difference(compilation, module, &saved)?;
        compilation.push(module.site, Bias { b });
    }
    Ok(())
}
