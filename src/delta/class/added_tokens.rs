//! `AddedTokens`, y' = Ax: logits of tokens that an adapter has and the base does not. They stand behind those of the base, in a buffer of
//! their own, so that nobody else's rows become wider.

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::ops::{Backend, HostMatrix, HostTensor, OpsError, SiteId, WeightFormat};

/// Rows of the head behind those of the base.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedTokens {
    /// `[tokens, hidden]`, in the order of their ids, which go on where the base's end.
    pub rows: HostTensor,
}

impl AddedTokens {
    fn columns(&self) -> Vec<u32> {
        (0..self.rows.rows() as u32).collect()
    }
}

impl ClassOp for AddedTokens {
    fn parameters(&self) -> usize {
        self.rows.len()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.rows.len() * weights.size() + self.rows.rows() * size_of::<u32>()) as u64
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        vec![self.rows.matrix()]
    }

    fn weighting() -> Weighting<Self> {
        Err("belongs to a vocabulary of its own")
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        debug_assert_eq!(site, Site::LmHead, "compilers attach AddedTokens to the head only");
        loading.replaced(&[loading.sites.added_tokens], self.columns());
        Ok(())
    }
}

/// Semantics: `y[c] = rows[c]·x` for the rows that have an entry at the site, for each row c of it.
pub(crate) fn multiply<B: Backend>(on: &StepRows<'_, B>, site: SiteId, x: &B::Buffer, y: &mut B::Buffer) {
    if let Some(rows) = on.held(site) {
        on.backend.replace_columns(on.step, on.rows, rows, x, y);
    }
}
