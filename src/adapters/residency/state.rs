//! The decisions, as a plain state machine: no lock, no callback, no clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::task::Waker;

use super::super::budget::{DeviceBudget, Reservation};
use super::super::error::AdapterError;
use super::super::events::AdapterEventKind;
use super::super::eviction::LruOrder;
use super::super::slots::SlotPool;
use super::derived::DerivedVersions;
use super::faults::FaultLog;
use super::line::{Line, WaiterId};
use super::load::{Failure, Load, LoadId};
use super::sleepers::Sleepers;
use super::status::{ResidencyLimits, ResidencyStats};
use crate::types::{AdapterFacts, AdapterFault, AdapterSlot, AdapterVersion, ClientKey};

pub(super) enum Decision {
    Ready { slot: AdapterSlot, facts: Arc<AdapterFacts> },
    Load { load: LoadId },
    Pending,
}

/// What the observers are to be told once the lock is free.
#[derive(Default)]
pub(super) struct Signals {
    pub(super) events: Vec<(AdapterVersion, AdapterEventKind)>,
    /// There may be something for `take_removal`, or for `take_forgotten`.
    pub(super) removals: bool,
    pub(super) wakers: Vec<Waker>,
}

/// A version with business on the device. Waiters that were promised it hold *claims*, which keep it from being
/// evicted between the end of its load and their next poll.
pub(super) enum Entry {
    Loading { load: LoadId, claims: BTreeSet<WaiterId> },
    Resident(Resident),
    Evicting { resident: Resident, remover: Remover },
}

pub(super) struct Resident {
    pub(super) slot: AdapterSlot,
    pub(super) reservation: Reservation,
    pub(super) facts: Arc<AdapterFacts>,
    pub(super) leases: usize,
    pub(super) claims: BTreeSet<WaiterId>,
}

impl Resident {
    fn is_idle(&self) -> bool {
        self.leases == 0 && self.claims.is_empty()
    }
}

/// Whose duty a removal is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Remover {
    /// Free to be taken by a load or by `take_removal`.
    Nobody,
    Load,
    RemovalTicket,
}

#[derive(Default)]
pub(super) struct Known {
    pub(super) facts: Option<Arc<AdapterFacts>>,
    pub(super) bytes: Option<u64>,
    pub(super) last_error: Option<String>,
}

pub(super) struct State {
    pub(super) slots: SlotPool,
    pub(super) budget: DeviceBudget,
    pub(super) lru: LruOrder,
    pub(super) entries: HashMap<AdapterVersion, Entry>,
    pub(super) loads: HashMap<LoadId, Load>,
    pub(super) known: HashMap<AdapterVersion, Known>,
    pub(super) failures: HashMap<WaiterId, Failure>,
    pub(super) faults: FaultLog,
    pub(super) signals: Signals,
    pub(super) stats: ResidencyStats,
    pub(super) pinned: HashSet<AdapterVersion>,
    pub(super) retired: HashSet<AdapterVersion>,
    pub(super) derived: DerivedVersions,
    /// Leased versions on which newer requests wait, so that the first in line gets their place.
    draining: HashSet<AdapterVersion>,
    pub(super) line: Line,
    pub(super) sleepers: Sleepers,
    /// Gone for good, and nobody has asked yet.
    pub(super) forgotten: Vec<AdapterVersion>,
    next_id: u64,
}

impl State {
    pub(super) fn new(limits: ResidencyLimits) -> Self {
        Self {
            slots: SlotPool::new(limits.max_resident_adapters),
            budget: DeviceBudget::new(limits.device_bytes),
            lru: LruOrder::default(),
            entries: HashMap::new(),
            loads: HashMap::new(),
            known: HashMap::new(),
            failures: HashMap::new(),
            faults: FaultLog::default(),
            signals: Signals::default(),
            stats: ResidencyStats::default(),
            pinned: HashSet::new(),
            retired: HashSet::new(),
            derived: DerivedVersions::default(),
            draining: HashSet::new(),
            line: Line::default(),
            sleepers: Sleepers::default(),
            forgotten: Vec::new(),
            next_id: 0,
        }
    }

