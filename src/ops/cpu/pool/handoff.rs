//! How one thread hands a job to others and gets it back: the part of the pool whose safety depends on the order in which
//! threads see each other's writes.
//!
//! One *giver* opens a job, closes it, and then waits until nobody is inside. *Takers* enter a job that is open, leave it,
//! and sleep while there is none. A job is read only by those inside, so it may borrow from the giver's frame.
//! This file knows nothing of what a job is, and starts no thread.
#![allow(unsafe_code)]

use std::sync::PoisonError;

use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, UnsafeCell, fence, spin_loop, yield_now,
};

/// [`Handoff::state`] is generation (upper half), this bit, and the number of takers inside the job (below it).
const OPEN: u64 = 1 << 31;
const GENERATION: u64 = 1 << 32;

/// Looks at the state before the giver lets another thread have its processor.
const SPINS: u32 = 4096;

/// A place for one job at a time.
pub(super) struct Handoff<J> {
    state: AtomicU64,
    /// Written by the giver only while no job is open and no taker is inside one.
    job: UnsafeCell<Option<J>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    stopped: AtomicBool,
}

// SAFETY: `job` is the only field that is not already shareable. It is written while `state` is closed with no taker
// inside (the contract of `open`), and read only by takers inside an open job, for whom `close` waits.
unsafe impl<J: Send> Sync for Handoff<J> {}

impl<J: Copy> Handoff<J> {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    /// Let takers enter `job`.
    ///
    /// # Safety
    /// One thread gives at a time, and it closes each job before it opens the next. Whatever `job` borrows lives until
    /// [`Self::close`] has returned.
    pub(super) unsafe fn open(&self, job: J) {
        // SAFETY: nobody else gives, and the last `close` left the state closed with no taker inside.
        self.job.with_mut(|place| unsafe { *place = Some(job) });
        let generation = (self.state.load(Ordering::Relaxed) / GENERATION).wrapping_add(1) & (u64::MAX / GENERATION);
        self.state.store((generation * GENERATION) | OPEN, Ordering::Release);
        // With the fence of `park`: it sees the job, or its count is seen here.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.wake_all();
        }
    }

    /// Let nobody enter any more, and wait until no taker is inside.
    pub(super) fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while !self.state.load(Ordering::Acquire).is_multiple_of(OPEN) {
            spin_loop();
            spins = spins.saturating_add(1);
            if spins > SPINS {
                // More threads than processors: let the taker have this one.
                yield_now();
            }
        }
    }

    /// Enter the open job unless it is the one of generation `seen`; returns it and its generation. It must be left.
    pub(super) fn enter(&self, seen: u64) -> Option<(J, u64)> {
        let state = self.state.load(Ordering::Relaxed);
        if is_nothing_new(state, seen) {
            return None;
        }
        self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // SAFETY: the exchange saw the job open and counted us in, so the giver's write of `job` happened before and
        // it will not write again until we leave.
        let job = self.job.with(|place| unsafe { *place });
        job.map(|job| (job, state / GENERATION))
    }

    /// Leave the job that was entered.
    pub(super) fn leave(&self) {
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Sleep until a job other than `seen` is open, or [`Self::stop`]. May return earlier.
    pub(super) fn park(&self, seen: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // With the fence of `open`: the job is seen here, or it sees the count.
        fence(Ordering::SeqCst);
        if is_nothing_new(self.state.load(Ordering::Relaxed), seen) && !self.is_stopped() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        drop(guard);
    }

    /// Wake all sleepers, for the last time.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Whether [`Self::stop`] was called.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Takers that sleep.
    #[cfg(test)]
    pub(super) fn num_sleepers(&self) -> usize {
        self.sleepers.load(Ordering::Relaxed)
    }

    fn wake_all(&self) {
        // Whoever has looked at the state and not yet gone to sleep holds the lock.
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}

fn is_nothing_new(state: u64, seen: u64) -> bool {
    state & OPEN == 0 || state / GENERATION == seen
}
