//! One device: its context, its streams, how much of its memory may be taken, and the first thing that went wrong.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{DriverError, result};

use crate::ops::OpsError;

/// Share of a device's free memory that is used by default. The driver needs some for code, graphs and its own tables.
const SHARE: f64 = 0.92;

/// An error of the driver, with the call that it answered.
pub(super) fn refused(call: &'static str) -> impl FnOnce(DriverError) -> OpsError {
    move |error| {
        let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
        OpsError::Driver { call, error: name.unwrap_or_else(|_| format!("{:?}", error.0)) }
    }
}

/// A stream. Work on one runs in the order in which it was put there.
#[derive(Debug)]
pub(in super::super) struct Stream(pub(super) sys::CUstream);

// SAFETY: a stream is a handle that the driver lets any thread use whose current context is the stream's.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Stream {}

/// A device and what was made once for it.
#[derive(Debug)]
pub(in super::super) struct Device {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    processors: u32,
    shared_bytes: u32,
    /// Steps run here.
    pub(in super::super) compute: Stream,
    /// What adapters and weights bring is copied here, while steps go on.
    pub(in super::super) copies: Stream,
    /// Bytes that may be allocated, and bytes that are.
    budget: u64,
    used: AtomicU64,
    /// Kernels are launched and memory is freed without waiting: the first refusal waits here for who can report it.
    fault: Mutex<Option<OpsError>>,
    freeing: Mutex<Freeing>,
    /// Counts whenever memory is exchanged whose address launches may have been recorded with.
    exchanged: AtomicU64,
}

/// Memory that is given up is freed on the stream of steps, behind them; while that one records, it is kept.
#[derive(Debug, Default)]
struct Freeing {
    recording: bool,
    kept: Vec<u64>,
}

// SAFETY: the context is a handle; every thread makes it current before it calls the driver (`Device::enter`).
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Take device `ordinal`, of which `budget` bytes may be used; where that is not given, [`SHARE`] of what is free.
    ///
    /// # Errors
    /// [`OpsError::Driver`].
    pub(in super::super) fn open(ordinal: u32, budget: Option<u64>) -> Result<Arc<Self>, OpsError> {
        result::init().map_err(refused("cuInit"))?;
        let handle = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).map_err(refused("cuDeviceGet"))?;
        let name = result::device::get_name(handle).map_err(refused("cuDeviceGetName"))?;
        let attribute = |attribute| {
            // SAFETY: the device was returned by the driver.
            let value = unsafe { result::device::get_attribute(handle, attribute) };
            value.map(|value| u32::try_from(value).unwrap_or(0)).map_err(refused("cuDeviceGetAttribute"))
        };
        let processors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        // SAFETY: the device was returned by the driver; the context is released in `drop`.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(refused("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(refused("cuCtxSetCurrent"))?;
        keep_freed_memory(handle)?;
        let (free, _) = result::mem_get_info().map_err(refused("cuMemGetInfo"))?;
        let budget = budget.unwrap_or((free as f64 * SHARE) as u64);
        tracing::info!(gpu = name, ordinal, free_bytes = free, budget_bytes = budget, "the GPU's driver is open");
        let stream =
            || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(refused("cuStreamCreate"));
        let (compute, copies) = (Stream(stream()?), Stream(stream()?));
        Ok(Arc::new(Self {
            handle,
            context,
            processors,
            shared_bytes,
            compute,
            copies,
            budget,
            used: AtomicU64::new(0),
            fault: Mutex::default(),
            freeing: Mutex::default(),
            exchanged: AtomicU64::new(0),
        }))
    }

    /// Bytes that may be used.
    pub(in super::super) fn budget(&self) -> u64 {
        self.budget
    }

    /// What the driver says of the device.
    pub(super) fn attribute(&self, attribute: CUdevice_attribute) -> Result<u32, OpsError> {
        // SAFETY: the device was returned by the driver.
        let value = unsafe { result::device::get_attribute(self.handle, attribute) };
        value.map(|value| u32::try_from(value).unwrap_or(0)).map_err(refused("cuDeviceGetAttribute"))
    }

    /// Streaming multiprocessors.
    pub(in super::super) fn processors(&self) -> u32 {
        self.processors
    }

    /// Most shared memory of a block.
    pub(in super::super) fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Make the context current on this thread.
    pub(super) fn enter(&self) -> Result<(), OpsError> {
        // SAFETY: the context lives until this device is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(refused("cuCtxSetCurrent"))
    }

    /// Set `bytes` of the budget aside.
    pub(super) fn reserve(&self, what: &'static str, bytes: u64) -> Result<(), OpsError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.budget);
        let reserved = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        reserved.map(drop).map_err(|_| OpsError::OutOfMemory { what, bytes })
    }

    /// Give them back.
    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Give memory up, behind the work that may still read it.
    pub(super) fn free(&self, address: u64) -> Result<(), OpsError> {
        let mut freeing = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        if freeing.recording {
            freeing.kept.push(address);
            return Ok(());
        }
        self.enter()?;
        // SAFETY: whoever owned it gives it up. Work that was launched before reads it before it is freed, since all such
        // work is on this stream, or on one that was waited for.
        unsafe { result::free_async(address, self.compute.0) }.map_err(refused("cuMemFreeAsync"))
    }

    pub(super) fn keep_what_is_freed(&self) {
        self.freeing.lock().unwrap_or_else(PoisonError::into_inner).recording = true;
    }

    pub(super) fn free_what_was_kept(&self) {
        let mut freeing = self.freeing.lock().unwrap_or_else(PoisonError::into_inner);
        freeing.recording = false;
        let kept = std::mem::take(&mut freeing.kept);
        drop(freeing);
        kept.into_iter().for_each(|address| {
            self.note(self.free(address));
        });
    }

    /// Say that memory was exchanged whose address launches may have been recorded with.
    pub(in super::super) fn exchange(&self) {
        self.exchanged.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was said.
    pub(in super::super) fn exchanges(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }

    /// Keep the first of what went wrong.
    pub(in super::super) fn note<T>(&self, result: Result<T, OpsError>) -> Option<T> {
        result
            .map_err(|error| self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error).clone())
            .ok()
    }

    /// Take what went wrong since the last time.
    pub(in super::super) fn take_fault(&self) -> Result<(), OpsError> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    /// Wait for all work of a stream.
    pub(in super::super) fn wait(&self, stream: &Stream) -> Result<(), OpsError> {
        self.enter()?;
        // SAFETY: streams live as long as the device.
        unsafe { result::stream::synchronize(stream.0) }.map_err(refused("cuStreamSynchronize"))
    }
}

