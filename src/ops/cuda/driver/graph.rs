//! Launches that were recorded once and are put on the device together.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, refused};
use crate::ops::OpsError;

/// Recorded launches.
#[derive(Debug)]
pub(in super::super) struct Graph {
    device: Arc<Device>,
    handle: sys::CUgraphExec,
}

// SAFETY: an executable graph is a handle; it is launched by one thread at a time, that of steps.
unsafe impl Send for Graph {}

impl Graph {
    /// From here on, launches on the stream of steps are recorded instead of run.
    ///
    /// # Errors
    /// [`OpsError::Driver`]; nothing is recorded then.
    pub(in super::super) fn begin(device: &Device) -> Result<(), OpsError> {
        device.enter()?;
        device.keep_what_is_freed();
        // Other threads go on allocating and copying meanwhile, on streams of their own.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the device.
        let begun = unsafe { result::stream::begin_capture(device.compute.0, mode) };
        if begun.is_err() {
            device.free_what_was_kept();
        }
        begun.map_err(refused("cuStreamBeginCapture"))
    }

    /// What was recorded since. The stream runs what it is given again, whether or not this fails.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where something was put on the stream that cannot be recorded.
    pub(in super::super) fn end(device: &Arc<Device>) -> Result<Self, OpsError> {
        // SAFETY: the stream lives, and `begin` began.
        let graph = unsafe { result::stream::end_capture(device.compute.0) };
        device.free_what_was_kept();
        let graph = graph.map_err(refused("cuStreamEndCapture"))?;
        // SAFETY: the graph was just made; what is made of it does not need it any more.
        unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).map_err(refused("cuGraphDestroy"))?;
            Ok(Self { device: Arc::clone(device), handle: made.map_err(refused("cuGraphInstantiate"))? })
        }
    }

    /// Put all of it on the stream of steps.
    pub(in super::super) fn launch(&self) -> Result<(), OpsError> {
        self.device.enter()?;
        // SAFETY: both live.
        unsafe { result::graph::launch(self.handle, self.device.compute.0) }.map_err(refused("cuGraphLaunch"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.note(self.device.enter());
        // SAFETY: it lives and is not launched again; the driver keeps what still runs.
        let destroyed = unsafe { result::graph::exec_destroy(self.handle) };
        self.device.note(destroyed.map_err(refused("cuGraphExecDestroy")));
    }
}
