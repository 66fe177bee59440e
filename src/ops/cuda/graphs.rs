//! Recorded steps. A step in which every sequence decodes one token launches the same kernels as the last such step of as
//! many rows did: what varies lies in memory whose address stays, and kernels look at it there. So its launches are
//! recorded the second time they come, and put on the device together from then on.
//!
//! What a recording holds on to is its key; when memory is exchanged whose address it knows, all are given up. What is
//! recorded and what is launched one by one has the same bits.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::{Device, Graph};
use crate::ops::{Launches, OpsError, SiteSet};

/// Most recordings that are kept. Beyond them all are given up: a server that decodes has few.
const MOST_RECORDINGS: usize = 128;

/// Whatever else the launches of a step depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Rows that grids are made for.
    pub(super) rows: usize,
    /// Splits of attention that grids are made for.
    pub(super) splits: usize,
    /// Alternatives that room is left for.
    pub(super) most: usize,
    /// Where any adapter has entries.
    pub(super) held: SiteSet,
}

/// What is known of a key.
#[derive(Debug)]
enum Known {
    /// Its launches have come once, and whatever they need is there.
    Seen,
    Recorded(Graph),
    /// The driver did not let them be recorded.
    Refused,
}

/// All recordings of a device.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    known: HashMap<Key, Known>,
    /// [`Device::exchanges`] when they were made.
    exchanges: u64,
    recording: Option<Key>,
}

impl Graphs {
    /// A step of this key begins: launch what was recorded of it, or have it launched one by one, to be recorded where it
    /// has come before.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where a recording cannot be launched.
    pub(super) fn begin(&mut self, device: &Device, key: Key) -> Result<Launches, OpsError> {
        if self.exchanges != device.exchanges() || self.known.len() >= MOST_RECORDINGS {
            self.known.clear();
            self.exchanges = device.exchanges();
        }
        match self.known.get(&key) {
            Some(Known::Recorded(graph)) => graph.launch().map(|()| Launches::Done),
            Some(Known::Refused) => Ok(Launches::Wanted),
            Some(Known::Seen) if Graph::begin(device).is_ok() => {
                self.recording = Some(key);
                Ok(Launches::Wanted)
            }
            Some(Known::Seen) => {
                self.known.insert(key, Known::Refused);
                Ok(Launches::Wanted)
            }
            None => {
                self.known.insert(key, Known::Seen);
                Ok(Launches::Wanted)
            }
        }
    }

    /// All of a step was launched; where it was recorded, launch that. Where it could not be recorded it is to be launched
    /// once more, one by one.
    ///
    /// # Errors
    /// [`OpsError::Driver`] where the recording cannot be launched.
    pub(super) fn end(&mut self, device: &Arc<Device>) -> Result<Launches, OpsError> {
        let Some(key) = self.recording.take() else { return Ok(Launches::Done) };
        let made = Graph::end(device);
        // What was refused while recording was not run, and is no fault of a step.
        let refused = device.take_fault();
        match made.and_then(|graph| refused.map(|()| graph)) {
            Ok(graph) => {
                let launched = graph.launch();
                self.known.insert(key, Known::Recorded(graph));
                launched.map(|()| Launches::Done)
            }
            Err(error) => {
                tracing::warn!(%error, "the driver does not record this kind of step; its kernels are launched one by one");
                self.known.insert(key, Known::Refused);
                Ok(Launches::Wanted)
            }
        }
    }

    /// Whether a step is being recorded: nothing may be allocated.
    pub(super) fn is_recording(&self) -> bool {
        self.recording.is_some()
    }
}
