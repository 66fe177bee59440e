//! Ops alone, each as a step of many of them that is recorded where steps are: what a kernel takes beside what it must read or
//! compute, without its neighbours.

mod attention;
mod gemm;
mod low_rank;
mod sample;

use polydelta::model::ModelInput;
use polydelta::ops::cuda::CudaBackend;
use polydelta::ops::{Backend, Launches, OpsError, SiteSet};
use serde_json::Value;

use super::timing::medians;
use crate::support::Failure;
pub(crate) use attention::Attention;
pub(crate) use gemm::Gemm;
pub(crate) use low_rank::LowRank;
pub(crate) use sample::{Choice, Sample};

/// One op of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    LowRank(LowRank),
    Gemm(Gemm),
    Attention(Attention),
    Sample(Sample),
}

/// Where ops are measured, and what they are held against.
#[derive(Clone, Copy)]
pub(crate) struct Site<'b> {
    pub(super) backend: &'b CudaBackend,
    /// Bytes in a second that copies read and write.
    pub(super) copies: f64,
    pub(super) rounds: usize,
}

impl Alone {
    pub(super) fn measure(&self, site: Site<'_>) -> Result<Value, Failure> {
        match self {
            Self::LowRank(op) => op.measure(site),
            Self::Gemm(op) => op.measure(site),
            Self::Attention(op) => op.measure(site),
            Self::Sample(op) => op.measure(site),
        }
    }
}

impl Site<'_> {
    /// Median seconds of a step whose launches are those of `launch`, from its upload to its outcomes.
    fn seconds(
        &self,
        input: &ModelInput,
        held: &SiteSet,
        mut launch: impl FnMut(&mut <CudaBackend as Backend>::Step),
    ) -> Result<f64, Failure> {
        let backend = self.backend;
        let mut step = backend.step();
        let mut pass = || -> Result<(), OpsError> {
            backend.upload(&input.plan, &mut step)?;
            let mut launches = backend.begin(&mut step, Some(held));
            while launches == Launches::Wanted {
                launch(&mut step);
                launches = backend.end(&mut step);
            }
            backend.finish(&mut step).map(drop)
        };
        Ok(medians(1, self.rounds, |_| pass().map_err(Failure::from))?[0])
    }
}
