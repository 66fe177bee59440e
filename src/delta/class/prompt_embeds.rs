//! `PromptEmbeds`, learned embeddings at the head of the prompt: prompt tuning (Lester et al. 2021) and its kin.

use std::ops::Range;

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::layout::Site;
use crate::delta::resident::VirtualRows;
use crate::ops::{Backend, HostTensor, OpsError};
use crate::types::VirtualTokens;

/// Learned embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptEmbeds {
    /// `[virtual tokens, hidden]`.
    pub embeds: HostTensor,
}

impl ClassOp for PromptEmbeds {
    fn parameters(&self) -> usize {
        self.embeds.len()
    }

    fn virtual_tokens(&self) -> Option<VirtualTokens> {
        Some(VirtualTokens { count: self.embeds.rows() as u32, saved_kv: false })
    }

    fn weighting() -> Weighting<Self> {
        Err("stands at the head of a prompt, where there is room for one")
    }

    fn load<B: Backend>(self, _site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let rows = loading.rows(loading.layout.hidden_size, &self.embeds.to_f32())?;
        loading.set_virtual_rows(VirtualRows::Embeds(rows));
        Ok(())
    }
}

/// Semantics: row `rows.start + i` of y is embedding `first + i`. Nothing is written if the virtual rows are none of these.
pub(crate) fn write<B: Backend>(
    backend: &B,
    embeds: Option<&VirtualRows<B>>,
    first: usize,
    rows: Range<usize>,
    y: &mut B::Buffer,
) {
    if let Some(VirtualRows::Embeds(embeds)) = embeds {
        backend.copy_rows(embeds, first, rows, y);
    }
}
