//! A second stream of steps, for what may run beside their launches: while a step is recorded, it is recorded with it.

use std::sync::Arc;

use cudarc::driver::result;

use super::device::{Device, Event, Stream, refused};
use crate::ops::OpsError;

/// A stream that begins behind that of steps and ends before it goes on.
#[derive(Debug)]
pub(in super::super) struct Beside {
    device: Arc<Device>,
    pub(in super::super) stream: Stream,
    begun: Event,
    ended: Event,
}

impl Beside {
    /// # Errors
    /// [`OpsError::Driver`].
    pub(in super::super) fn new(device: &Arc<Device>) -> Result<Self, OpsError> {
        let (begun, ended) = (Event::new(device)?, Event::new(device)?);
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(refused("cuStreamCreate"))?;
        Ok(Self { device: Arc::clone(device), stream: Stream(stream), begun, ended })
    }

    /// What it is given from here on waits for all that the stream of steps was given so far.
    ///
    /// # Errors
    /// [`OpsError::Driver`].
    pub(in super::super) fn begin(&self) -> Result<(), OpsError> {
        self.device.enter()?;
        self.begun.record(&self.device.compute)?;
        self.begun.hold(&self.stream)
    }

    /// What the stream of steps is given from here on waits for all that this one was given.
    ///
    /// # Errors
    /// [`OpsError::Driver`].
    pub(in super::super) fn end(&self) -> Result<(), OpsError> {
        self.device.enter()?;
        self.ended.record(&self.stream)?;
        self.ended.hold(&self.device.compute)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.device.note(self.device.enter());
        // SAFETY: nothing puts work there any more; the driver finishes what there is.
        let destroyed = unsafe { result::stream::destroy(self.stream.0) };
        self.device.note(destroyed.map_err(refused("cuStreamDestroy")));
    }
}
