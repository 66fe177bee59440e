//! What is known of versions, and what is told of them. Decides nothing.

use std::sync::Arc;

use super::state::{Entry, State};
use super::status::{AdapterState, ResidencyStats, VersionStatus};
use crate::types::{AdapterFacts, AdapterVersion};

impl State {
    pub(super) fn learn(&mut self, version: AdapterVersion, facts: Arc<AdapterFacts>) {
        let known = self.known.entry(version).or_default();
        known.bytes = Some(facts.device_bytes);
        known.facts = Some(facts);
    }

    pub(super) fn take_forgotten(&mut self) -> Vec<AdapterVersion> {
        std::mem::take(&mut self.forgotten)
    }

    pub(super) fn forget(&mut self, version: AdapterVersion) {
        self.forgotten.push(version);
        self.signals.removals = true;
        self.pardon(version);
        self.known.remove(&version);
        self.pinned.remove(&version);
        // A version still on the device keeps its mark, so that it leaves when it can.
        if !self.entries.contains_key(&version) {
            self.retired.remove(&version);
        }
        self.room_changes();
    }

    pub(super) fn status(&self, version: AdapterVersion) -> VersionStatus {
        let (state, slot, leases) = match self.entries.get(&version) {
            None => (AdapterState::Stored, None, 0),
            Some(Entry::Loading { .. }) => (AdapterState::Loading, None, 0),
            Some(Entry::Resident(resident)) => (AdapterState::Resident, Some(resident.slot), resident.leases),
            Some(Entry::Evicting { resident, .. }) => (AdapterState::Evicting, Some(resident.slot), 0),
        };
        let known = self.known.get(&version);
        let set_aside = self.faults.set_aside(version).map(|aside| aside.to_string());
        VersionStatus {
            state,
            slot,
            leases,
            facts: known.and_then(|known| known.facts.clone()),
            last_error: set_aside.or_else(|| known.and_then(|known| known.last_error.clone())),
        }
    }

    pub(super) fn stats(&self) -> ResidencyStats {
        let leases = self.entries.values().map(|entry| match entry {
            Entry::Resident(resident) => resident.leases,
            _ => 0,
        });
        ResidencyStats {
            resident: self.entries.len() - self.loads.len(),
            loading: self.loads.len(),
            slots_used: self.slots.total() - self.slots.free(),
            slots_total: self.slots.total(),
            bytes_used: self.budget.used(),
            bytes_total: self.budget.limit(),
            leases: leases.sum(),
            waiting: self.line.len(),
            set_aside: self.faults.count(),
            ..self.stats
        }
    }
}
