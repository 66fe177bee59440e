//! What one thread does at a time.

use std::ops::Range;

use crate::ops::{AttentionSpec, SequencePlan, StepPlan};

/// Most queries of an item.
pub(super) const MAX_QUERIES: usize = 96;
/// Most query heads of one item.
const MAX_HEADS: usize = 16;
/// Fewest queries of an item of a prompt: what fills the tiles of any instruction set.
const MIN_QUERIES: usize = 12;

/// Some rows of a sequence against one KV head, for some of its query heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ops::cpu) struct Item {
    pub(super) sequence: usize,
    pub(super) rows: Range<usize>,
    pub(super) heads: Range<usize>,
}

impl Item {
    /// Queries of the item, row-major (row, head).
    pub(super) fn queries(&self) -> usize {
        self.rows.len() * self.heads.len()
    }
}

/// Cut a step into items, enough for all threads where there are that many queries.
pub(in crate::ops::cpu) fn items(plan: &StepPlan, spec: &AttentionSpec, threads: usize, items: &mut Vec<Item>) {
    items.clear();
    let group = spec.heads / spec.kv_heads;
    let groups = plan.sequences.len() * spec.kv_heads;
    let splits = threads.div_ceil(groups.max(1)).clamp(1, group);
    let heads_each = group.div_ceil(splits).min(MAX_HEADS);
    let enough = (plan.rows.len() * spec.heads).div_ceil(threads * 8).clamp(MIN_QUERIES, MAX_QUERIES);
    let rows_each = (enough / heads_each).max(1);
    for (sequence, held) in plan.sequences.iter().enumerate() {
        for first in held.rows.clone().step_by(rows_each) {
            let rows = first..(first + rows_each).min(held.rows.end);
            for kv_head in 0..spec.kv_heads {
                for head in (0..group).step_by(heads_each) {
                    let heads = kv_head * group + head..kv_head * group + (head + heads_each).min(group);
                    items.push(Item { sequence, rows: rows.clone(), heads });
                }
            }
        }
    }
    // The last rows of a prompt see the most: begin with them, so that no thread is left with one at the end.
    items.reverse();
}

/// Check once what the kernels rely on: rows in order, none twice, all within the plan.
pub(in crate::ops::cpu) fn assert_consistent(plan: &StepPlan) {
    let rows = plan.rows.len();
    assert!(plan.ids.len() == rows && plan.positions.len() == rows && plan.kv_slots.len() == rows);
    let mut end = 0;
    for SequencePlan { rows: held, .. } in &plan.sequences {
        assert!(held.start >= end && held.end >= held.start && held.end <= rows, "sequences overlap");
        end = held.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RowPlan;

    #[test]
    fn items_cover_every_row_and_head_once() {
        for (heads, kv_heads, threads) in [(7, 1, 2), (8, 8, 2), (14, 2, 8), (71, 1, 1), (40, 1, 3)] {
            let spec = AttentionSpec { heads, kv_heads, head_dim: 4, scale: 1.0, softcap: None, window: None };
            let sequence = |rows: Range<usize>| SequencePlan { rows, start: 0, blocks: vec![0].into() };
            let plan = StepPlan {
                rows: RowPlan::new(vec![None; 50]),
                sequences: vec![sequence(0..1), sequence(1..49), sequence(49..50)],
                ..StepPlan::default()
            };
            let mut list = Vec::new();
            items(&plan, &spec, threads, &mut list);
            let mut seen = vec![0; 50 * heads];
            for item in &list {
                assert!(item.rows.len() * item.heads.len() <= MAX_QUERIES);
                let group = heads / kv_heads;
                assert_eq!(item.heads.start / group, (item.heads.end - 1) / group);
                item.rows.clone().for_each(|row| item.heads.clone().for_each(|head| seen[row * heads + head] += 1));
            }
            assert!(seen.iter().all(|times| *times == 1));
        }
    }
}
