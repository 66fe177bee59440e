//! The life of a load: reservation, removals, installation, and every way it can end.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::error::{AdapterError, LoadFailure};
use super::super::events::AdapterEventKind;
use super::line::WaiterId;
use super::load::{Failure, Load, LoadId, Victim};
use super::state::{Entry, Remover, Resident, State};
use crate::types::{AdapterFacts, AdapterSlot, AdapterVersion};

impl State {
    pub(super) fn start_load(
        &mut self,
        waiter: WaiterId,
        version: AdapterVersion,
        bytes: u64,
        victims: Vec<AdapterVersion>,
    ) -> Option<LoadId> {
        let covered: u64 = victims.iter().map(|victim| self.bytes_of(*victim)).sum();
        let reservation = self.budget.reserve(bytes.saturating_sub(covered))?;
        let allocated = self.slots.allocate();
        let Some(slot) = allocated.or_else(|| victims.first().and_then(|victim| self.slot_of(*victim))) else {
            self.budget.release(reservation);
            return None;
        };
        let orphan = |version: &AdapterVersion| matches!(self.entries.get(version), Some(Entry::Evicting { .. }));
        let victims: Vec<_> = victims.into_iter().map(|version| Victim { orphan: orphan(&version), version }).collect();
        victims.iter().for_each(|victim| self.start_evicting(victim.version, Remover::Load));
        let load = LoadId(self.next_id());
        let owns_slot = allocated.is_some();
        self.loads.insert(load, Load { version, bytes, slot, owns_slot, reservation, victims, installing: false });
        self.entries.insert(version, Entry::Loading { load, claims: BTreeSet::from([waiter]) });
        // Others who want it have a claim on it from now on, and no place in line.
        self.sleepers.wake_all_for(version);
        self.signals.events.push((version, AdapterEventKind::Loading));
        Some(load)
    }

    fn slot_of(&self, version: AdapterVersion) -> Option<AdapterSlot> {
        match self.entries.get(&version)? {
            Entry::Resident(resident) | Entry::Evicting { resident, .. } => Some(resident.slot),
            Entry::Loading { .. } => None,
        }
    }

    pub(super) fn begin_install(
        &mut self,
        id: LoadId,
        version: AdapterVersion,
        facts: &Arc<AdapterFacts>,
    ) -> Result<(AdapterSlot, Vec<(AdapterSlot, AdapterVersion)>), AdapterError> {
        let bytes = facts.device_bytes;
        let Some(load) = self.loads.get(&id) else {
            return Err(AdapterError::LoadAbandoned { version });
        };
        let reserved = load.bytes;
        let covered: u64 = load.victims.iter().map(|victim| self.bytes_of(victim.version)).sum();
        self.learn(version, Arc::clone(facts));
        let State { loads, budget, .. } = self;
        let fits = loads.get_mut(&id).is_some_and(|load| {
            let fits = budget.resize(&mut load.reservation, bytes.saturating_sub(covered));
            if fits {
                (load.bytes, load.installing) = (bytes, true);
            }
            fits
        });
        if !fits {
            let (free, max) = (self.budget.free(), self.budget.limit());
            self.end(id);
            self.forget_derived(version);
            return Err(if bytes > max {
                AdapterError::TooLargeForDevice { version, bytes, max }
            } else {
                AdapterError::Outgrown { version, bytes, reserved, free }
            });
        }
        let Some(load) = self.loads.get(&id) else { return Err(AdapterError::LoadAbandoned { version }) };
        let place = |victim: &Victim| Some((self.slot_of(victim.version)?, victim.version));
        Ok((load.slot, load.victims.iter().filter_map(place).collect()))
    }

    /// The removals were carried out: what the victims held is the load's, what it does not need is free.
    pub(super) fn evicted(&mut self, id: LoadId) {
        let Some(mut load) = self.loads.remove(&id) else { return };
        for victim in std::mem::take(&mut load.victims) {
            let Some((slot, reservation)) = self.finish_eviction(victim.version) else { continue };
            load.reservation = load.reservation.merge(reservation);
            if slot == load.slot {
                load.owns_slot = true;
            } else {
                self.slots.release(slot);
            }
        }
        let shrunk = self.budget.resize(&mut load.reservation, load.bytes);
        debug_assert!(shrunk, "victims and reservation cover the load");
        self.loads.insert(id, load);
        self.room_changes();
    }

    pub(super) fn complete(&mut self, id: LoadId, facts: Arc<AdapterFacts>) {
        self.evicted(id);
        let Some(load) = self.loads.remove(&id) else { return };
        let version = load.version;
        let claims = match self.entries.remove(&version) {
            Some(Entry::Loading { claims, .. }) => claims,
            _ => BTreeSet::new(),
        };
        let resident = Resident { slot: load.slot, reservation: load.reservation, facts, leases: 0, claims };
        self.entries.insert(version, Entry::Resident(resident));
        self.lru.touch(version);
        self.known.entry(version).or_default().last_error = None;
        self.stats.loads += 1;
        self.signals.events.push((version, AdapterEventKind::Resident));
        self.sleepers.wake_all_for(version);
        self.settle(version);
    }

    /// `None`: the ticket was dropped without a word.
    pub(super) fn fail(&mut self, id: LoadId, error: Option<LoadFailure>) {
        let Some((version, claims)) = self.end(id) else { return };
        let words = match &error {
            Some(error) => error.to_string(),
            None => AdapterError::LoadAbandoned { version }.to_string(),
        };
        self.known.entry(version).or_default().last_error = Some(words);
        self.signals.events.push((version, AdapterEventKind::LoadFailed));
        for waiter in claims {
            let failure = error.as_ref().map_or(Failure::Abandoned, |error| Failure::Failed(Arc::clone(error)));
            self.failures.insert(waiter, failure);
        }
        self.forget_derived(version);
    }

    /// Take a load apart: victims not yet touched go back, those in the engine's hands have to be removed by someone.
    fn end(&mut self, id: LoadId) -> Option<(AdapterVersion, BTreeSet<WaiterId>)> {
        let load = self.loads.remove(&id)?;
        for victim in load.victims {
            if load.installing || victim.orphan {
                self.start_evicting(victim.version, Remover::Nobody);
            } else {
                self.restore(victim.version);
            }
        }
        self.budget.release(load.reservation);
        if load.owns_slot {
            self.slots.release(load.slot);
        }
        self.sleepers.wake_all_for(load.version);
        self.room_changes();
        match self.entries.remove(&load.version) {
            Some(Entry::Loading { claims, .. }) => Some((load.version, claims)),
            _ => None,
        }
    }

    fn restore(&mut self, victim: AdapterVersion) {
        if let Some(Entry::Evicting { resident, .. }) = self.entries.remove(&victim) {
            self.entries.insert(victim, Entry::Resident(resident));
            self.lru.touch(victim);
            self.sleepers.wake_all_for(victim);
            self.settle(victim);
        }
    }
}
