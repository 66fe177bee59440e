//! What the async side has left for the engine thread to find before its next step.
//!
//! It holds no more than what may be outstanding: submissions up to the queue limit, one entry per request whose reader
//! wants something, one removal or installation per load, one entry per
//! version that was deleted, one question per caller that waits for the answer. So nobody has to wait for
//! room in it, neither the engine nor those who write, and a full channel cannot make the two wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::events::EventSender;
use super::lease::{Lease, Leftover};
use super::stats::EngineStats;
use crate::scheduler::places::Place;
use crate::types::{AdapterSlot, AdapterVersion, EngineRequest, RequestId};

/// A request to take.
pub(super) struct Submission {
    pub(super) request: EngineRequest,
    pub(super) lease: Option<Lease>,
    pub(super) place: Place,
    pub(super) events: EventSender,
}

/// What is wanted of a request that was submitted.
#[derive(Default)]
pub(super) struct Wish {
    /// It is to end.
    pub(super) abort: bool,
    /// These choices of it are to end.
    pub(super) finished_choices: Vec<u32>,
    /// Its reader has caught up.
    pub(super) resume: bool,
}

/// Everything left since the engine last looked. Kinds are obeyed in this order: whoever writes about a request or a slot
/// has been told before that the engine took it, or wrote of it first.
#[derive(Default)]
pub(super) struct Letters {
    pub(super) submissions: Vec<Submission>,
    pub(super) wishes: BTreeMap<RequestId, Wish>,
    pub(super) removals: Vec<(Vec<AdapterSlot>, oneshot::Sender<Vec<Leftover>>)>,
    /// Versions that are gone for good.
    pub(super) forgotten: BTreeSet<AdapterVersion>,
    /// The channel of installations holds one.
    pub(super) installs: bool,
    pub(super) drains: Vec<oneshot::Sender<()>>,
    pub(super) questions: Vec<oneshot::Sender<EngineStats>>,
    pub(super) stop: bool,
}

#[derive(Default)]
struct Contents {
    letters: Letters,
    any: bool,
    closed: bool,
}

/// Lock order: its lock is the last one taken, and no other is taken while it is held.
#[derive(Default)]
pub(super) struct Mailbox {
    contents: Mutex<Contents>,
    bell: Condvar,
    /// Spares a busy engine the lock.
    posted: AtomicBool,
}

/// The engine has ended.
#[derive(Debug)]
pub(super) struct Closed;

impl Mailbox {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave something and wake the engine if it sleeps.
    pub(super) fn post(&self, write: impl FnOnce(&mut Letters)) -> Result<(), Closed> {
        {
            let mut contents = self.contents();
            if contents.closed {
                return Err(Closed);
            }
            write(&mut contents.letters);
            contents.any = true;
        }
        self.posted.store(true, Ordering::Release);
        self.bell.notify_one();
        Ok(())
    }

    /// What there is; `None` where there is nothing.
    pub(super) fn take(&self) -> Option<Letters> {
        if !self.posted.swap(false, Ordering::AcqRel) {
            return None;
        }
        Some(Self::empty(&mut self.contents()))
    }

    /// Sleep until there is something, at most for `limit`.
    pub(super) fn wait(&self, limit: Option<Duration>) -> Letters {
        let contents = self.contents();
        let nothing = |contents: &mut Contents| !contents.any;
        let mut contents = match limit {
            None => self.bell.wait_while(contents, nothing).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                self.bell.wait_timeout_while(contents, limit, nothing).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        Self::empty(&mut contents)
    }

    fn empty(contents: &mut Contents) -> Letters {
        contents.any = false;
        std::mem::take(&mut contents.letters)
    }

    /// Nobody will look again: what is still here is dropped, which tells those who wait for it.
    pub(super) fn close(&self) {
        let rest = {
            let mut contents = self.contents();
            contents.closed = true;
            Self::empty(&mut contents)
        };
        // Leases among it take locks of their own.
        drop(rest);
    }
}
