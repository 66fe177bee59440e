//! Low-rank pairs: each row has an adapter of its own, and each site other matrices, more of them together than a cache keeps.

use half::bf16;
use polydelta::ops::cuda::CudaBackend;
use polydelta::ops::{
    Backend, DeltaMemory, HostMatrix, LowRankPair, OpsError, Rows, SiteId, SiteSet, SiteTable, SlotDelta, SlotEntries,
};
use polydelta::types::AdapterSlot;
use serde_json::{Value, json};

use super::Site;
use crate::support::Failure;
use crate::support::large::{slots, step};
use crate::support::numbers::weights;

/// One shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LowRank {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
    pub(crate) sites: usize,
}

impl LowRank {
    /// Bytes of matrices in a second, and what share that is of what copies move.
    pub(super) fn measure(&self, site: Site<'_>) -> Result<Value, Failure> {
        let backend = site.backend;
        let table = self.table(backend)?;
        let numbers: Vec<f32> = weights(9, self.rows * self.inputs, 1.0).into_iter().map(bf16::to_f32).collect();
        let mut x = backend.input_buffer(self.rows, self.inputs)?;
        let values = backend.buffer_of(self.inputs, &numbers)?;
        let mut y = backend.buffer(self.rows, self.outputs)?;
        let held = SiteSet::new((0..self.sites).map(|site| SiteId(site as u32)));
        let input = step(&slots(self.rows, self.rows), 1, 0, 16);
        let seconds = site.seconds(&input, &held, |step| {
            // The rounded form of x is made once, as a norm makes it.
            backend.scale_input(step, Rows::All, SiteTable { table: &table, site: SiteId(0) }, &values, &mut x);
            for site in 0..self.sites {
                let deltas = SiteTable { table: &table, site: SiteId(site as u32) };
                backend.low_rank(step, Rows::All, deltas, &x, &mut y);
            }
        })?;
        let bytes = 2 * self.sites * self.rows * self.rank * (self.inputs + self.outputs);
        let rate = bytes as f64 / seconds;
        Ok(json!({
            "op": "low_rank", "rows": self.rows, "inputs": self.inputs, "outputs": self.outputs, "rank": self.rank,
            "seconds": seconds / self.sites as f64, "bytes_per_second": rate, "of_copies": rate / site.copies,
        }))
    }

    /// A slot for every row, with a pair at every site. The numbers of a site are those of any other, its memory is its own.
    fn table(&self, backend: &CudaBackend) -> Result<<CudaBackend as DeltaMemory>::DeltaTable, Failure> {
        let (a, b) = (weights(1, self.rank * self.inputs, 0.035), weights(2, self.outputs * self.rank, 0.035));
        let mut table = backend.delta_table(self.rows)?;
        for slot in 0..self.rows {
            let pair = |site: usize| {
                let pair = LowRankPair {
                    a: backend.weight(&[HostMatrix::bf16(self.rank, self.inputs, &a)])?,
                    b: backend.weight(&[HostMatrix::bf16(self.outputs, self.rank, &b)])?,
                    rank: self.rank,
                    scaling: 1.0,
                    columns: 0..self.outputs,
                };
                Ok((SiteId(site as u32), pair))
            };
            let low_rank = (0..self.sites).map(pair).collect::<Result<Vec<_>, OpsError>>()?;
            let entries = SlotEntries { low_rank, ..SlotEntries::default() };
            backend.set_slot(&mut table, AdapterSlot(slot as u32), SlotDelta::new(backend, entries)?);
        }
        Ok(table)
    }
}
