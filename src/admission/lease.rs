//! A request's hold on its adapter, shared by those who can end it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::adapters::ResidentLease;
use crate::engine::Lease;

/// Keeps an adapter on the device for a request until the engine lets go of it, or until the end of all of its choices
/// has been ordered.
///
/// An order is enough: the slot is emptied by a later order to the same engine, which obeys in turn. So an adapter is
/// free by the time a client can know that its answer is complete, whether or not a step is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedLease(Arc<Mutex<Option<ResidentLease>>>);

impl SharedLease {
    pub(super) fn new(lease: ResidentLease) -> Self {
        Self(Arc::new(Mutex::new(Some(lease))))
    }

    /// Give it back. Only after every choice of the request has ended or its end has been ordered.
    pub(super) fn release(&self) {
        let lease = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Observers of the residency run while it drops, and not under the lock.
        drop(lease);
    }

    /// The engine's part: gives it back when dropped.
    pub(super) fn for_engine(&self) -> Lease {
        Box::new(EnginePart(self.clone()))
    }
}

struct EnginePart(SharedLease);

impl Drop for EnginePart {
    fn drop(&mut self) {
        self.0.release();
    }
}
