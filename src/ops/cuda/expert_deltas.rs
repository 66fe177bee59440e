//! What adapters add within experts: the pairs of rows and experts that have any, and their launches.
//!
//! Which pairs those are is known on the device alone. A step has the same launches for any adapters with deltas at the same
//! sites.

use super::abi::{Address, ExpertDeltasArgs, ExpertGroup, ExpertPairs, ExpertsArgs, SiteView};
use super::backend::{CudaBackend, Scratch};
use super::driver::{DeviceMemory, Grid, Kernel};
use super::sizes::{SHRINK_RANKS, SHRINK_SHARED, SHRINK_SHARED_F32};
use super::step::Set;
use crate::ops::{ComputeDtype, ExpertDeltas, OpsError};

/// Blocks of shrink for every processor: each reads the list of groups, and two fit.
const BLOCKS_EACH: usize = 2;

/// What is kept of pairs of rows and experts.
#[derive(Debug)]
pub(super) struct DeltasWork {
    of_gate_up: DeviceMemory,
    of_down: DeviceMemory,
    list: DeviceMemory,
    group: DeviceMemory,
}

impl DeltasWork {
    /// Bytes of its parts, for so many pairs.
    pub(super) fn parts(pairs: usize) -> [usize; 4] {
        let (added, group) = (pairs * size_of::<ExpertPairs>(), pairs * size_of::<ExpertGroup>());
        [added, added, pairs * size_of::<u32>(), group]
    }

    pub(super) fn new(
        pairs: usize,
        allocate: impl Fn(usize) -> Result<DeviceMemory, OpsError>,
    ) -> Result<Self, OpsError> {
        let [of_gate_up, of_down, list, group] = Self::parts(pairs);
        Ok(Self {
            of_gate_up: allocate(of_gate_up)?,
            of_down: allocate(of_down)?,
            list: allocate(list)?,
            group: allocate(group)?,
        })
    }
}

/// What is launched beside the products of experts.
pub(super) struct DeltasLaunch {
    arguments: ExpertDeltasArgs,
    shrink: Grid,
}

/// The deltas of a step, where there are any.
pub(super) struct Deltas(Option<DeltasLaunch>);

impl Deltas {
    /// Those that are added to gate and up.
    pub(super) fn of_gate_up(&self) -> Option<DeltasLaunch> {
        self.of(0, |arguments| arguments.gate_up)
    }

    /// Those that are added to down.
    pub(super) fn of_down(&self) -> Option<DeltasLaunch> {
        self.of(1, |arguments| arguments.down)
    }

    fn of(&self, is_down: u32, site: impl Fn(&ExpertDeltasArgs) -> SiteView) -> Option<DeltasLaunch> {
        let DeltasLaunch { arguments, shrink } = self.0.as_ref()?;
        let arguments = ExpertDeltasArgs { is_down, ..*arguments };
        (site(&arguments).slots.get() != 0).then_some(DeltasLaunch { arguments, shrink: *shrink })
    }
}

impl CudaBackend {
    /// Find the pairs that have deltas: one launch, and none where no adapter of the step has any. `None` where there is no
    /// memory for the products of A.
    pub(super) fn expert_deltas(
        &self,
        set: Set,
        deltas: ExpertDeltas<'_, Self>,
        experts: ExpertsArgs,
        work: &DeltasWork,
        scratch: &mut Scratch,
    ) -> Option<Deltas> {
        let Some(first) = deltas.gate_up.or(deltas.down) else { return Some(Deltas(None)) };
        let (pairs, ranks) = (set.count * experts.each as usize, first.table.ranks.max(1).next_multiple_of(8));
        let v = self.grown(&mut scratch.shrunk, "products of A", pairs * ranks * self.numerics.compute.size())?;
        let DeltasWork { of_gate_up, of_down, list, group } = work;
        let view = |site| Option::map_or(site, SiteView::NONE, |site| self.site(site));
        let arguments = ExpertDeltasArgs {
            experts,
            gate_up: view(deltas.gate_up),
            down: view(deltas.down),
            of_gate_up: Address::new(of_gate_up.address()),
            of_down: Address::new(of_down.address()),
            list: Address::new(list.address()),
            group: Address::new(group.address()),
            v: Address::new(v),
            v_stride: ranks as u32,
            is_down: 0,
        };
        self.launch(&self.kernels.group_expert_deltas, self.block_a_row(set.groups.max(1)), &arguments);
        let shared = match self.numerics.compute {
            ComputeDtype::F32 => SHRINK_SHARED_F32,
            ComputeDtype::Bf16 | ComputeDtype::F16 => SHRINK_SHARED,
        };
        let most = self.device.processors() as usize * BLOCKS_EACH;
        let shrink = Grid::of((pairs * ranks.div_ceil(SHRINK_RANKS)).min(most)).shared(shared);
        Some(Deltas(Some(DeltasLaunch { arguments, shrink })))
    }

    /// Products of A, and the products of experts to which those of B are added.
    pub(super) fn launch_with_deltas(&self, deltas: &DeltasLaunch, products: &Kernel<ExpertDeltasArgs>, grid: Grid) {
        self.launch(&self.kernels.shrink_experts, deltas.shrink, &deltas.arguments);
        self.launch(products, grid, &deltas.arguments);
    }
}
