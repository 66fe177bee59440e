//! The launches of real steps: a decoder of any size on the emulated device, where nothing of it is computed or kept.

use std::path::Path;
use std::sync::Arc;

use polydelta::delta::{DeltaProgram, PreparedDelta};
use polydelta::model::{Decoder, ModelInput, base_layout};
use polydelta::ops::Numerics;
use polydelta::ops::cuda::{CudaBackend, CudaOptions};
use polydelta::types::AdapterSlot;

use super::device::Device;
use crate::emulator::{Control, Launch};
use crate::support::Failure;
use crate::support::large::{self, Fill, Room};
use crate::support::model::Shape;

/// Allocations up to here are memory: what says what a step is, the tables of adapters, and vectors. All that is larger is
/// numbers that nobody looks at.
const LARGEST: u64 = 1 << 20;
/// What the device seems to have: plans do not depend on it.
const MEMORY: u64 = 1 << 40;

/// A decoder with adapters whose steps are written down.
pub(crate) struct Planner {
    pub(crate) control: &'static Control,
    shape: Shape,
    backend: Arc<CudaBackend>,
    decoder: Decoder<CudaBackend>,
}

impl Planner {
    /// A model in bf16 without adapters.
    pub(crate) fn new(
        control: &'static Control,
        device: &Device,
        shape: Shape,
        room: Room,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        control.set_dry(None);
        control.set_device(device.capability, device.processors);
        control.set_memory(MEMORY);
        // It computes something before it serves, so it is opened before nothing is computed any more.
        let options = CudaOptions {
            ordinal: 0,
            numerics: Numerics::BF16,
            memory_bytes: Some(MEMORY),
            kernel_cache: None,
            library_gemm: None,
        };
        let backend = Arc::new(CudaBackend::new(options)?);
        control.set_dry(Some(LARGEST));
        let decoder = large::decoder(shape, &backend, Fill::Zeros, room, scratch)?;
        Ok(Self { control, shape, backend, decoder })
    }

    /// Put an adapter into a slot that is empty.
    pub(crate) fn install(&mut self, slot: AdapterSlot, program: DeltaProgram) -> Result<(), Failure> {
        let layout = base_layout(&self.shape.spec()?);
        self.decoder.install(slot, PreparedDelta::new(self.backend.as_ref(), &layout, program)?);
        Ok(())
    }

    /// The launches of a step, in order.
    pub(crate) fn launches(&mut self, input: &ModelInput) -> Result<Vec<Launch>, Failure> {
        self.control.reset();
        // What is sampled of nothing is no token.
        drop(self.decoder.forward(input)?);
        Ok(self.control.recorded())
    }
}
