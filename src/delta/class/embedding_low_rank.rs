//! `EmbeddingLowRank`, e += s·B·A[:, id]: LoRA on the token embedding.

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::change::{Change, product_norm};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::Place;
use crate::ops::{Backend, HostMatrix, HostTensor, OpsError, SiteId, WeightFormat};

/// e += s·B·A[:, id].
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingLowRank {
    /// `[rank, vocab]`; `[vocab, rank]` once laid out.
    pub a: HostTensor,
    /// `[hidden, rank]`.
    pub b: HostTensor,
    /// s.
    pub scaling: f32,
}

impl ClassOp for EmbeddingLowRank {
    fn parameters(&self) -> usize {
        self.a.len() + self.b.len()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.parameters() * weights.size()) as u64
    }

    fn rank(&self) -> Option<usize> {
        Some(self.b.cols())
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn weighting() -> Weighting<Self> {
        Ok(|op, weight| Self { scaling: weight * op.scaling, ..op })
    }

    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(Some(Change::OfWeight(f64::from(self.scaling.abs()) * product_norm(&self.b, &self.a)?)))
    }

    /// A column of A is what a token reads: A transposed.
    fn laid_out(self) -> Result<Self, OpsError> {
        Ok(Self { a: self.a.transposed()?, ..self })
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.a.matrix(), self.b.matrix()]
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Embed(place) = loading.place(site) else {
            unreachable!("compilers attach EmbeddingLowRank to the embedding only");
        };
        loading.pair(place.low_rank, self.b.cols(), self.scaling, 0..loading.layout.hidden_size);
        Ok(())
    }
}

/// Semantics: y += scale·s·B·A[:, id] for the rows that have a token id and pairs at the site; `scale` is the embedding
/// scale of the base.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, scale: f32, y: &mut B::Buffer) {
    if let Some(pairs) = on.held(site) {
        on.backend.embedding_low_rank(on.step, pairs, scale, y);
    }
}
