//! `ExpertLowRank`, y += s·B(Ax) within an expert, for the rows that chose it: LoRA on the experts of sparse layers, each with
//! a pair of its own.

use super::loading::Loading;
use super::op::{ClassOp, Weighting};
use crate::delta::layout::Site;
use crate::delta::rows::StepRows;
use crate::delta::sites::{Place, SparseSites};
use crate::ops::{Backend, ExpertDeltas, HostMatrix, HostTensor, OpsError, WeightFormat};

/// y += s·B(Ax) in each of some experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertLowRank {
    /// Which experts, ascending.
    pub experts: Vec<u32>,
    /// A of each, `[rank, in]`.
    pub a: Vec<HostTensor>,
    /// B of each, `[out, rank]`.
    pub b: Vec<HostTensor>,
    /// s of each.
    pub scalings: Vec<f32>,
}

impl ExpertLowRank {
    /// Add the pair of an expert above all that are there.
    pub(crate) fn push(&mut self, expert: u32, a: HostTensor, b: HostTensor, scaling: f32) {
        self.experts.push(expert);
        self.a.push(a);
        self.b.push(b);
        self.scalings.push(scaling);
    }
}

impl ClassOp for ExpertLowRank {
    fn parameters(&self) -> usize {
        self.a.iter().chain(&self.b).map(HostTensor::len).sum()
    }

    fn device_bytes(&self, weights: WeightFormat) -> u64 {
        (self.parameters() * weights.size()) as u64
    }

    /// The largest of an expert.
    fn rank(&self) -> Option<usize> {
        self.a.iter().map(HostTensor::rows).max()
    }

    /// That of all experts, where it is one.
    fn scaling(&self) -> Option<f32> {
        let (first, others) = self.scalings.split_first()?;
        others.iter().all(|scaling| scaling == first).then_some(*first)
    }

    fn computed(&self) -> &[f32] {
        &self.scalings
    }

    fn weighting() -> Weighting<Self> {
        Ok(|mut op, weight| {
            op.scalings.iter_mut().for_each(|scaling| *scaling *= weight);
            op
        })
    }

    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        self.a.iter().zip(&self.b).flat_map(|(a, b)| [a.matrix(), b.matrix()]).collect()
    }

    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Experts(site, columns) = loading.place(site) else {
            unreachable!("compilers attach ExpertLowRank to experts only")
        };
        for ((expert, a), scaling) in self.experts.into_iter().zip(&self.a).zip(self.scalings) {
            loading.expert_pair(site, expert, a.rows(), scaling, columns.clone());
        }
        Ok(())
    }
}

/// Semantics: y += s·B(Ax) of gate and up, and of down, of each expert that a row chose, where the row's adapter has pairs for
/// that expert. What [`Backend::experts`] adds; which experts those are is known to it alone.
pub(crate) fn deltas<'a, B: Backend>(on: &StepRows<'a, B>, sites: &SparseSites) -> ExpertDeltas<'a, B> {
    ExpertDeltas { gate_up: on.held(sites.gate_up), down: on.held(sites.down) }
}
