//! The adapters of this server: names, the versions they stand for, and everything that changes either.
//!
//! The registry joins the parts of this room. A name is an alias; replacing is one swap of it, and requests that hold
//! a lease keep the version they resolved. Changes are made one at a time and are durable before they become visible;
//! resolving a name takes one shard of a concurrent map and never waits for a change on the disk.

mod alias;
mod base;
mod mixing;
mod using;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use dashmap::DashMap;

use self::alias::{Alias, Present};
pub use self::alias::{OwnChatTemplate, OwnTokensFile};
pub use self::mixing::{ResolvedMix, ResolvedPart};
pub use self::using::ResolvedAdapter;
use super::catalog::Catalog;
use super::error::AdapterError;
use super::events::{AdapterEventKind, EventLog, Signals};
use super::files::{Expected, StoreLimits, UploadHeader};
use super::fs::{DiskFs, StoreFs};
use super::lease::LeaseTable;
use super::pins::{Pin, PinLimits, Pins};
use super::published::Published;
use super::residency::{Residency, ResidencyLimits, VersionStatus};
use super::store::{AdapterStore, unix_ms};
use super::stored::StoredAdapter;
use super::sync::lock;
use super::upload_id::UploadId;
use super::uploads::{Begin, Staged, UploadStatus, Uploads};
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, BaseDigest, ClientKey};

/// What the registry is built with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryLimits {
    /// Of uploads and the store.
    pub store: StoreLimits,
    /// Of the device.
    pub residency: ResidencyLimits,
    /// Events kept for watchers that read late.
    pub event_history: usize,
}

/// All there is to say about a name.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// Name, version, files, time, pin.
    pub stored: StoredAdapter,
    /// Where the version is, what it compiled to, its last error.
    pub status: VersionStatus,
    /// The base it belongs to, where that is known.
    pub base: Option<BaseDigest>,
    /// That is not the base that is served: requests for it are refused with this.
    pub mismatch: Option<Arc<AdapterError>>,
}

/// Names, versions, leases, residency, uploads. Shared by `Arc`.
pub struct AdapterRegistry {
    store: AdapterStore,
    uploads: Uploads,
    residency: Residency,
    leases: Arc<LeaseTable>,
    events: Arc<EventLog>,
    /// The hot path.
    aliases: DashMap<AdapterName, Alias>,
    /// The same names with their particulars, in order.
    catalog: Mutex<Catalog>,
    pins: Mutex<Pins>,
    /// Held through every change of a name: changes are durable and visible in one order. First in the lock order (see
    /// [`super::sync`]).
    changes: Mutex<()>,
    /// Unset until the base is loaded.
    present: OnceLock<Present>,
}

impl AdapterRegistry {
    /// A registry of all that `store` holds.
    #[must_use]
    pub fn new(store: impl Into<AdapterStore>, limits: RegistryLimits) -> Self {
        Self::with_fs(store.into(), limits, Arc::new(DiskFs))
    }

    /// As [`AdapterRegistry::new`], staging uploads on another disk.
    #[must_use]
    pub fn with_fs(store: AdapterStore, limits: RegistryLimits, fs: Arc<dyn StoreFs>) -> Self {
        let events = Arc::new(EventLog::new(limits.event_history));
        let uploads = Uploads::new(store.objects.staging().to_owned(), fs, limits.store);
        let residency = Residency::new(limits.residency, Arc::clone(&events));
        let leases = LeaseTable::new(Arc::clone(&events));
        let catalog = Catalog::new(store.names.list());
        let aliases = catalog.all().map(|found| (found.name.clone(), Alias::of(found))).collect();
        for pinned in catalog.pinned() {
            // Nobody observes yet.
            let _ = residency.set_pinned(pinned.version, true);
        }
        let (catalog, changes, pins) = (Mutex::new(catalog), Mutex::new(()), Mutex::new(Pins::new(PinLimits::NONE)));
        Self { store, uploads, residency, leases, events, aliases, catalog, pins, changes, present: OnceLock::new() }
    }

