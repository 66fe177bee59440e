//! What [`Residency`](super::Residency) hands out. Each is RAII: dropping it is the failure path.

use std::fmt;
use std::sync::Arc;

use super::super::error::{AdapterError, LoadFailure};
use super::super::lease::AdapterLease;
use super::load::LoadId;
use super::shared::Shared;
use crate::types::{AdapterBinding, AdapterFacts, AdapterFault, AdapterSlot, AdapterTask, AdapterVersion};

/// A version on the device, held there for one request. Keep it until the engine has let go of the request: the slot
/// may be given to another version as soon as the last one drops.
pub struct ResidentLease {
    shared: Arc<Shared>,
    lease: AdapterLease,
    slot: AdapterSlot,
    facts: Arc<AdapterFacts>,
    verdict: Option<Result<(), AdapterFault>>,
}

impl ResidentLease {
    pub(super) fn new(shared: Arc<Shared>, lease: AdapterLease, slot: AdapterSlot, facts: Arc<AdapterFacts>) -> Self {
        Self { shared, lease, slot, facts, verdict: None }
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.lease.version()
    }

    /// Its place on the device.
    #[must_use]
    pub fn slot(&self) -> AdapterSlot {
        self.slot
    }

    /// Say how the request went, where that says something of the version: as it is dropped, faults in a row are
    /// counted.
    pub fn judge(&mut self, verdict: Result<(), AdapterFault>) {
        self.verdict = Some(verdict);
    }

    /// What it is for.
    #[must_use]
    pub fn task(&self) -> AdapterTask {
        self.facts.task
    }

    /// Tokens of its vocabulary where the base has another number of them.
    #[must_use]
    pub fn vocab_size(&self) -> Option<u32> {
        self.facts.vocab_size
    }

    /// What the engine needs to know for a request with this prompt.
    #[must_use]
    pub fn binding(&self, prompt: &[u32]) -> AdapterBinding {
        self.facts.bind(self.version(), self.slot, prompt)
    }
}

impl Drop for ResidentLease {
    fn drop(&mut self) {
        let version = self.version();
        self.shared.change(|state| state.release(version, self.verdict));
    }
}

impl fmt::Debug for ResidentLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResidentLease").field("version", &self.version()).field("slot", &self.slot).finish()
    }
}

/// A load under way. Dropping it while open gives the load up.
struct Ticket {
    shared: Arc<Shared>,
    lease: AdapterLease,
    load: LoadId,
    open: bool,
}

impl Ticket {
    fn fail(mut self, error: LoadFailure) {
        self.open = false;
        self.shared.change(|state| state.fail(self.load, Some(error)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.shared.change(|state| state.fail(self.load, None));
        }
    }
}

/// Permission and duty to load a version. Read, check and compile first, then [`LoadTicket::begin_install`]. Until
/// then nothing has left the device, and dropping the ticket puts the victims chosen for it back.
#[must_use = "dropping it gives the load up"]
pub struct LoadTicket {
    ticket: Ticket,
}

impl LoadTicket {
    pub(super) fn new(shared: Arc<Shared>, lease: AdapterLease, load: LoadId) -> Self {
        Self { ticket: Ticket { shared, lease, load, open: true } }
    }

    /// The version to load. The ticket keeps its files in the store.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.ticket.lease.version()
    }

    /// A lease on the version, with which its files can be read.
    #[must_use]
    pub fn lease(&self) -> &AdapterLease {
        &self.ticket.lease
    }

    /// The version is compiled to `facts`: make the reservation fit [`AdapterFacts::device_bytes`] and go on to
    /// change the device.
    ///
    /// # Errors
    /// [`AdapterError::TooLargeForDevice`] or [`AdapterError::Outgrown`]. The load is over then and the size
    /// remembered; those who wait poll again.
    pub fn begin_install(mut self, facts: Arc<AdapterFacts>) -> Result<InstallTicket, AdapterError> {
        let (load, version) = (self.ticket.load, self.version());
        match self.ticket.shared.change(|state| state.begin_install(load, version, &facts)) {
            Ok((slot, evict)) => Ok(InstallTicket { ticket: self.ticket, facts, slot, evict }),
            Err(error) => {
                self.ticket.open = false;
                Err(error)
            }
        }
    }

    /// Report why it could not be loaded to everyone who waits for it.
    pub fn fail(self, error: LoadFailure) {
        self.ticket.fail(error);
    }
}

impl fmt::Debug for LoadTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadTicket").field("version", &self.version()).finish()
    }
}

/// Permission to change the device: remove everything in [`InstallTicket::evict`], then install into
/// [`InstallTicket::slot`].
///
/// Whatever a failed installation left in the slot has to be gone before the ticket is dropped. If the removals were
/// carried out and the installation then failed, say [`InstallTicket::evicted`] first; otherwise they come back
/// through [`Residency::take_removal`](super::Residency::take_removal), so removing an empty slot must do no harm.
#[must_use = "dropping it gives the load up"]
pub struct InstallTicket {
    ticket: Ticket,
    facts: Arc<AdapterFacts>,
    slot: AdapterSlot,
    evict: Vec<(AdapterSlot, AdapterVersion)>,
}

impl InstallTicket {
    /// The version to install.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.ticket.lease.version()
    }

    /// Where to install it; empty once the removals are carried out.
    #[must_use]
    pub fn slot(&self) -> AdapterSlot {
        self.slot
    }

    /// What to remove first.
    #[must_use]
    pub fn evict(&self) -> &[(AdapterSlot, AdapterVersion)] {
        &self.evict
    }

    /// The engine has carried out the removals.
    pub fn evicted(&mut self) {
        let load = self.ticket.load;
        self.ticket.shared.change(|state| state.evicted(load));
        self.evict.clear();
    }

    /// The engine has carried out the removals and the installation.
    pub fn complete(mut self) {
        self.ticket.open = false;
        let (load, facts) = (self.ticket.load, Arc::clone(&self.facts));
        self.ticket.shared.change(|state| state.complete(load, facts));
    }

    /// Report why it could not be installed to everyone who waits for it.
    pub fn fail(self, error: LoadFailure) {
        self.ticket.fail(error);
    }
}

impl fmt::Debug for InstallTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstallTicket")
            .field("version", &self.version())
            .field("slot", &self.slot)
            .field("evict", &self.evict)
            .finish()
    }
}

/// Duty to remove a version from the device. Dropping it without [`RemovalTicket::done`] hands the duty on.
#[must_use = "the slot stays taken until the removal is done"]
#[derive(Debug)]
pub struct RemovalTicket {
    duty: RemovalDuty,
    slot: AdapterSlot,
}

struct RemovalDuty {
    shared: Arc<Shared>,
    version: AdapterVersion,
    open: bool,
}

impl RemovalTicket {
    pub(super) fn new(shared: Arc<Shared>, version: AdapterVersion, slot: AdapterSlot) -> Self {
        Self { duty: RemovalDuty { shared, version, open: true }, slot }
    }

    /// The version to remove.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.duty.version
    }

    /// Where it lies.
    #[must_use]
    pub fn slot(&self) -> AdapterSlot {
        self.slot
    }

    /// The engine has carried out the removal.
    pub fn done(mut self) {
        self.duty.open = false;
        let version = self.duty.version;
        self.duty.shared.change(|state| state.removed(version));
    }
}

impl Drop for RemovalDuty {
    fn drop(&mut self) {
        if self.open {
            let version = self.version;
            self.shared.change(|state| state.hand_on_removal(version));
        }
    }
}

impl fmt::Debug for RemovalDuty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemovalDuty").field(&self.version).finish()
    }
}
