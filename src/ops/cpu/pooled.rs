//! Rows that become one, and the heads of adapters on them.

use super::memory::Buffer;
use super::{CpuBackend, rows};
use crate::ops::{PooledSpan, RowPlan, SiteTable};

/// Work of a number of a sum, in multiply-adds: about as many rows as a span may have in a step.
const COST: usize = 64;

impl CpuBackend {
    /// See [`crate::ops::Backend::pool_rows`].
    pub(super) fn pool_spans(&self, spans: &[PooledSpan], x: &Buffer, y: &mut Buffer) {
        self.for_rows(spans.len(), COST, y, |index, y| {
            let span = &spans[index];
            let mut rows = span.rows.clone().map(|row| x.row(row as usize));
            y.copy_from_slice(span.onto.as_deref().or_else(|| rows.next()).unwrap_or_default());
            for row in rows {
                y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
            }
        });
    }

    /// See [`crate::ops::Backend::head_rows`].
    pub(super) fn multiply_heads(&self, plan: &RowPlan, deltas: SiteTable<'_, Self>, x: &Buffer, y: &mut Buffer) {
        self.for_rows(plan.len(), x.cols, y, |row, y| {
            if let Some(head) = deltas.vectors(plan.slots[row]).first() {
                rows::head(self.isa, &head.values, x.row(row), &mut y[head.columns.clone()]);
            }
        });
    }
}
