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
//! - Nothing here blocks or knows an async runtime. [`AdapterObserver::on_capacity`](super::AdapterObserver) says when
//!   to poll again; register interest before polling and no wake-up is lost.

mod faults;
mod line;
mod loads;
mod state;
mod tickets;

pub use faults::SetAside;
pub use tickets::{InstallTicket, LoadTicket, RemovalTicket, ResidentLease};

use std::sync::{Arc, Mutex};

use self::state::{Decision, State, WaiterId};
use super::error::AdapterError;
use super::events::{EventLog, Signals};
use super::lease::AdapterLease;
use super::sync::lock;
use crate::types::{AdapterFacts, AdapterSlot, AdapterVersion, ClientKey};

/// How much of the device adapters may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidencyLimits {
    /// Adapter slots.
    pub max_resident_adapters: u32,
    /// Bytes of all resident adapters.
    pub device_bytes: u64,
}

/// Where a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterState {
    /// In the store only.
    Stored,
    /// On its way to the device.
    Loading,
    /// On the device.
    Resident,
    /// Leaving the device.
    Evicting,
}

/// What is known of a version.
#[derive(Clone, Debug)]
pub struct VersionStatus {
    /// Where it is.
    pub state: AdapterState,
    /// Its slot, while it has one.
    pub slot: Option<AdapterSlot>,
    /// Requests running on it.
    pub leases: usize,
    /// What it compiled to, once it has been compiled in this process.
    pub facts: Option<Arc<AdapterFacts>>,
    /// Why it is set aside, or why the last load failed; cleared by a load that works.
    pub last_error: Option<String>,
}

/// Counters for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidencyStats {
    /// Versions on the device, those being evicted included.
    pub resident: usize,
    /// Versions being loaded.
    pub loading: usize,
    /// Slots in use.
    pub slots_used: usize,
    /// Slots in all.
    pub slots_total: usize,
    /// Bytes in use or reserved.
    pub bytes_used: u64,
    /// The budget.
    pub bytes_total: u64,
    /// Requests running on resident versions.
    pub leases: usize,
    /// Requests waiting for room.
    pub waiting: usize,
    /// Loads completed since start.
    pub loads: u64,
    /// Evictions carried out since start.
    pub evictions: u64,
    /// Polls that found the version resident, since start.
    pub hits: u64,
    /// Versions set aside now.
    pub set_aside: usize,
}

/// The answer to [`Want::poll`].
#[derive(Debug)]
pub enum Acquire {
    /// It is on the device and stays there while the lease lives.
    Ready(ResidentLease),
    /// The caller is to have it loaded, then polls again.
    Load(LoadTicket),
    /// Being loaded, or no room yet: poll again after [`on_capacity`](super::AdapterObserver::on_capacity).
    Pending,
}

/// Decides residency. Cheap to clone.
#[derive(Clone)]
pub struct Residency {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    events: Arc<EventLog>,
}

impl Shared {
    /// Run `change` under the lock, then tell the observers what it brought about.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, signals) = self.change_quietly(change);
        self.events.ring(signals);
        result
    }

    /// Run `change` under the lock, for a caller that holds one of its own: it tells the observers when it has let go.
    fn change_quietly<T>(&self, change: impl FnOnce(&mut State) -> T) -> (T, Signals) {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let state::Signals { events, capacity } = state.take_signals();
        // Under the lock, so that the log has the order in which things happened.
        for (version, kind) in &events {
            self.events.push(None, *version, *kind);
        }
        (result, Signals { events: !events.is_empty(), capacity, garbage: false })
    }
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
        let waiter = self.shared.change(|state| state.arrive(client));
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

    /// Is it there, or who brings it? The result of a failed load is reported once to every `Want` that waited for
    /// it; polling again asks for another load.
    ///
    /// # Errors
    /// [`AdapterError::LoadFailed`], [`AdapterError::LoadAbandoned`], and when waiting would not help:
    /// [`AdapterError::TooLargeForDevice`], [`AdapterError::PinnedFull`].
    pub fn poll(&self) -> Result<Acquire, AdapterError> {
        let version = self.version();
        let decision = self.shared.change(|state| state.poll(self.waiter, version, self.bytes))?;
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
