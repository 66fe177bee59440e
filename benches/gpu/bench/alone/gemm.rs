//! Products with weights of the base, one weight after the other, more of them together than a cache keeps.

use half::bf16;
use polydelta::ops::{Backend, HostMatrix, OpsError, Rows, SiteId, SiteSet, SiteTable};
use serde_json::{Value, json};

use super::Site;
use crate::support::Failure;
use crate::support::large::{slots, step};
use crate::support::numbers::weights;

/// One shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gemm {
    pub(crate) sequences: usize,
    /// Rows of each.
    pub(crate) tokens: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weights: usize,
}

impl Gemm {
    /// Bytes of weights and operations in a second; what share the former is of what copies move.
    pub(super) fn measure(&self, site: Site<'_>) -> Result<Value, Failure> {
        let backend = site.backend;
        let rows = self.sequences * self.tokens;
        let numbers: Vec<f32> = weights(9, rows * self.inputs, 1.0).into_iter().map(bf16::to_f32).collect();
        let weight = weights(1, self.outputs * self.inputs, 0.035);
        let matrix = [HostMatrix::bf16(self.outputs, self.inputs, &weight)];
        let all = (0..self.weights).map(|_| backend.weight(&matrix)).collect::<Result<Vec<_>, OpsError>>()?;
        let nothing = backend.delta_table(1)?;
        let values = backend.buffer_of(self.inputs, &numbers)?;
        let mut x = backend.input_buffer(rows, self.inputs)?;
        let mut y = backend.buffer(rows, self.outputs)?;
        let input = step(&slots(self.sequences, 0), self.tokens, 0, self.tokens.next_multiple_of(16));
        let seconds = site.seconds(&input, &SiteSet::default(), |step| {
            // The rounded form of x is made once, as a norm makes it.
            backend.scale_input(step, Rows::All, SiteTable { table: &nothing, site: SiteId(0) }, &values, &mut x);
            for weight in &all {
                backend.gemm(step, Rows::All, &x, weight, &mut y);
            }
        })?;
        let numbers = (self.weights * self.inputs * self.outputs) as f64;
        let rate = 2.0 * numbers / seconds;
        Ok(json!({
            "op": "gemm", "rows": rows, "inputs": self.inputs, "outputs": self.outputs, "seconds": seconds / self.weights as f64,
            "bytes_per_second": rate, "of_copies": rate / site.copies, "operations_per_second": rate * rows as f64,
        }))
    }
}