    pub(super) fn take_signals(&mut self) -> Signals {
        self.signals.wakers = self.sleepers.take_due();
        std::mem::take(&mut self.signals)
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn arrive(&mut self, client: ClientKey) -> WaiterId {
        let waiter = WaiterId(self.next_id());
        self.line.arrive(waiter, client);
        waiter
    }

    // --- waiting ------------------------------------------------------------------------------------------------

    pub(super) fn poll(
        &mut self,
        waiter: WaiterId,
        version: AdapterVersion,
        bytes: u64,
        waker: &Waker,
    ) -> Result<Decision, AdapterError> {
        self.sleepers.forget(waiter);
        let decision = self.decide(waiter, version, bytes);
        if matches!(decision, Ok(Decision::Pending)) {
            self.sleepers.sleep(waiter, version, waker);
        }
        decision
    }

    fn decide(&mut self, waiter: WaiterId, version: AdapterVersion, bytes: u64) -> Result<Decision, AdapterError> {
        if let Some(failure) = self.failures.remove(&waiter) {
            return Err(failure.into_error(version));
        }
        let overtakes = self.draining.contains(&version) && self.line.has_before(waiter);
        match self.entries.get_mut(&version) {
            Some(Entry::Resident(resident)) if !overtakes || resident.claims.contains(&waiter) => {
                resident.claims.remove(&waiter);
                resident.leases += 1;
                let (slot, facts) = (resident.slot, Arc::clone(&resident.facts));
                self.lru.touch(version);
                self.stats.hits += 1;
                self.dequeue(waiter);
                Ok(Decision::Ready { slot, facts })
            }
            Some(Entry::Loading { claims, .. }) => {
                claims.insert(waiter);
                self.dequeue(waiter);
                Ok(Decision::Pending)
            }
            Some(Entry::Resident(_) | Entry::Evicting { .. }) => {
                self.line.join(waiter);
                Ok(Decision::Pending)
            }
            None => self.poll_absent(waiter, version, bytes),
        }
    }

    fn poll_absent(&mut self, waiter: WaiterId, version: AdapterVersion, bytes: u64) -> Result<Decision, AdapterError> {
        let bytes = self.known.get(&version).and_then(|known| known.bytes).unwrap_or(bytes);
        if let Err(error) = self.check_possible(version, bytes) {
            self.dequeue(waiter);
            return Err(error);
        }
        self.line.join(waiter);
        if self.line.first() != Some(waiter) {
            return Ok(Decision::Pending);
        }
        let Some(victims) = self.plan(bytes) else {
            self.mark_draining(bytes);
            return Ok(Decision::Pending);
        };
        match self.start_load(waiter, version, bytes, victims) {
            Some(load) => {
                let was_first = self.line.serve(waiter);
                self.first_changes(was_first);
                Ok(Decision::Load { load })
            }
            None => Ok(Decision::Pending),
        }
    }

    pub(super) fn leave(&mut self, waiter: WaiterId, version: AdapterVersion) {
        self.failures.remove(&waiter);
        self.sleepers.forget(waiter);
        self.dequeue(waiter);
        self.line.depart(waiter);
        self.derived.depart(version);
        let claimed = match self.entries.get_mut(&version) {
            Some(Entry::Loading { claims, .. } | Entry::Resident(Resident { claims, .. })) => claims.remove(&waiter),
            _ => false,
        };
        if claimed {
            self.settle(version);
        }
        self.forget_derived(version);
    }

    /// A new first in line decides anew what has to drain.
    fn dequeue(&mut self, waiter: WaiterId) {
        let was_first = self.line.leave(waiter);
        self.first_changes(was_first);
    }

    fn first_changes(&mut self, changes: bool) {
        if changes {
            self.drain_only(HashSet::new());
            self.room_changes();
        }
    }

    /// There may be room: that is for the first in line.
    pub(super) fn room_changes(&mut self) {
        if let Some(first) = self.line.first() {
            self.sleepers.wake(first);
        }
    }

    /// Whoever waits for a version that drains no more may have it.
    fn drain_only(&mut self, versions: HashSet<AdapterVersion>) {
        let before = std::mem::replace(&mut self.draining, versions);
        for version in before.difference(&self.draining) {
            self.sleepers.wake_all_for(*version);
        }
    }

    /// Waiting makes sense only for room that can become free.
    fn check_possible(&self, version: AdapterVersion, bytes: u64) -> Result<(), AdapterError> {
        let (max_bytes, max_slots) = (self.budget.limit(), self.slots.total());
        if bytes > max_bytes || max_slots == 0 {
            return Err(AdapterError::TooLargeForDevice { version, bytes, max: max_bytes });
        }
        let held = self.pinned.iter().filter_map(|pinned| match self.entries.get(pinned)? {
            Entry::Resident(resident) => Some(resident.reservation.bytes()),
            Entry::Loading { load, .. } => self.loads.get(load).map(|load| load.bytes),
            Entry::Evicting { .. } => None,
        });
        let (pinned_slots, pinned_bytes) = held.fold((0, 0u64), |(n, sum), bytes| (n + 1, sum.saturating_add(bytes)));
        if pinned_slots >= max_slots || pinned_bytes.saturating_add(bytes) > max_bytes {
            return Err(AdapterError::PinnedFull { version, bytes, pinned_bytes, max_bytes, pinned_slots, max_slots });
        }
        Ok(())
    }

    // --- choosing victims -----------------------------------------------------------------------------------------

    fn is_evictable(&self, version: AdapterVersion) -> bool {
        !self.pinned.contains(&version)
            && matches!(self.entries.get(&version), Some(Entry::Resident(resident)) if resident.is_idle())
    }

    /// Versions whose removal is nobody's duty yet, lowest slot first.
    fn orphans(&self) -> Vec<(AdapterSlot, AdapterVersion)> {
        let mut orphans: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(version, entry)| match entry {
                Entry::Evicting { resident, remover: Remover::Nobody } => Some((resident.slot, *version)),
                _ => None,
            })
            .collect();
        orphans.sort_unstable();
        orphans
    }

