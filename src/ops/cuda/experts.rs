//! The experts of a sparse layer: where kernels find their weights, what is kept between the kernels, and their launches.
//!
//! Which rows chose which experts is known on the device alone: grids are for as many groups as there may be. What adapters add
//! to products of experts takes three launches more, however many adapters there are (`expert_deltas`).

use super::abi::{Address, ExpertWeights, ExpertsArgs, Group, Plain, RowsView};
use super::activations::number_of;
use super::backend::CudaBackend;
use super::driver::{ALIGNMENT, DeviceMemory, Grid};
use super::expert_deltas::DeltasWork;
use super::memory::{Buffer, stride};
use super::step::Set;
use crate::ops::{ComputeDtype, Expert, ExpertDeltas, ExpertsSpec, OpsError};

/// Least and most threads of the block that groups the pairs of an expert.
const GROUPING_THREADS: [usize; 2] = [128, 1024];

/// All experts of one layer.
pub struct Experts {
    /// What the table points to.
    _weights: Vec<Expert<CudaBackend>>,
    table: DeviceMemory,
    gate_up_stride: u32,
    down_stride: u32,
}

/// What is kept between the kernels, for the most rows of a step: the layers of a model take turns.
#[derive(Debug)]
pub struct ExpertsWork {
    chosen: DeviceMemory,
    weights: DeviceMemory,
    pairs: DeviceMemory,
    order: DeviceMemory,
    groups: DeviceMemory,
    group: DeviceMemory,
    activated: DeviceMemory,
    outputs: DeviceMemory,
    pub(super) deltas: DeltasWork,
}

/// Bytes of its parts.
struct Room {
    pairs: usize,
    /// One number of each pair.
    list: usize,
    group: usize,
    activated: usize,
    outputs: usize,
}

impl Room {
    fn of(rows: usize, hidden: usize, spec: &ExpertsSpec, compute: ComputeDtype, rows_of_group: usize) -> Option<Self> {
        let pairs = rows.checked_mul(spec.experts_per_token)?;
        let inner = match compute {
            ComputeDtype::F32 => spec.intermediate_size,
            _ => stride(spec.intermediate_size),
        };
        Some(Self {
            pairs,
            list: pairs.checked_mul(size_of::<u32>())?,
            group: most_groups(pairs, spec.experts, rows_of_group).checked_mul(size_of::<Group>())?,
            activated: pairs.checked_mul(inner)?.checked_mul(compute.size())?,
            outputs: pairs.checked_mul(hidden)?.checked_mul(size_of::<f32>())?,
        })
    }

    /// Of all parts together, as they are allocated.
    fn bytes(&self) -> u64 {
        let Self { pairs, list, group, activated, outputs } = *self;
        let parts = [list, list, list, list, size_of::<u32>(), group, activated, outputs];
        let parts = parts.into_iter().chain(DeltasWork::parts(pairs));
        parts.map(|part| part.max(1).next_multiple_of(ALIGNMENT) as u64).sum()
    }
}

/// Groups of up to `rows_of_group` pairs of one expert, at the most: each expert that is chosen may leave one that is not
/// full.
fn most_groups(pairs: usize, experts: usize, rows_of_group: usize) -> usize {
    let chosen = pairs.min(experts);
    chosen + (pairs - chosen) / rows_of_group
}

impl CudaBackend {
    /// Bytes of what [`Backend::experts_work`](crate::ops::Backend::experts_work) keeps for steps of so many rows.
    #[must_use]
    pub fn experts_bytes(&self, rows: usize, hidden: usize, spec: &ExpertsSpec) -> u64 {
        self.room_of_experts(rows, hidden, spec).map_or(u64::MAX, |room| room.bytes())
    }

    fn room_of_experts(&self, rows: usize, hidden: usize, spec: &ExpertsSpec) -> Option<Room> {
        Room::of(rows, hidden, spec, self.numerics.compute, self.kernels.expert_gemms.least_group())
    }

    /// Memory for at most `rows` rows; for a model without experts next to nothing.
    pub(super) fn work_of_experts(
        &self,
        rows: usize,
        hidden: usize,
        spec: Option<&ExpertsSpec>,
    ) -> Result<ExpertsWork, OpsError> {
        const WHAT: &str = "room for experts";
        let none = Some(Room { pairs: 0, list: 0, group: 0, activated: 0, outputs: 0 });
        let room = spec.map_or(none, |spec| self.room_of_experts(rows, hidden, spec));
        let room = room.ok_or(OpsError::OutOfMemory { what: WHAT, bytes: u64::MAX })?;
        let allocate = |bytes| DeviceMemory::new(&self.device, &self.device.compute, WHAT, bytes);
        let activated = allocate(room.activated)?;
        // Nobody writes what lies behind the last column of a row.
        activated.clear(&self.device.compute)?;
        Ok(ExpertsWork {
            chosen: allocate(room.list)?,
            weights: allocate(room.list)?,
            pairs: allocate(room.list)?,
            order: allocate(room.list)?,
            groups: allocate(size_of::<u32>())?,
            group: allocate(room.group)?,
            activated,
            outputs: allocate(room.outputs)?,
            deltas: DeltasWork::new(room.pairs, allocate)?,
        })
    }

