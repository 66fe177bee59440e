//! Where the reference backend keeps numbers.

use crate::ops::{KvDtype, KvShape, StepOutcomes, StepPlan};

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

impl StackedMatrix {
    pub(super) fn rows(&self) -> usize {
        self.bounds.last().copied().unwrap_or(0)
    }
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
    /// `[blocks * block_size, kept]`.
    pub(super) kept: Matrix,
}

impl PagedKv {
    pub(super) fn keep(&mut self, places: &[u32], x: &Matrix) {
        for (row, place) in places.iter().enumerate() {
            self.kept.row_mut(*place as usize).copy_from_slice(x.row(row));
        }
    }

    pub(super) fn recall(&self, places: &[u32], y: &mut Matrix) {
        for (row, place) in places.iter().enumerate() {
            y.row_mut(row).copy_from_slice(self.kept.row(*place as usize));
        }
    }

    pub(super) fn copy_block(&mut self, source: usize, target: usize) {
        let copy = |numbers: &mut [f32], width: usize| {
            let len = self.shape.block_size * width;
            numbers.copy_within(source * len..(source + 1) * len, target * len);
        };
        self.k.iter_mut().chain(&mut self.v).for_each(|plane| copy(plane, self.shape.kv_dim()));
        copy(&mut self.kept.data, self.shape.kept);
    }

    pub(super) fn write_pages(&mut self, dtype: KvDtype, blocks: &[u32], count: usize, layers: &[(Matrix, Matrix)]) {
        let (size, dim) = (self.shape.block_size, self.shape.kv_dim());
        for (layer, (k, v)) in layers.iter().enumerate() {
            for index in 0..count {
                let at = (blocks[index / size] as usize * size + index % size) * dim;
                for column in 0..dim {
                    self.k[layer][at + column] = dtype.round(k.row(index)[column]);
                    self.v[layer][at + column] = dtype.round(v.row(index)[column]);
                }
            }
        }
    }
}
