//! A step on the device: everything its kernels read besides weights and activations, packed into one block of memory that
//! goes there in one copy; and what came of its sampled rows on the way back.

use std::sync::Arc;

use super::abi::{Address, PoolSpan, RowSet, SampleLists, StepHead};
use super::driver::{Device, Mirror};
use super::graphs::Key;
use super::image::Image;
use super::outputs::{Outputs, Results};
use super::pooled::PooledResults;
use super::sizes::{ROWS_OF_ITEM, SPLIT_PLACES};
use crate::ops::{OpsError, Rows, SiteSet, StepOutcomes, StepPlan};

/// Numbers of rows that recorded steps are made for.
const DECODE_ROWS: [usize; 9] = [1, 2, 4, 8, 16, 24, 32, 48, 64];

/// Bytes set aside for a step at least: as long as steps fit them, their address stays.
const LEAST_IMAGE: usize = 1 << 16;

/// An uploaded step.
#[derive(Debug)]
pub struct Step {
    device: Arc<Device>,
    image: Image,
    memory: Option<Mirror>,
    /// Of all rows, then of each group of sampled ones, then of each group of pooled ones.
    sets: Vec<Set>,
    /// Of each group of pooled rows.
    spans: Vec<Address<PoolSpan>>,
    head: Address<StepHead>,
    lists: Address<SampleLists>,
    items: usize,
    rows_of_item: usize,
    last_position: usize,
    pub(super) outputs: Outputs,
    pub(super) results: Results,
    pub(super) pooled: PooledResults,
}

/// A row set on the device, and its sizes on the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) address: Address<RowSet>,
    pub(super) count: usize,
    pub(super) groups: usize,
}

impl Step {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self {
            device: Arc::clone(device),
            image: Image::default(),
            memory: None,
            sets: Vec::new(),
            spans: Vec::new(),
            head: Address::NULL,
            lists: Address::NULL,
            items: 0,
            rows_of_item: 0,
            last_position: 0,
            outputs: Outputs::default(),
            results: Results::default(),
            pooled: PooledResults::default(),
        }
    }

    /// Copy a plan to the device. What launches refer to lies at the beginning, at offsets that only the number of groups of
    /// sampled rows decides; what varies lies behind.
    ///
    /// # Errors
    /// [`OpsError`] where there is no memory for it.
    pub(super) fn upload(&mut self, plan: &StepPlan) -> Result<(), OpsError> {
        let Self { image, sets, .. } = self;
        image.clear();
        sets.clear();
        let head = image.reserve::<StepHead>();
        let lists = image.reserve::<SampleLists>();
        let sampled = plan.sampled.iter().map(|group| (&group.rows, Some(&group.sources[..])));
        let pooled = plan.pooled.iter().map(|group| (&group.rows, None));
        let all = std::iter::once((&plan.rows, None)).chain(sampled).chain(pooled);
        sets.extend(all.clone().map(|(rows, _)| Set {
            address: Address::new(image.reserve::<RowSet>() as u64),
            count: rows.len(),
            groups: 0,
        }));
        for (set, (rows, sources)) in sets.iter_mut().zip(all) {
            set.groups = image.row_set(set.address.get() as usize, rows, sources);
        }
        self.items = image.step_head(head, plan);
        self.outputs.pack(&plan.outputs, lists, image);
        self.spans.clear();
        self.spans.extend(plan.pooled.iter().map(|group| image.spans(&group.spans)));
        self.pooled.expect(&plan.pooled);
        let rows = plan.sequences.iter().map(|sequence| sequence.rows.len());
        self.rows_of_item = rows.max().unwrap_or(0).min(ROWS_OF_ITEM);
        self.last_position = plan.positions.iter().copied().max().unwrap_or(0) as usize;
        let base = self.send()?;
        self.sets.iter_mut().for_each(|set| set.address = Address::new(set.address.get() + base));
        self.spans.iter_mut().for_each(|spans| *spans = Address::new(spans.get() + base));
        (self.head, self.lists) = (Address::new(head as u64 + base), Address::new(lists as u64 + base));
        Ok(())
    }

    /// Where every sequence decodes one token: make the sizes that grids are made for those of many such steps, and say
    /// which. What lies on the device says how many rows there are.
    pub(super) fn round_up(&mut self, held: &SiteSet) -> Option<Key> {
        let Self { sets, outputs, .. } = self;
        if !self.spans.is_empty() {
            return None;
        }
        let [all, sampled] = &mut sets[..] else { return None };
        if self.rows_of_item != 1 || all.count != self.items || sampled.count != all.count || outputs.rows != all.count
        {
            return None;
        }
        let rows = *DECODE_ROWS.iter().find(|rows| all.count <= **rows)?;
        for set in [all, sampled] {
            (set.count, set.groups) = (rows, rows);
        }
        let splits = (self.last_position / SPLIT_PLACES + 1).next_power_of_two();
        let most = if outputs.most == 0 { 0 } else { outputs.most.next_power_of_two() };
        (self.items, self.last_position) = (rows, splits * SPLIT_PLACES - 1);
        (outputs.rows, outputs.most) = (rows, most);
        Some(Key { rows, splits, most, held: held.clone() })
    }

    /// Send the image; where it lies on the device.
    fn send(&mut self) -> Result<u64, OpsError> {
        let Self { device, image, memory, .. } = self;
        let bytes = image.bytes().len();
        let Mirror { device: target, host } = Mirror::at_least(memory, device, "a step", bytes.max(LEAST_IMAGE))?;
        image.relocate(target.address());
        host.bytes_mut()[..bytes].copy_from_slice(image.bytes());
        target.receive(0, host, bytes, &device.compute)?;
        Ok(target.address())
    }

    /// Rows that an op works on.
    pub(super) fn set(&self, rows: Rows) -> Set {
        match rows {
            Rows::All => self.sets[0],
            Rows::Sampled(group) => self.sets[group + 1],
            Rows::Pooled(group) => self.sets[self.sets.len() - self.spans.len() + group],
        }
    }

    pub(super) fn head(&self) -> Address<StepHead> {
        self.head
    }

    /// What becomes of a group of pooled rows.
    pub(super) fn spans(&self, group: usize) -> Address<PoolSpan> {
        self.spans[group]
    }

    pub(super) fn lists(&self) -> Address<SampleLists> {
        self.lists
    }

    /// Walks over KV.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// Rows of the longest of them.
    pub(super) fn rows_of_item(&self) -> usize {
        self.rows_of_item
    }

    /// Largest KV index of a row.
    pub(super) fn last_position(&self) -> usize {
        self.last_position
    }

    /// Wait for the step, and take what came of its sampled and pooled rows.
    ///
    /// # Errors
    /// Whatever went wrong on the device.
    pub(super) fn finish(&mut self) -> Result<StepOutcomes, OpsError> {
        let Self { device, outputs, results, pooled, .. } = self;
        results.fetch(device, outputs)?;
        let waited = device.wait(&device.compute);
        device.take_fault()?;
        waited?;
        Ok(StepOutcomes { sampled: results.outcomes(outputs), pooled: pooled.outcomes() })
    }
}