    pub(super) fn bytes_of(&self, version: AdapterVersion) -> u64 {
        match self.entries.get(&version) {
            Some(Entry::Resident(resident) | Entry::Evicting { resident, .. }) => resident.reservation.bytes(),
            _ => 0,
        }
    }

    /// Whom to remove so that a slot and `bytes` are there; `None` if that cannot be had now.
    fn plan(&self, bytes: u64) -> Option<Vec<AdapterVersion>> {
        let orphans = self.orphans().into_iter().map(|(_, version)| version);
        let idle = self.lru.oldest_first().filter(|version| self.is_evictable(*version));
        let mut victims = Vec::new();
        let mut free = self.budget.free();
        let mut candidates = orphans.chain(idle);
        while free < bytes || (self.slots.free() == 0 && victims.is_empty()) {
            let victim = candidates.next()?;
            free += self.bytes_of(victim);
            victims.push(victim);
        }
        Some(victims)
    }

    /// Choose which leased versions to drain for the first in line. Versions that drain already are kept, or the
    /// choice could wander for ever; then those with the fewest requests, the least recently used first.
    fn mark_draining(&mut self, bytes: u64) {
        let mut free = self.budget.free();
        let mut slot = self.slots.free() > 0;
        let mut leased = Vec::new();
        for (age, version) in self.lru.oldest_first().enumerate() {
            let Some(Entry::Resident(resident)) = self.entries.get(&version) else { continue };
            if self.is_evictable(version) {
                (free, slot) = (free + resident.reservation.bytes(), true);
            } else if !self.pinned.contains(&version) {
                leased.push((!self.draining.contains(&version), resident.leases, age, version));
            }
        }
        for entry in self.entries.values() {
            if let Entry::Evicting { resident, .. } = entry {
                (free, slot) = (free + resident.reservation.bytes(), true);
            }
        }
        leased.sort_unstable();
        let mut draining = HashSet::new();
        for (.., version) in leased {
            if free >= bytes && slot {
                break;
            }
            (free, slot) = (free + self.bytes_of(version), true);
            draining.insert(version);
        }
        self.drain_only(draining);
    }

    // --- leaving --------------------------------------------------------------------------------------------------

    pub(super) fn start_evicting(&mut self, version: AdapterVersion, by: Remover) {
        let Some(entry) = self.entries.remove(&version) else { return };
        let (Entry::Resident(resident) | Entry::Evicting { resident, .. }) = entry else {
            self.entries.insert(version, entry);
            return;
        };
        self.lru.remove(version);
        self.draining.remove(&version);
        self.entries.insert(version, Entry::Evicting { resident, remover: by });
        if by == Remover::Nobody {
            self.signals.removals = true;
            // A load may take it over.
            self.room_changes();
        }
    }

