//! What came of pooled rows: copies of the buffers in which they lie, on the host.

use std::sync::Arc;

use super::driver::{Device, Pinned};
use super::memory::Buffer;
use crate::ops::outcomes::pooled;
use crate::ops::{OpsError, PoolOutcome, PooledRows};

/// The copies of each group, in memory that is kept from step to step.
#[derive(Debug, Default)]
pub(super) struct PooledResults {
    /// Labels that are wanted of each row of each group; `None`: the row itself.
    wanted: Vec<Vec<Option<u32>>>,
    copies: Vec<Copies>,
}

#[derive(Debug, Default)]
struct Copies {
    hidden: Option<HostRows>,
    logits: Option<HostRows>,
}

/// Rows of one buffer, on the host.
#[derive(Debug)]
struct HostRows {
    cols: usize,
    memory: Pinned,
}

impl PooledResults {
    /// A step begins in which these are pooled.
    pub(super) fn expect(&mut self, groups: &[PooledRows]) {
        self.wanted.clear();
        self.wanted.extend(groups.iter().map(|group| group.spans.iter().map(|span| span.labels).collect()));
    }

    /// Put copies of what is wanted of a group on the stream of steps.
    ///
    /// # Errors
    /// [`OpsError`] where there is no memory for them, or the device refuses.
    pub(super) fn fetch(
        &mut self,
        device: &Arc<Device>,
        group: usize,
        hidden: &Buffer,
        logits: &Buffer,
    ) -> Result<(), OpsError> {
        if self.copies.len() <= group {
            self.copies.resize_with(group + 1, Copies::default);
        }
        let (wanted, copies) = (&self.wanted[group], &mut self.copies[group]);
        if wanted.iter().any(Option::is_none) {
            copy(&mut copies.hidden, device, hidden, wanted.len())?;
        }
        if wanted.iter().any(Option::is_some) {
            copy(&mut copies.logits, device, logits, wanted.len())?;
        }
        Ok(())
    }

    /// What came of each row, once the device has been waited for.
    pub(super) fn outcomes(&mut self) -> Vec<PoolOutcome> {
        let wanted = std::mem::take(&mut self.wanted);
        let mut outcomes = Vec::new();
        for (copies, labels) in self.copies.iter().zip(wanted) {
            outcomes.extend(labels.into_iter().enumerate().map(|(row, labels)| copies.outcome(row, labels)));
        }
        outcomes
    }
}

impl Copies {
    fn outcome(&self, row: usize, labels: Option<u32>) -> PoolOutcome {
        let rows = if labels.is_some() { &self.logits } else { &self.hidden };
        let numbers = rows.as_ref().map_or_else(Vec::new, |rows| rows.row(row, labels));
        pooled(&numbers)
    }
}

impl HostRows {
    /// A row, or the first numbers of one.
    fn row(&self, row: usize, labels: Option<u32>) -> Vec<f32> {
        let bytes = &self.memory.bytes()[row * self.cols * size_of::<f32>()..];
        let words = bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word));
        words.take(labels.map_or(self.cols, |labels| labels as usize)).collect()
    }
}

fn copy(kept: &mut Option<HostRows>, device: &Arc<Device>, buffer: &Buffer, rows: usize) -> Result<(), OpsError> {
    let (cols, bytes) = (buffer.cols(), rows * buffer.cols() * size_of::<f32>());
    let enough = kept.take().filter(|copy| copy.cols == cols && copy.memory.bytes().len() >= bytes);
    let copy = match enough {
        Some(copy) => copy,
        None => HostRows { cols, memory: Pinned::new(device, bytes.next_power_of_two())? },
    };
    let copy = kept.insert(copy);
    buffer.values.send(0, &mut copy.memory, bytes, &device.compute)
}
