//! A request's hold on its adapter, shared by those who can end it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::adapters::ResidentLease;
use crate::engine::{HeldAdapter, Lease};
use crate::types::AdapterFault;

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

    /// Every choice of the request has ended well, or its end has been ordered: give it back.
    pub(super) fn release(&self) {
        if let Some(mut lease) = self.take() {
            lease.judge(Ok(()));
        }
    }

    /// Observers of the residency run while what this returns is dropped, and not under the lock.
    fn take(&self) -> Option<ResidentLease> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The engine's part: gives it back when dropped.
    pub(super) fn for_engine(&self) -> Lease {
        Box::new(EnginePart(self.clone()))
    }
}

struct EnginePart(SharedLease);

impl HeldAdapter for EnginePart {
    fn judge(&mut self, verdict: Result<(), AdapterFault>) {
        if let Some(lease) = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            lease.judge(verdict);
        }
    }
}

impl Drop for EnginePart {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}