    /// The removal was carried out: what the version held.
    pub(super) fn finish_eviction(&mut self, version: AdapterVersion) -> Option<(AdapterSlot, Reservation)> {
        match self.entries.remove(&version) {
            Some(Entry::Evicting { resident, .. }) => {
                self.stats.evictions += 1;
                self.signals.events.push((version, AdapterEventKind::Evicted));
                self.forget_derived(version);
                Some((resident.slot, resident.reservation))
            }
            Some(other) => {
                self.entries.insert(version, other);
                None
            }
            None => None,
        }
    }

    /// A version became idle, or retired: it may leave, or someone may take its place.
    pub(super) fn settle(&mut self, version: AdapterVersion) {
        let idle = matches!(self.entries.get(&version), Some(Entry::Resident(resident)) if resident.is_idle());
        if !idle {
            return;
        }
        if self.is_retired(version) {
            self.start_evicting(version, Remover::Nobody);
        }
        self.room_changes();
    }

    /// A request has let go of the version; `verdict` says how it went, where that says something of the version.
    pub(super) fn release(&mut self, version: AdapterVersion, verdict: Option<Result<(), AdapterFault>>) {
        if verdict.is_some_and(|verdict| self.faults.judge(version, verdict)) {
            self.signals.events.push((version, AdapterEventKind::SetAside));
        }
        if let Some(Entry::Resident(resident)) = self.entries.get_mut(&version) {
            resident.leases -= 1;
            self.lru.touch(version);
        }
        self.settle(version);
    }

    pub(super) fn pardon(&mut self, version: AdapterVersion) {
        if self.faults.pardon(version) {
            self.signals.events.push((version, AdapterEventKind::Reinstated));
        }
    }

    pub(super) fn take_removal(&mut self) -> Option<(AdapterVersion, AdapterSlot)> {
        let (slot, version) = self.orphans().into_iter().next()?;
        self.start_evicting(version, Remover::RemovalTicket);
        Some((version, slot))
    }

    pub(super) fn removed(&mut self, version: AdapterVersion) {
        if let Some((slot, reservation)) = self.finish_eviction(version) {
            self.slots.release(slot);
            self.budget.release(reservation);
            self.room_changes();
        }
    }

    pub(super) fn hand_on_removal(&mut self, version: AdapterVersion) {
        self.start_evicting(version, Remover::Nobody);
    }

    pub(super) fn unload(&mut self, version: AdapterVersion) -> Result<bool, AdapterError> {
        match self.entries.get(&version) {
            None => Ok(false),
            Some(Entry::Evicting { .. }) => Ok(true),
            Some(Entry::Loading { claims, .. }) => Err(AdapterError::InUse { version, leases: claims.len() }),
            Some(Entry::Resident(resident)) if resident.is_idle() => {
                self.start_evicting(version, Remover::Nobody);
                Ok(true)
            }
            Some(Entry::Resident(Resident { leases, claims, .. })) => {
                Err(AdapterError::InUse { version, leases: leases + claims.len() })
            }
        }
    }

    pub(super) fn set_pinned(&mut self, version: AdapterVersion, pinned: bool) {
        let changed = if pinned { self.pinned.insert(version) } else { self.pinned.remove(&version) };
        if pinned {
            self.draining.remove(&version);
        }
        if changed {
            // Pinning may make waiting pointless for anybody, unpinning may make room.
            self.sleepers.wake_all();
        }
    }

    pub(super) fn set_retired(&mut self, version: AdapterVersion, retired: bool) {
        if retired {
            self.retired.insert(version);
            self.settle(version);
            self.derived.with_part(version).into_iter().for_each(|mix| self.settle(mix));
        } else {
            self.retired.remove(&version);
        }
    }

    /// Forget a derived version that nobody wants and that has no business on the device.
    pub(super) fn forget_derived(&mut self, version: AdapterVersion) {
        if !self.entries.contains_key(&version) && self.derived.remove_unwanted(version) {
            self.forget(version);
        }
    }

    /// Whether a version leaves the device as soon as no request runs on it: its last name is gone, or that of a part.
    pub(super) fn is_retired(&self, version: AdapterVersion) -> bool {
        self.retired.contains(&version) || self.derived.parts(version).iter().any(|part| self.retired.contains(part))
    }
}
