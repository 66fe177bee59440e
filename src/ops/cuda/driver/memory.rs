//! Memory of the device, freed behind the work that may still read it, and pinned memory of the host.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, Stream, refused};
use crate::ops::OpsError;

/// Every allocation and every part of one begins at a multiple of this.
pub(in super::super) const ALIGNMENT: usize = 256;

/// Bytes on the device. Its address never changes.
#[derive(Debug)]
pub(in super::super) struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocate `bytes` with unspecified contents, ready for work on `stream`; another stream may use them once that one
    /// has been waited for.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`] beyond the budget, or where the device has no more.
    pub(in super::super) fn new(
        device: &Arc<Device>,
        stream: &Stream,
        what: &'static str,
        bytes: usize,
    ) -> Result<Self, OpsError> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        device.enter()?;
        device.reserve(what, bytes as u64)?;
        // SAFETY: the stream lives; nothing is said about the contents.
        match unsafe { result::malloc_async(stream.0, bytes) } {
            Ok(address) => Ok(Self { device: Arc::clone(device), address, bytes }),
            Err(error) => {
                device.release(bytes as u64);
                match error.0 {
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(OpsError::OutOfMemory { what, bytes: bytes as u64 }),
                    _ => Err(refused("cuMemAllocAsync")(error)),
                }
            }
        }
    }

    pub(in super::super) fn address(&self) -> u64 {
        self.address
    }

    pub(in super::super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fill all of it with zero bytes, on a stream.
    pub(in super::super) fn clear(&self, stream: &Stream) -> Result<(), OpsError> {
        self.device.enter()?;
        // SAFETY: the whole of a live allocation.
        unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream.0) }.map_err(refused("cuMemsetD8Async"))
    }

    /// Set the 8 bytes at `offset`, on a stream, without memory of the host that must stay.
    pub(in super::super) fn set_u64(&self, offset: usize, value: u64, stream: &Stream) -> Result<(), OpsError> {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes);
        self.device.enter()?;
        for (half, value) in [(0, value as u32), (4, (value >> 32) as u32)] {
            // SAFETY: within a live allocation, as asserted; 4-byte aligned.
            unsafe { sys::cuMemsetD32Async(self.address + offset as u64 + half, value, 1, stream.0) }
                .result()
                .map_err(refused("cuMemsetD32Async"))?;
        }
        Ok(())
    }

    /// Copy `bytes` of pinned memory to `offset`, on a stream. The pinned memory must not change before the copy is done.
    pub(in super::super) fn receive(
        &self,
        offset: usize,
        pinned: &Pinned,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), OpsError> {
        assert!(offset + bytes <= self.bytes);
        self.device.enter()?;
        let source = &pinned.bytes()[..bytes];
        // SAFETY: within a live allocation, as asserted; pinned memory is freed only behind a wait (its `Drop`).
        unsafe { result::memcpy_htod_async(self.address + offset as u64, source, stream.0) }
            .map_err(refused("cuMemcpyHtoDAsync"))
    }

    /// Copy `bytes` from `offset` to pinned memory, on a stream, which is to be waited for before they are looked at.
    pub(in super::super) fn send(
        &self,
        offset: usize,
        pinned: &mut Pinned,
        bytes: usize,
        stream: &Stream,
    ) -> Result<(), OpsError> {
        assert!(offset + bytes <= self.bytes);
        self.device.enter()?;
        let target = &mut pinned.bytes_mut()[..bytes];
        // SAFETY: as in `receive`.
        unsafe { result::memcpy_dtoh_async(target, self.address + offset as u64, stream.0) }
            .map_err(refused("cuMemcpyDtoHAsync"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.device.note(self.device.free(self.address));
        self.device.release(self.bytes as u64);
    }
}

/// Page-locked memory of the host, which the device copies from and to by itself.
#[derive(Debug)]
pub(in super::super) struct Pinned {
    device: Arc<Device>,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: it is owned memory.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocate `bytes`, zeroed.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub(in super::super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, OpsError> {
        let bytes = bytes.max(1);
        device.enter()?;
        // SAFETY: no flags; the memory is initialised below before anybody can look at it.
        let address = unsafe { result::malloc_host(bytes, 0) };
        let refused = |_| OpsError::OutOfMemory { what: "page-locked memory", bytes: bytes as u64 };
        let address = address.map_err(refused)?.cast::<u8>();
        // SAFETY: just allocated with that size.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), address, bytes })
    }

    pub(in super::super) fn bytes(&self) -> &[u8] {
        // SAFETY: owned, initialised memory of that size.
        unsafe { std::slice::from_raw_parts(self.address, self.bytes) }
    }

    pub(in super::super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised memory of that size, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies from and to it may be under way on either stream.
        self.device.note(self.device.wait(&self.device.compute));
        self.device.note(self.device.wait(&self.device.copies));
        // SAFETY: it lives, and nothing uses it any more.
        let freed = unsafe { result::free_host(self.address.cast()) };
        self.device.note(freed.map_err(refused("cuMemFreeHost")));
    }
}