    /// Allow no more to be pinned than this. What a store has pinned already stays so.
    #[must_use]
    pub fn with_pin_limits(self, pins: PinLimits) -> Self {
        Self { pins: Mutex::new(Pins::new(pins)), ..self }
    }

    /// The event log; also where observers register.
    #[must_use]
    pub fn events(&self) -> &Arc<EventLog> {
        &self.events
    }

    /// Residency on the device.
    #[must_use]
    pub fn residency(&self) -> &Residency {
        &self.residency
    }

    /// Uploads in progress.
    #[must_use]
    pub fn uploads(&self) -> &Uploads {
        &self.uploads
    }

    // --- looking --------------------------------------------------------------------------------------------------

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.catalog).len()
    }

    /// No names at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leases alive on all versions: requests, waiting requests and loads.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.leases.total()
    }

    /// All there is to say about a name.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], [`AdapterError::Unreadable`], [`AdapterError::NewerFormat`].
    pub fn get(&self, name: &AdapterName) -> Result<AdapterInfo, AdapterError> {
        let stored = lock(&self.catalog).get(name).cloned();
        stored.map(|stored| self.info(stored)).ok_or_else(|| self.absent(name))
    }

    /// Where a name is not known: is it certain that there is none?
    fn absent(&self, name: &AdapterName) -> AdapterError {
        self.store.names.trouble(name).unwrap_or_else(|| AdapterError::NotFound { name: name.clone() })
    }

    /// Up to `limit` adapters after the name `after`, by name. A page shorter than `limit` is the last.
    #[must_use]
    pub fn list(&self, after: Option<&AdapterName>, limit: usize) -> Vec<AdapterInfo> {
        let page: Vec<_> = lock(&self.catalog).after(after).take(limit).cloned().collect();
        page.into_iter().map(|stored| self.info(stored)).collect()
    }

    /// The names that stand for a version now, in order.
    #[must_use]
    pub fn names_of(&self, version: AdapterVersion) -> Vec<AdapterName> {
        lock(&self.catalog).of_version(version).map(|stored| stored.name.clone()).collect()
    }

    fn info(&self, stored: StoredAdapter) -> AdapterInfo {
        let mut status = self.residency.status(stored.version);
        if status.facts.is_none() {
            status.facts = stored.compiled.as_ref().map(|compiled| Arc::clone(&compiled.facts));
        }
        let own = stored.compiled.as_ref().map(|compiled| compiled.base);
        let base = own.or_else(|| self.present.get().map(|present| present.adopted));
        let mismatch = self.check_base(&stored.name, Alias::of(&stored)).err().map(Arc::new);
        AdapterInfo { stored, status, base, mismatch }
    }

    // --- changing (blocks on the disk) ----------------------------------------------------------------------------

    /// Open, resume or recognise an upload. The compare and set is tried first, so that nobody sends a gigabyte in
    /// vain; it decides only when the upload is published.
    ///
    /// # Errors
    /// Whatever the header breaks, limits, the compare and set, the disk.
    pub fn begin_upload(&self, header: UploadHeader, now: Instant) -> Result<Begin, AdapterError> {
        let checked = header.check(self.uploads.limits())?;
        let version = checked.version;
        self.uploads.begin(checked, header.upload_id, header.client, now, || {
            let actual = lock(&self.catalog).get(&header.name).map(|stored| stored.version);
            header.expected.check(&header.name, actual)?;
            // Its size is not known yet; whether one more may be pinned at all is.
            let pin = Pin { name: &header.name, version, bytes: 0, client: header.client };
            if header.pin { self.check_pin(&pin) } else { Ok(()) }
        })
    }

    /// Committed offsets of an open upload, or the result of a finished one.
    ///
    /// # Errors
    /// [`AdapterError::UnknownUpload`].
    pub fn upload_status(&self, upload_id: &UploadId) -> Result<UploadStatus, AdapterError> {
        self.uploads.status(upload_id)
    }

    /// Make a staged upload, which compiled to `facts`, an adapter: durable first, then visible to new requests at
    /// once. `now` becomes its time of creation.
    ///
    /// # Errors
    /// The compare and set, quotas, the disk. The upload is discarded then.
    pub fn publish(&self, mut staged: Staged, facts: AdapterFacts, now: SystemTime) -> Result<Published, AdapterError> {
        let created_ms = unix_ms(now);
        staged.settle()?;
        let (name, version, files, pinned) = (staged.name().clone(), staged.version(), staged.files(), staged.pin());
        let facts = Arc::new(facts);
        let mut signals = Signals::default();
        let compiled = self.compiled(&facts);
        let adapter = StoredAdapter { name: name.clone(), version, files, created_ms, pinned, compiled };
        let result = {
            let _changes = lock(&self.changes);
            let pin = Pin { name: &name, version, bytes: facts.device_bytes, client: staged.client() };
            if pinned {
                self.check_pin(&pin)?;
            }
            self.leases.revive(version);
            signals |= self.residency.set_retired(version, false);
            let result = self.store.publish(staged.dir(), adapter, staged.expected());
            if result.is_ok() {
                signals |= self.residency.learn(version, Arc::clone(&facts));
                signals |= self.residency.pardon(version);
                lock(&self.pins).own(&name, pinned.then_some(pin.client));
            }
            signals |= self.follow_store(&name);
            signals |= self.retire_if_unnamed(version);
            result
        };
        self.after_change(signals);
        let bound = result?;
        let replaced = bound.previous.filter(|previous| *previous != version);
        let created = bound.previous.is_none();
        let published = Published { adapter: bound.adapter, facts, created, replaced };
        staged.remember(published.clone());
        Ok(published)
    }

    /// Remove a name. New requests no longer find it; running ones keep their version, whose files go when the last
    /// of them ends.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the compare and set, the disk.
    pub fn delete(&self, name: &AdapterName, expected: Expected) -> Result<StoredAdapter, AdapterError> {
        let (result, signals) = {
            let _changes = lock(&self.changes);
            let result = self.store.names.unbind(name, expected);
            (result, self.follow_store(name))
        };
        self.after_change(signals);
        result
    }

    /// Pin a name for a client, durably. A pinned adapter is not evicted once it is on the device.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], [`AdapterError::PinLimit`], [`AdapterError::PinsOfClient`], the disk.
    pub fn pin(&self, name: &AdapterName, client: ClientKey) -> Result<StoredAdapter, AdapterError> {
        self.set_pinned(name, Some(client))
    }

    /// Unpin a name, durably.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], the disk.
    pub fn unpin(&self, name: &AdapterName) -> Result<StoredAdapter, AdapterError> {
        self.set_pinned(name, None)
    }

    fn set_pinned(&self, name: &AdapterName, client: Option<ClientKey>) -> Result<StoredAdapter, AdapterError> {
        let (result, signals) = {
            let _changes = lock(&self.changes);
            let stored = lock(&self.catalog).get(name).cloned();
            if let (Some(client), Some(stored)) = (client, stored.filter(|stored| !stored.pinned)) {
                let bytes = self.device_bytes(&stored);
                self.check_pin(&Pin { name, version: stored.version, bytes, client })?;
            }
            let result = self.store.names.set_pinned(name, client.is_some());
            if result.is_ok() {
                lock(&self.pins).own(name, client);
            }
            (result, self.follow_store(name))
        };
        self.after_change(signals);
        result
    }

    /// Whether a name may be pinned beside the others.
    fn check_pin(&self, pin: &Pin<'_>) -> Result<(), AdapterError> {
        let (pins, catalog) = (lock(&self.pins), lock(&self.catalog));
        pins.check(pin, &catalog, |stored| self.device_bytes(stored))
    }

    /// What a version takes on the device; until it has been compiled once, its files stand for it.
    fn device_bytes(&self, stored: &StoredAdapter) -> u64 {
        let facts = self.residency.status(stored.version).facts;
        facts.map_or_else(|| stored.bytes(), |facts| facts.device_bytes)
    }

    /// Unpin a name and take its version off the device; the next request brings it back. False: it was not there.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`], [`AdapterError::InUse`] while requests run on it: its pin stays as it is then; the
    /// disk.
    pub fn unload(&self, name: &AdapterName) -> Result<bool, AdapterError> {
        let version = self.get(name)?.stored.version;
        let was_there = self.residency.unload(version)?;
        self.unpin(name)?;
        Ok(was_there)
    }

    /// Remove the files of versions that have neither a name nor a lease; returns how many versions went. Call it on
    /// [`on_garbage`](super::AdapterObserver::on_garbage).
    ///
    /// # Errors
    /// The disk; what could not be removed goes at the next start.
    pub fn collect_garbage(&self) -> Result<usize, AdapterError> {
        let (mut removed, mut failure, mut signals) = (0, None, Signals::default());
        {
            let _changes = lock(&self.changes);
            for version in self.leases.take_garbage() {
                signals |= self.residency.forget(version);
                match self.store.remove_object(version) {
                    Ok(existed) => removed += usize::from(existed),
                    Err(error) => failure = Some(error),
                }
            }
        }
        self.events.ring(signals);
        failure.map_or(Ok(removed), Err)
    }

    /// Make the catalog and the alias of a name what the store says, whether or not a change succeeded: a failure of
    /// the disk can come after the change was made. The caller holds `changes`.
    fn follow_store(&self, name: &AdapterName) -> Signals {
        let stored = self.store.names.get(name);
        match &stored {
            Some(stored) => drop(self.aliases.insert(name.clone(), Alias::of(stored))),
            None => drop(self.aliases.remove(name)),
        }
        let before = {
            let mut catalog = lock(&self.catalog);
            match stored.clone() {
                Some(stored) => catalog.insert(stored),
                None => catalog.remove(name),
            }
        };
        self.log_change(name, before.as_ref(), stored.as_ref());
        let mut signals = Signals { events: true, ..Signals::default() };
        for version in [&before, &stored].into_iter().flatten().map(|adapter| adapter.version) {
            signals |= self.retire_if_unnamed(version);
        }
        signals
    }

    fn log_change(&self, name: &AdapterName, before: Option<&StoredAdapter>, after: Option<&StoredAdapter>) {
        let push = |version, kind| self.events.push(Some(name.clone()), version, kind);
        match (before, after) {
            (None, Some(after)) => push(after.version, AdapterEventKind::Created),
            (Some(before), None) => push(before.version, AdapterEventKind::Deleted),
            (Some(before), Some(after)) if before.version != after.version => {
                push(after.version, AdapterEventKind::Replaced { previous: before.version });
            }
            (Some(before), Some(after)) if before.pinned != after.pinned => {
                push(after.version, AdapterEventKind::Pinned { pinned: after.pinned });
            }
            (Some(before), Some(after)) if before.compiled != after.compiled => {
                push(after.version, AdapterEventKind::Described);
            }
            _ => {}
        }
    }

    /// Bring pins and the end of a version in line with the names that stand for it. The caller holds `changes`.
    fn retire_if_unnamed(&self, version: AdapterVersion) -> Signals {
        let (named, pinned) = {
            let catalog = lock(&self.catalog);
            let mut named = catalog.of_version(version).peekable();
            (named.peek().is_some(), named.any(|stored| stored.pinned))
        };
        let mut signals = self.residency.set_pinned(version, pinned);
        if !named {
            signals |= self.leases.retire(version);
            signals |= self.residency.set_retired(version, true);
        }
        signals
    }

    /// Tell the world, and clean up what the change made superfluous. The caller holds no lock any more.
    fn after_change(&self, signals: Signals) {
        self.events.ring(signals);
        if let Err(error) = self.collect_garbage() {
            tracing::warn!(%error, "could not remove the files of a version without a name");
        }
    }
}

#[cfg(test)]
mod tests;
