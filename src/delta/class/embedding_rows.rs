//! `EmbeddingRows`, e = rows[i] for token `ids[i]`: tokens whose rows of the embedding an adapter has itself. Where the head
//! has such rows too, the tokens' logits are rows[i]·h.

use super::loading::Loading;
use super::op::ClassOp;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::ops::{Backend, HostMatrix, HostTensor, OpsError, SiteId, WeightFormat};

/// Rows of the embedding, or of the head, in place of the base's.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRows {
    /// Token ids, ascending, each once.
    pub ids: Vec<u32>,
    /// `[ids, hidden]`.
    pub rows: HostTensor,
    /// At the embedding: the head is tied to it and has the same rows.
    pub tied: bool,
}

impl ClassOp for EmbeddingRows {
    fn parameters(&self) -> usize {
        self.rows.len()
    }

    /// The ids lie there once for each place that has the rows.
    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        let places = 1 + usize::from(self.tied);
        (self.rows.len() * weights.size() + places * size_of_val(self.ids.as_slice())) as u64
    }

    fn other_site(&self) -> Option<Site> {
        self.tied.then_some(Site::LmHead)
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.rows.matrix()]
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let sites = loading.sites;
        match site {
            Site::Embed if self.tied => loading.replaced(&[sites.embed.rows, sites.head_rows], self.ids),
            Site::Embed => loading.replaced(&[sites.embed.rows], self.ids),
            Site::LmHead => loading.replaced(&[sites.head_rows], self.ids),
            _ => unreachable!("compilers attach EmbeddingRows to the embedding and the head only"),
        }
        Ok(())
    }
}

/// Semantics: y = scale·rows[i] for the rows of the step whose token is `ids[i]` of their slot's entry at the site; `scale`
/// is the embedding scale of the base.
pub(crate) fn embed<B: Backend>(on: &StepRows<'_, B>, site: SiteId, scale: f32, y: &mut B::Buffer) {
    if let Some(replaced) = on.held(site) {
        on.backend.replace_embeddings(on.step, replaced, scale, y);
    }
}

/// Semantics: `y[ids[i]] = rows[i]·x` for the rows that have an entry at the site, for all i of it.
pub(crate) fn multiply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, x: &B::Buffer, y: &mut B::Buffer) {
    if let Some(replaced) = on.held(site) {
        on.backend.replace_columns(on.step, on.rows, replaced, x, y);
    }
}