    /// Say where the weights of a layer's experts lie, which have the same shapes.
    pub(super) fn table_of_experts(&self, experts: Vec<Expert<Self>>) -> Result<Experts, OpsError> {
        let first = experts.first().ok_or(OpsError::Shape { rows: 0, cols: 0, expected: 0 })?;
        let (gate_up_stride, down_stride) = (first.gate_up.stride() as u32, first.down.stride() as u32);
        let entry =
            |expert: &Expert<Self>| ExpertWeights { gate_up: expert.gate_up.address(), down: expert.down.address() };
        let image: Vec<u8> = experts.iter().flat_map(|expert| entry(expert).bytes().to_vec()).collect();
        let table = self.uploader.allocate("a table of experts", image.len())?;
        self.uploader.send(&table, 0, 1, image.len(), |_, bytes| bytes.copy_from_slice(&image))?;
        Ok(Experts { _weights: experts, table, gate_up_stride, down_stride })
    }

    /// Five launches, however many experts are chosen, and three more where adapters have deltas of them.
    #[allow(clippy::too_many_arguments)] // As the op's own.
    pub(super) fn launch_experts(
        &self,
        set: Set,
        spec: &ExpertsSpec,
        logits: &Buffer,
        experts: &Experts,
        deltas: ExpertDeltas<'_, Self>,
        x: &Buffer,
        work: &ExpertsWork,
        y: &Buffer,
    ) {
        if set.count == 0 {
            return;
        }
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let pairs = set.count * spec.experts_per_token;
        let form = self.kernels.expert_gemms.form(pairs, spec.experts);
        let inner = spec.intermediate_size;
        let arguments = ExpertsArgs {
            rows: set.address,
            logits: logits.view(),
            x,
            y: y.view(),
            experts: Address::new(experts.table.address()),
            chosen: Address::new(work.chosen.address()),
            weights: Address::new(work.weights.address()),
            pairs: Address::new(work.pairs.address()),
            order: Address::new(work.order.address()),
            groups: Address::new(work.groups.address()),
            group: Address::new(work.group.address()),
            activated: self.activated(work, inner),
            outputs: rows_at(&work.outputs, y.cols()),
            each: spec.experts_per_token as u32,
            rows_of_group: form.rows as u32,
            gate_up_stride: experts.gate_up_stride,
            down_stride: experts.down_stride,
            activation: number_of(spec.activation),
            renormalise: u32::from(spec.renormalise),
        };
        self.launch(&self.kernels.route_experts, self.spread(set.count * 32), &arguments);
        let [least, most] = GROUPING_THREADS;
        let grouping = Grid::of(spec.experts).threads(pairs.next_multiple_of(32).clamp(least, most));
        self.launch(&self.kernels.group_experts, grouping.shared(4 * spec.experts + 136), &arguments);
        let Some(deltas) = self.expert_deltas(set, deltas, arguments, &work.deltas, &mut scratch) else { return };
        let groups = most_groups(pairs, spec.experts, form.rows);
        let grid = |outputs: usize, each: usize| Grid::plane(groups, outputs.div_ceil(each)).shared(form.shared_bytes);
        match deltas.of_gate_up() {
            Some(deltas) => self.launch_with_deltas(&deltas, &form.gate_up_deltas, grid(inner, form.inner)),
            None => self.launch(&form.gate_up, grid(inner, form.inner), &arguments),
        }
        match deltas.of_down() {
            Some(deltas) => self.launch_with_deltas(&deltas, &form.down_deltas, grid(y.cols(), form.outputs)),
            None => self.launch(&form.down, grid(y.cols(), form.outputs), &arguments),
        }
        self.launch(&self.kernels.combine_experts, self.spread(set.count * y.cols()), &arguments);
    }

    /// Inputs of down, in the form that GEMMs read.
    fn activated(&self, work: &ExpertsWork, inner: usize) -> RowsView {
        let rows = rows_at(&work.activated, inner);
        match self.numerics.compute {
            ComputeDtype::F32 => rows,
            _ => RowsView {
                values: Address::NULL,
                input: Address::new(work.activated.address()),
                input_stride: stride(inner) as u32,
                ..rows
            },
        }
    }
}

/// Rows of f32 alone.
fn rows_at(memory: &DeviceMemory, cols: usize) -> RowsView {
    RowsView { values: Address::new(memory.address()), input: Address::NULL, cols: cols as u32, input_stride: 0 }
}

#[cfg(test)]
mod tests {
    use super::most_groups;

    /// Of every way to share pairs among experts.
    fn worst(pairs: usize, experts: usize, rows_of_group: usize) -> usize {
        let of = |own: usize| own.div_ceil(rows_of_group);
        if experts == 1 {
            return of(pairs);
        }
        (0..=pairs).map(|own| of(own) + worst(pairs - own, experts - 1, rows_of_group)).max().unwrap_or(0)
    }

    #[test]
    fn no_choice_makes_more_groups_than_there_is_room_for() {
        for pairs in 0..13 {
            for experts in 1..5 {
                for rows_of_group in 1..6 {
                    let most = most_groups(pairs, experts, rows_of_group);
                    assert_eq!(most, worst(pairs, experts, rows_of_group), "{pairs} {experts} {rows_of_group}");
                }
            }
        }
    }
}
