//! The ops of attention, handed out to threads: rows rotate and are kept (`kv`), then attend to what is (`attention`).
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::attention::{self, Pass, attend};
use super::gemm::Outputs;
use super::kv::KvCache;
use super::memory::{Buffer, at_least};
use super::scratch::Scratch;
use super::{CpuBackend, Rope, rows};
use crate::ops::{AttentionSpec, StepPlan};

impl CpuBackend {
    /// See [`rope_and_cache`](crate::ops::Backend::rope_and_cache).
    pub(super) fn rotate_and_store(
        &self,
        plan: &StepPlan,
        spec: &AttentionSpec,
        rope: &Rope,
        layer: usize,
        qkv: &mut Buffer,
        kv: &mut KvCache,
    ) {
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
        let (first_k, first_v) = (spec.heads * dim, (spec.heads + spec.kv_heads) * dim);
        let cells = Outputs::new(&mut qkv.data, qkv.cols, None);
        let writer = kv.writer(layer);
        // A thread takes a KV head and its queries: places next to each other share words, heads share none.
        self.pool.run(plan.rows.len() * cells.stride() * 8, spec.kv_heads, |kv_head| {
            for (row, place) in plan.kv_slots.iter().enumerate() {
                let at = plan.rope_row(row) * rope.half;
                let (cos, sin) = (&rope.cos[at..][..rope.half], &rope.sin[at..][..rope.half]);
                // SAFETY: `run` calls with each KV head once; its queries, its key and its value are other columns of
                // the row than any other head's, and `Outputs` asserts that they lie within it.
                unsafe {
                    let heads = |column: usize, count: usize| cells.columns(row, column, count * dim);
                    rows::rotate_heads(self.isa, heads(kv_head * group * dim, group), dim, cos, sin);
                    let k = heads(first_k + kv_head * dim, 1);
                    rows::rotate_heads(self.isa, k, dim, cos, sin);
                    writer.store(*place as usize, kv_head, k, heads(first_v + kv_head * dim, 1));
                }
            }
        });
    }

    /// See [`attention`](crate::ops::Backend::attention).
    pub(super) fn attend_rows(
        &self,
        plan: &StepPlan,
        spec: &AttentionSpec,
        layer: usize,
        qkv: &Buffer,
        kv: &KvCache,
        y: &mut Buffer,
    ) {
        let mut scratch = self.scratch();
        let Scratch { items, attention: lines, .. } = &mut *scratch;
        attention::items(plan, spec, self.pool.threads(), items);
        let lines_each = attention::workspace_lines(spec.head_dim);
        let lines = at_least(lines, self.pool.threads() * lines_each);
        let seen: usize = plan.positions.iter().map(|position| *position as usize + 1).sum();
        let y = Outputs::new(&mut y.data, y.cols, None);
        let (layout, words) = (kv.layout(), kv.layer(layer));
        let pass = Pass { plan, spec: *spec, layout, kv: words, qkv: &qkv.data, stride: qkv.cols, y };
        let next = AtomicUsize::new(0);
        self.pool.for_blocks(2 * seen * spec.heads * spec.head_dim, lines, lines_each, |_, lines| {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                // SAFETY: each item is taken once. `assert_consistent` made sequences hold other rows each; items of one
                // hold other rows or heads.
                unsafe {
                    attend(self.isa, &pass, item, lines);
                }
            }
        });
    }
}
