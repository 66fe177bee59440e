//! The sums over the launches of a step.

use std::collections::BTreeMap;

use super::abi::Structs;
use super::costs::{Class, Cost, Operand, cost};
use super::device::Device;
use crate::emulator::{Control, Launch};
use crate::support::Failure;

/// What is assumed beyond published figures, for the estimate; the floor assumes none of it.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Assumptions {
    /// Seconds from the end of a launch to the beginning of the next one of a recorded step.
    pub(crate) gap: f64,
    /// How much more than its share of the bandwidth a processor can move while others are idle.
    pub(crate) share: f64,
}

/// Bytes of a class.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Bytes {
    /// Each counted once for every launch.
    pub(crate) once: f64,
    /// That come from memory, or go there: activations only where the L2 cache does not keep them.
    pub(crate) moved: f64,
    /// That blocks ask for, whoever has them.
    pub(crate) asked: f64,
}

/// Launches of a kernel.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Kernel {
    pub(crate) launches: usize,
    pub(crate) bytes: BTreeMap<Class, Bytes>,
    pub(crate) floor: f64,
    pub(crate) estimate: f64,
    /// Launches that leave processors without a block, and the largest share of processors that one of them leaves so.
    pub(crate) idle_launches: usize,
    pub(crate) idle: f64,
}

/// A step on a device.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Tally {
    pub(crate) launches: usize,
    pub(crate) bytes: BTreeMap<Class, Bytes>,
    pub(crate) flops: f64,
    /// Seconds that its bytes or its sums take at the published figures, launch by launch.
    pub(crate) floor: f64,
    /// The same with what is assumed.
    pub(crate) estimate: f64,
    pub(crate) kernels: BTreeMap<String, Kernel>,
}

impl Tally {
    pub(crate) fn of(
        structs: &Structs,
        control: &Control,
        launches: &[Launch],
        device: &Device,
        assumptions: Assumptions,
    ) -> Result<Self, Failure> {
        let mut tally = Self::default();
        // A step ends on the stream that it begins on.
        let main = launches.first().map(|launch| launch.stream);
        for launch in launches {
            let cost = cost(structs, control, launch, device.processors)?;
            tally.add((launch, Some(launch.stream) != main), &cost, device, assumptions);
        }
        Ok(tally)
    }

    fn add(&mut self, (launch, is_beside): (&Launch, bool), cost: &Cost, device: &Device, assumptions: Assumptions) {
        let kernel = self.kernels.entry(launch.kernel.clone()).or_default();
        let mut moved = 0.0;
        for operand in &cost.operands {
            let bytes = bytes_of(operand, device);
            moved += bytes.moved;
            for sums in [&mut self.bytes, &mut kernel.bytes] {
                let sum = sums.entry(operand.class).or_default();
                sum.once += bytes.once;
                sum.moved += bytes.moved;
                sum.asked += bytes.asked;
            }
        }
        let blocks = f64::from(launch.grid.iter().product::<u32>());
        let busy = (cost.busy.unwrap_or(blocks) / f64::from(device.processors)).min(1.0);
        let floor = (moved / device.bandwidth).max(cost.flops / device.flops);
        let bandwidth = device.bandwidth * (assumptions.share * busy).min(1.0);
        let work = (moved / bandwidth.max(1.0)).max(cost.flops / (device.flops * busy).max(1.0));
        // What runs beside others takes of the bandwidth what it needs, and nobody waits for its beginning and its end.
        let estimate = if is_beside { floor } else { work + assumptions.gap };
        self.launches += 1;
        self.flops += cost.flops;
        self.floor += floor;
        self.estimate += estimate;
        kernel.launches += 1;
        kernel.floor += floor;
        kernel.estimate += estimate;
        kernel.idle_launches += usize::from(busy < 1.0);
        kernel.idle = kernel.idle.max(1.0 - busy);
    }
}

/// Half the cache keeps what is read again; the other half is for what comes between.
fn bytes_of(operand: &Operand, device: &Device) -> Bytes {
    let Operand { class, bytes, asked, fetched } = *operand;
    let is_kept = bytes <= device.l2 / 2.0;
    let moved = match (class, is_kept) {
        (Class::Activations, true) => 0.0,
        (_, true) => bytes,
        (_, false) => bytes * fetched,
    };
    Bytes { once: bytes, moved, asked: bytes * asked }
}