/// Memory that adapters leave is taken by the next ones: giving it back to the system would stop the device.
fn keep_freed_memory(handle: sys::CUdevice) -> Result<(), OpsError> {
    let mut threshold = u64::MAX;
    // SAFETY: the device was returned by the driver; the attribute is a u64.
    unsafe {
        let pool = result::device::get_mem_pool(handle).map_err(refused("cuDeviceGetMemPool"))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast())
            .map_err(refused("cuMemPoolSetAttribute"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing else refers to streams or context any more. A driver that refuses here has nobody left to tell.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::destroy(self.compute.0);
            let _ = result::stream::destroy(self.copies.0);
            let _ = result::primary_ctx::release(self.handle);
        }
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(in super::super) struct Event {
    device: Arc<Device>,
    handle: sys::CUevent,
}

// SAFETY: an event is a handle that any thread may use.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Event {}

impl Event {
    pub(in super::super) fn new(device: &Arc<Device>) -> Result<Self, OpsError> {
        device.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let handle = result::event::create(flags).map_err(refused("cuEventCreate"))?;
        Ok(Self { device: Arc::clone(device), handle })
    }

    /// The point that a stream has been given work up to.
    pub(in super::super) fn record(&self, stream: &Stream) -> Result<(), OpsError> {
        // SAFETY: both live.
        unsafe { result::event::record(self.handle, stream.0) }.map_err(refused("cuEventRecord"))
    }

    /// Wait until the stream has reached it.
    pub(in super::super) fn wait(&self) -> Result<(), OpsError> {
        // SAFETY: it lives; one that was never recorded is reached.
        unsafe { result::event::synchronize(self.handle) }.map_err(refused("cuEventSynchronize"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.note(self.device.enter());
        // SAFETY: it lives and is not used again.
        let destroyed = unsafe { result::event::destroy(self.handle) };
        self.device.note(destroyed.map_err(refused("cuEventDestroy")));
    }
}
