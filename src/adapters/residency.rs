//! Which versions are on the device: decides who gets a slot, who waits and who leaves. Moves no bytes itself.
//!
//! ```text
//!            Want::poll = Load          LoadTicket::begin_install      InstallTicket::complete
//!   Stored ───────────────────▶ Loading ─────────────────────────────▶ (removals, install) ──▶ Resident
//!      ▲                                                                                         │
//!      └── InstallTicket::complete / evicted, RemovalTicket::done ── Evicting ◀── chosen as a victim, retired, unloaded
//! ```
//!
//! - A slot and its bytes belong to a version until the engine has *carried out* its removal; only then can another
//!   version have them.
//! - Victims are the least recently used versions that are neither leased nor pinned nor waited for.
//! - Requests that find no room wait in line, fairly between clients and for each in the order of arrival. When every resident version is leased, the first
//!   in line marks one to *drain*: newer requests for it queue behind, so a hot adapter cannot starve a cold one.
//! - Nothing here blocks or knows an async runtime. A [`Want`] that is pending is woken when its next poll may give
//!   another answer: its version has come, failed or become free to take, or it is first in line and there may be room.
//!   Others sleep on.

mod derived;
mod faults;
mod knowledge;
mod line;
mod load;
mod loads;
mod shared;
mod sleepers;
mod state;
mod status;
mod tickets;

pub use faults::SetAside;
pub use status::{AdapterState, ResidencyLimits, ResidencyStats, VersionStatus};
pub use tickets::{InstallTicket, LoadTicket, RemovalTicket, ResidentLease};

use std::sync::{Arc, Mutex};
use std::task::Waker;

use self::line::WaiterId;
use self::shared::Shared;
use self::state::{Decision, State};
use super::error::AdapterError;
use super::events::{EventLog, Signals};
use super::lease::{AdapterLease, Content};
use super::sync::lock;
use crate::types::{AdapterFacts, AdapterVersion, ClientKey};

/// The answer to [`Want::poll`].
#[derive(Debug)]
pub enum Acquire {
    /// It is on the device and stays there while the lease lives.
    Ready(ResidentLease),
    /// The caller is to have it loaded, then polls again.
    Load(LoadTicket),
    /// Being loaded, or no room yet: the waker is woken when it is worth another poll.
    Pending,
}

/// Decides residency. Cheap to clone.
#[derive(Clone)]
pub struct Residency {
    shared: Arc<Shared>,
}

impl Residency {
    /// An empty device.
    #[must_use]
    pub fn new(limits: ResidencyLimits, events: Arc<EventLog>) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new(limits)), events }) }
    }

    /// Ask for the version of `lease` on the device. `bytes` is what it is expected to take; it counts only until
    /// the true number is known ([`LoadTicket::begin_install`], `Residency::learn`). Where there is no room, the wish
    /// waits for the turn of `client`.
    #[must_use]
    pub fn want(&self, lease: AdapterLease, bytes: u64, client: ClientKey) -> Want {
        let parts = match lease.content() {
            Content::Stored => None,
            Content::Mix(parts) => Some(parts.iter().map(|part| part.lease.version()).collect()),
            Content::Sent(_) => Some(Vec::new()),
        };
        let waiter = self.shared.change(|state| {
            if let Some(parts) = parts {
                state.derived.arrive(lease.version(), parts);
            }
            state.arrive(client)
        });
        Want { shared: Arc::clone(&self.shared), lease, bytes, waiter }
    }

    /// What is known of a version.
    #[must_use]
    pub fn status(&self, version: AdapterVersion) -> VersionStatus {
        lock(&self.shared.state).status(version)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> ResidencyStats {
        lock(&self.shared.state).stats()
    }

    /// Remember what a version compiled to, so that it is loaded with the right reservation.
    pub(super) fn learn(&self, version: AdapterVersion, facts: Arc<AdapterFacts>) -> Signals {
        self.shared.change_quietly(|state| state.learn(version, facts)).1
    }

    /// The next removal that no load carries with it (retired and unloaded versions, victims of a failed load).
    #[must_use]
    pub fn take_removal(&self) -> Option<RemovalTicket> {
        let (version, slot) = self.shared.change(State::take_removal)?;
        Some(RemovalTicket::new(Arc::clone(&self.shared), version, slot))
    }

    /// Set a version aside after so many requests in a row have failed on it; 0 never does.
    pub fn limit_faults(&self, max: u32) {
        self.shared.change(|state| state.faults.limit(max));
    }

    /// Whether new requests for a version are to be refused, and why.
    #[must_use]
    pub fn set_aside(&self, version: AdapterVersion) -> Option<SetAside> {
        lock(&self.shared.state).faults.set_aside(version)
    }

    /// Give a version that was set aside another chance.
    pub(super) fn pardon(&self, version: AdapterVersion) -> Signals {
        self.shared.change_quietly(|state| state.pardon(version)).1
    }

    /// Versions whose files have gone since the last call: whoever keeps something computed with them can drop it.
    #[must_use]
    pub fn take_forgotten(&self) -> Vec<AdapterVersion> {
        self.shared.change(State::take_forgotten)
    }

    /// A pinned version is never evicted once it is resident.
    pub(super) fn set_pinned(&self, version: AdapterVersion, pinned: bool) -> Signals {
        self.shared.change_quietly(|state| state.set_pinned(version, pinned)).1
    }

    /// A retired version leaves the device as soon as no request runs on it.
    pub(super) fn set_retired(&self, version: AdapterVersion, retired: bool) -> Signals {
        self.shared.change_quietly(|state| state.set_retired(version, retired)).1
    }

    /// Forget what was known of a version whose files are gone.
    pub(super) fn forget(&self, version: AdapterVersion) -> Signals {
        self.shared.change_quietly(|state| state.forget(version)).1
    }

    /// Evict a version now. False: it is not on the device.
    pub(super) fn unload(&self, version: AdapterVersion) -> Result<bool, AdapterError> {
        self.shared.change(|state| state.unload(version))
    }
}

/// A request's wish for a version on the device: a place in the queue. Dropping it gives the place up.
pub struct Want {
    shared: Arc<Shared>,
    lease: AdapterLease,
    bytes: u64,
    waiter: WaiterId,
}

impl Want {
    /// The version wanted.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.lease.version()
    }

    /// Is it there, or who brings it? Where that is not known yet, `waker` is woken when it may be; of several polls only
    /// the last one's is. The result of a failed load is reported once to every `Want` that waited for it; polling again
    /// asks for another load.
    ///
    /// # Errors
    /// [`AdapterError::LoadFailed`], [`AdapterError::LoadAbandoned`], and when waiting would not help:
    /// [`AdapterError::TooLargeForDevice`], [`AdapterError::PinnedFull`].
    pub fn poll(&self, waker: &Waker) -> Result<Acquire, AdapterError> {
        let version = self.version();
        let decision = self.shared.change(|state| state.poll(self.waiter, version, self.bytes, waker))?;
        Ok(match decision {
            Decision::Ready { slot, facts } => {
                Acquire::Ready(ResidentLease::new(Arc::clone(&self.shared), self.lease.clone(), slot, facts))
            }
            Decision::Load { load } => {
                Acquire::Load(LoadTicket::new(Arc::clone(&self.shared), self.lease.clone(), load))
            }
            Decision::Pending => Acquire::Pending,
        })
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        let version = self.version();
        self.shared.change(|state| state.leave(self.waiter, version));
    }
}

#[cfg(test)]
mod tests;
