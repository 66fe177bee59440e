//! `Head`, logits = Wh + b: the classifier that an adapter has in place of the base's head, which gives logits of labels instead
//! of tokens. Its numbers stay f32, as those of all vectors: a head is small, and so is what rounding its product would save.

use super::bias;
use super::loading::Loading;
use super::op::ClassOp;
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::{LabelSites, Place};
use crate::ops::{Backend, HostTensor, OpsError};

/// logits = Wh + b.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// `[labels, hidden]`.
    pub weight: HostTensor,
    /// `[labels]`, where it has one.
    pub bias: Option<Vec<f32>>,
}

impl ClassOp for Head {
    fn parameters(&self) -> usize {
        self.weight.len() + self.bias.as_ref().map_or(0, Vec::len)
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Labels(sites) = loading.place(site) else { unreachable!("compilers attach Head to labels only") };
        let labels = 0..self.weight.rows();
        loading.vector(sites.head, &self.weight.to_f32(), labels.clone())?;
        self.bias.map_or(Ok(()), |bias| loading.vector(sites.bias, &bias, labels))
    }
}

/// Semantics: logits = Wh + b for the rows that have a head.
pub(crate) fn apply<B: Backend>(on: &StepRows<'_, B>, sites: &LabelSites, h: &B::Buffer, logits: &mut B::Buffer) {
    if let Some(heads) = on.held(sites.head) {
        on.backend.head_rows(on.step, on.rows, heads, h, logits);
        bias::apply(on, sites.bias, logits);
    }
}
