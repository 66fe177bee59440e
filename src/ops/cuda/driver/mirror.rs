//! Memory of the device and as much page-locked memory of the host, for what goes between the two with every step.

use std::sync::Arc;

use super::device::Device;
use super::memory::{DeviceMemory, Pinned};
use crate::ops::OpsError;

/// Both sides.
#[derive(Debug)]
pub(in super::super) struct Mirror {
    pub(in super::super) device: DeviceMemory,
    pub(in super::super) host: Pinned,
}

impl Mirror {
    /// At least `bytes` on either side, ready for work on the stream of steps. Where `mirror` is too small another takes its
    /// place, of a power of two, so that this ends.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub(in super::super) fn at_least<'m>(
        mirror: &'m mut Option<Self>,
        device: &Arc<Device>,
        what: &'static str,
        bytes: usize,
    ) -> Result<&'m mut Self, OpsError> {
        let kept = match mirror.take().filter(|mirror| mirror.device.bytes() >= bytes) {
            Some(kept) => kept,
            None => {
                device.exchange();
                let memory = DeviceMemory::new(device, &device.compute, what, bytes.next_power_of_two())?;
                let host = Pinned::new(device, memory.bytes())?;
                Self { device: memory, host }
            }
        };
        Ok(mirror.insert(kept))
    }
}
