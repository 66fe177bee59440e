//! Whether the engine moves: what it is doing and whether it is still the same as before. Written by the engine thread
//! without a lock, read by whoever watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepInFlight {
    /// Which step; never the same for two attempts.
    pub serial: u64,
    /// Sequences in it.
    pub sequences: usize,
    /// Rows in it.
    pub rows: usize,
}

#[derive(Debug, Default)]
struct Beats {
    /// Odd while the engine works, even while it waits for something to do.
    serial: AtomicU64,
    sequences: AtomicUsize,
    rows: AtomicUsize,
    ended: AtomicBool,
}

/// The pulse of one engine. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct EnginePulse {
    beats: Arc<Beats>,
}

impl EnginePulse {
    /// What the engine is at; `None` while it waits for something to do, and after its end.
    #[must_use]
    pub fn in_flight(&self) -> Option<StepInFlight> {
        let Beats { serial, sequences, rows, ended } = &*self.beats;
        let now = serial.load(Ordering::Acquire);
        // The numbers may be those of the next step already, which does no harm: they are for people.
        let step = StepInFlight {
            serial: now,
            sequences: sequences.load(Ordering::Relaxed),
            rows: rows.load(Ordering::Relaxed),
        };
        (now % 2 == 1 && !ended.load(Ordering::Acquire)).then_some(step)
    }

    /// The engine thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.beats.ended.load(Ordering::Acquire)
    }

    /// An attempt at a step begins.
    pub(super) fn begin(&self, sequences: usize, rows: usize) {
        self.beats.sequences.store(sequences, Ordering::Relaxed);
        self.beats.rows.store(rows, Ordering::Relaxed);
        let serial = self.beats.serial.load(Ordering::Relaxed);
        // To the next odd number: from work to work, or from waiting to work.
        self.beats.serial.store(serial + 1 + serial % 2, Ordering::Release);
    }

    /// Nothing to do.
    pub(super) fn rest(&self) {
        let serial = self.beats.serial.load(Ordering::Relaxed);
        self.beats.serial.store(serial + serial % 2, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.beats.ended.store(true, Ordering::Release);
    }
}
