//! The bytes of a step on their way to the device.

use super::abi::{Address, AttentionItem, Group, Plain, PoolSpan, RowSet, StepHead};
use super::sizes::{ROWS_OF_GROUP, ROWS_OF_ITEM};
use crate::ops::{PooledSpan, RowPlan, StepPlan};

/// Offsets of the fields of a struct that are addresses.
macro_rules! addresses_of {
    ($what:ty: $($field:ident),*) => {
        [$(std::mem::offset_of!($what, $field)),*]
    };
}
pub(super) use addresses_of;

/// Bytes on their way to the device. Addresses in it count from its beginning until it is known where it will lie.
#[derive(Debug, Default)]
pub(super) struct Image {
    bytes: Vec<u8>,
    /// Where addresses are.
    addresses: Vec<usize>,
}

impl Image {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.addresses.clear();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
    }

    /// Room for a struct that is known later.
    pub(super) fn reserve<T: Plain>(&mut self) -> usize {
        self.align();
        let at = self.bytes.len();
        self.bytes.resize(at + size_of::<T>(), 0);
        at
    }

    /// Fill such room. `addresses` are the offsets of the addresses in it.
    pub(super) fn set<T: Plain>(&mut self, at: usize, value: &T, addresses: &[usize]) {
        self.bytes[at..at + size_of::<T>()].copy_from_slice(value.bytes());
        self.addresses.extend(addresses.iter().map(|offset| at + offset));
    }

    /// Where a list lies.
    pub(super) fn list<T: Plain>(&mut self, items: impl IntoIterator<Item = T>) -> Address<T> {
        self.align();
        let at = self.bytes.len();
        items.into_iter().for_each(|item| self.bytes.extend(item.bytes()));
        Address::new(at as u64)
    }

    /// Fill in a row set; the number of its groups.
    pub(super) fn row_set(&mut self, at: usize, rows: &RowPlan, sources: Option<&[u32]>) -> usize {
        let slots = self.list(rows.slots.iter().map(|slot| slot.map_or(-1, |slot| slot.0 as i32)));
        let sources = match sources {
            Some(sources) => self.list(sources.iter().copied()),
            None => self.list(0..rows.len() as u32),
        };
        let order = self.list(rows.order.iter().copied());
        let mut groups = 0;
        let cut = rows.segments.iter().flat_map(|segment| {
            segment.range.clone().step_by(ROWS_OF_GROUP).map(|first| {
                let len = ROWS_OF_GROUP.min(segment.range.end - first);
                Group { first: first as u32, len: len as u32, slot: segment.slot.0, pad: 0 }
            })
        });
        let group = self.list(cut.inspect(|_| groups += 1));
        let set = RowSet { count: rows.len() as u32, groups, slots, sources, order, group };
        self.set(at, &set, &addresses_of!(RowSet: slots, sources, order, group));
        groups as usize
    }

    /// Where a list of spans lies.
    pub(super) fn spans(&mut self, spans: &[PooledSpan]) -> Address<PoolSpan> {
        let sums: Vec<_> =
            spans.iter().map(|span| span.onto.as_ref().map(|onto| self.list(onto.iter().copied()))).collect();
        let entry = |(span, onto): (&PooledSpan, &Option<Address<f32>>)| PoolSpan {
            first: span.rows.start,
            rows: span.rows.len() as u32,
            onto: onto.unwrap_or(Address::NULL),
        };
        let list = self.list(spans.iter().zip(&sums).map(entry));
        let onto = |index: usize| list.add(index).get() as usize + std::mem::offset_of!(PoolSpan, onto);
        self.addresses.extend(sums.iter().enumerate().filter(|(_, onto)| onto.is_some()).map(|(index, _)| onto(index)));
        list
    }

    /// Fill in the head; the number of walks over KV.
    pub(super) fn step_head(&mut self, at: usize, plan: &StepPlan) -> usize {
        let rows = plan.ids.len();
        let ids = self.list(plan.ids.iter().map(|id| id.map_or(-1, |id| id as i32)));
        let positions = self.list(plan.positions.iter().copied());
        let rope_rows = self.list((0..rows).map(|row| plan.rope_row(row) as u32));
        let kv_places = self.list(plan.kv_slots.iter().copied());
        let blocks = self.list(plan.sequences.iter().flat_map(|sequence| sequence.blocks.iter().copied()));
        let mut first_block = 0;
        let mut items = 0;
        let walks = plan.sequences.iter().flat_map(|sequence| {
            let blocks = first_block;
            first_block += sequence.blocks.len() as u32;
            let (rows, start) = (sequence.rows.clone(), sequence.start);
            rows.clone().step_by(ROWS_OF_ITEM).map(move |row| {
                let position = start + (row - rows.start) as u32;
                AttentionItem { row: row as u32, rows: ROWS_OF_ITEM.min(rows.end - row) as u32, position, blocks }
            })
        });
        let item = self.list(walks.inspect(|_| items += 1));
        let rows = rows as u32;
        let head = StepHead { rows, items, ids, positions, rope_rows, kv_places, blocks, item };
        let addresses = addresses_of!(StepHead: ids, positions, rope_rows, kv_places, blocks, item);
        self.set(at, &head, &addresses);
        items as usize
    }

    /// Make addresses count from `base`.
    pub(super) fn relocate(&mut self, base: u64) {
        for at in &self.addresses {
            let Some((address, _)) = self.bytes[*at..].split_first_chunk_mut::<8>() else { continue };
            *address = (u64::from_le_bytes(*address) + base).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::AdapterSlot;

    fn number(image: &Image, at: usize) -> u64 {
        u64::from_le_bytes(*image.bytes[at..].first_chunk().unwrap())
    }

    #[test]
    fn segments_are_cut_into_groups_and_addresses_move_with_the_image() {
        let mut slots = vec![Some(AdapterSlot(3)); 130];
        slots[7] = None;
        let plan = RowPlan::new(slots);
        let mut image = Image::default();
        image.reserve::<StepHead>();
        let at = image.reserve::<RowSet>();
        assert_eq!(image.row_set(at, &plan, None), 3);
        assert_eq!(&image.bytes[at..at + 8], [129 + 1, 0, 0, 0, 3, 0, 0, 0]);
        let group = number(&image, at + 32) as usize;
        let of = |index: usize| image.bytes[group + index * 16..][..12].to_vec();
        assert_eq!(of(2), [128, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
        image.relocate(1 << 32);
        assert_eq!(number(&image, at + 32), (1 << 32) + group as u64);
    }
}
