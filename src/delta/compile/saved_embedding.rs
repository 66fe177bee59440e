//! An embedding saved whole (`modules_to_save`), beside any method. Rows that are the base's stay the base's.

use super::compilation::{Compilation, key};
use crate::delta::DeltaError;
use crate::delta::class::EmbeddingRows;
use crate::delta::layout::Site;

const WEIGHT: &str = "weight";

/// Take it, where the file has it. The head of a tied base may go with it.
pub(super) fn take(compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
    let (mut modules, tied) = (compilation.base.layout.modules(), compilation.saved.is_tied);
    let embedding = modules.find(|module| module.site == Site::Embed && compilation.saved.contains(module));
    let Some(module) = embedding else { return Ok(()) };
    let saved = compilation.required(module, WEIGHT, &[module.input, module.output])?;
    if tied {
        compilation.same_in_head(WEIGHT, &key(module, WEIGHT), &saved)?;
    }
    let mut changed: Vec<usize> = (0..module.input).collect();
    if !compilation.tensors.has_no_numbers() {
        let base = compilation.base_tensor(&module.weight)?;
        changed.retain(|row| !saved.row_equals(*row, &base));
    }
    if changed.is_empty() {
        return Ok(());
    }
    let rows = if changed.len() == module.input { saved } else { saved.selected(&changed)? };
    let ids = changed.iter().map(|row| *row as u32).collect();
    compilation.push(module.site, EmbeddingRows { ids, rows, tied });
    Ok(())
}
