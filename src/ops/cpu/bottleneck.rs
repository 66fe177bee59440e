//! Bottlenecks: their matrices are multiplied as those of low-rank deltas are (`lowrank`), with a bias and a
//! non-linearity in between.
#![allow(unsafe_code)]

use super::CpuBackend;
use super::gemm::Outputs;
use super::memory::Buffer;
use super::rows;
use super::scratch::Scratch;
use crate::ops::{RowPlan, SiteTable, Wiring};

impl CpuBackend {
    /// See [`blend_rows`](crate::ops::Backend::blend_rows).
    pub(super) fn blend(&self, plan: &RowPlan, table: SiteTable<'_, Self>, [x, h, v]: [&mut Buffer; 3]) {
        let cols = x.cols;
        assert!(h.cols == cols && v.cols == cols, "x, h and v are as wide as each other");
        let [x, h, v] = [x, h, v].map(|buffer| Outputs::new(&mut buffer.data, cols, None));
        self.pool.run(plan.len() * cols * 4, plan.len(), |row| {
            let Some((entry, _)) = table.bottleneck(plan.slots[row]) else { return };
            // SAFETY: `run` calls with each row once, and the buffers are three.
            let [x, h, v] = unsafe { [x.columns(row, 0, cols), h.columns(row, 0, cols), v.columns(row, 0, cols)] };
            let Wiring { reads, stream, branch } = entry.wiring;
            for ((x, h), (v, bias)) in x.iter_mut().zip(h).zip(v.iter_mut().zip(&entry.up_bias)) {
                let (of_x, of_h) = (*x, *h);
                *v = reads.of(of_x, of_h);
                *x = stream.of(of_x, of_h);
                *h = branch.of(of_x, of_h) + bias;
            }
        });
    }

    /// See [`bottleneck`](crate::ops::Backend::bottleneck).
    pub(super) fn add_bottleneck(&self, plan: &RowPlan, table: SiteTable<'_, Self>, v: &Buffer, h: &mut Buffer) {
        assert!(plan.len() <= h.rows());
        let mut scratch = self.scratch();
        let Scratch { x: words, low_rank: scratch, .. } = &mut *scratch;
        if !scratch.collect(self, plan, table, |_| true) {
            return;
        }
        let v = self.prepare(words, v, plan.len());
        scratch.shrink(self, table, v);
        scratch.each_shrunk(table, |slot, values| {
            if let Some((entry, _)) = table.bottleneck(Some(slot)) {
                rows::bend(self.isa, entry.non_linearity, &entry.down_bias, values);
            }
        });
        scratch.round(self, table);
        scratch.expand(self, table, 1.0, Outputs::new(&mut h.data, h.cols, None));
    }

    /// See [`layer_norm_rows`](crate::ops::Backend::layer_norm_rows).
    pub(super) fn layer_norm(&self, plan: &RowPlan, table: SiteTable<'_, Self>, eps: f32, y: &mut Buffer) {
        self.for_rows(plan.len(), 2, y, |row, y| {
            if let [weight, bias] = table.vectors(plan.slots[row]) {
                rows::layer_norm(self.isa, &weight.values, &bias.values, eps, y);
            }
        });
    }
}
