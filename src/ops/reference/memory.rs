//! Where the reference backend keeps numbers.

use crate::ops::{KvShape, StepOutcomes, StepPlan};

/// Row-major f32 `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub(crate) cols: usize,
    pub(crate) data: Vec<f32>,
}

impl Matrix {
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }
}

/// Segments `[out_i, in]` stacked along `out`, already rounded to the backend's format.
#[derive(Clone, Debug)]
pub struct StackedMatrix {
    pub(super) matrix: Matrix,
    /// First row of each segment, and the total at the end.
    pub(super) bounds: Vec<usize>,
}

/// A plan, and what has been chosen and collected so far.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub(crate) plan: StepPlan,
    pub(super) outcomes: StepOutcomes,
}

/// K and V of all layers, `[layers][blocks * block_size][kv_dim]` each.
#[derive(Clone, Debug)]
pub struct PagedKv {
    pub(super) shape: KvShape,
    pub(super) k: Vec<Vec<f32>>,
    pub(super) v: Vec<Vec<f32>>,
}
