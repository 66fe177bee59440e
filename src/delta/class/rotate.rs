//! `InputRotate`, x = x R₁ ⋯ R_n: OFT (Qiu et al. 2023), whose R has rotations of few inputs along its diagonal, and BOFT (Liu
//! et al. 2024), which reaches all of them by several such in turn, a butterfly.

use super::loading::Loading;
use super::op::ClassOp;
use crate::delta::change::{Change, length};
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::delta::sites::Place;
use crate::ops::{Backend, OpsError};

/// x = x R₁ ⋯ R_n, of a row of inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct InputRotate {
    /// R₁ and those after it.
    pub stages: Vec<RotateStage>,
}

/// One R: square blocks along the diagonal, up to the order of the inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct RotateStage {
    /// `[blocks, size, size]`; a block multiplies a row of its inputs from the right.
    pub numbers: Vec<f32>,
    /// Blocks that are there: one for every `size` inputs, or one for all.
    pub blocks: usize,
    /// Inputs of a block.
    pub size: usize,
    /// Blocks of a group over consecutive inputs: first the first halves of all its blocks, then their second halves. 1 where
    /// blocks lie one after the other.
    pub interleaved: usize,
}

impl ClassOp for InputRotate {
    fn parameters(&self) -> usize {
        self.stages.iter().map(|stage| stage.blocks * stage.size * stage.size).sum()
    }

    /// Of each R: ‖R − I‖ over the root of its order. They are added.
    fn change(&self) -> Result<Option<Change>, DeltaError> {
        let of_stage = |stage: &RotateStage| {
            let diagonal = |at: usize| (at % (stage.size * stage.size)).is_multiple_of(stage.size + 1);
            let from_identity = |(at, number): (usize, &f32)| number - if diagonal(at) { 1.0 } else { 0.0 };
            length(stage.numbers.iter().enumerate().map(from_identity)) / ((stage.blocks * stage.size) as f64).sqrt()
        };
        Ok(Some(Change::OfDirection(self.stages.iter().map(of_stage).sum())))
    }

    /// Once for every input of the stack that the site covers.
    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
        let Place::Linear(place) = loading.place(site) else {
            unreachable!("compilers attach InputRotate to linear sites only");
        };
        for input in &place.sites.inputs[place.inputs] {
            for RotateStage { numbers, blocks, size, interleaved } in &self.stages {
                loading.rotation(input.rotate, numbers, *blocks == 1, *size, *interleaved)?;
            }
        }
        Ok(())
    }
}
