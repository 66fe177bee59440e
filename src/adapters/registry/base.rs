//! Which base the adapters of a registry belong to, and what they compiled to on it.

use std::sync::Arc;

use super::super::error::AdapterError;
use super::super::events::Signals;
use super::super::stored::{Compiled, StoredAdapter};
use super::super::sync::lock;
use super::AdapterRegistry;
use super::alias::{Alias, Present};
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, BaseDigest};

impl AdapterRegistry {
    /// Say which base is served, and how many bytes a number of A and B takes on its device: from here on adapters of
    /// another base are refused by name, and what the store knows of the others is known to residency. Once.
    pub fn serve_base(&self, base: BaseDigest, weight_bytes: usize) {
        let changes = lock(&self.changes);
        let adopted = self.store.names.adopt(base);
        let present = *self.present.get_or_init(|| Present { base, weight_bytes, adopted });
        let (mut foreign, mut known) = (0, Vec::new());
        for stored in lock(&self.catalog).all() {
            let compiled = stored.compiled.as_ref();
            if compiled.map_or(adopted, |compiled| compiled.base) != present.base {
                foreign += 1;
            } else if let Some(compiled) = compiled {
                known.push((stored.version, facts_here(compiled, weight_bytes)));
            }
        }
        let mut signals = Signals::default();
        for (version, facts) in known {
            signals |= self.residency.learn(version, facts);
        }
        drop(changes);
        self.events.ring(signals);
        if foreign > 0 {
            tracing::warn!(adapters = foreign, base = %base, "adapters of another base are listed and not served");
        }
    }

    /// What the store knows of a name that came back.
    fn learn_stored(&self, name: &AdapterName) -> Signals {
        let Some(Present { base, weight_bytes, .. }) = self.present.get() else { return Signals::default() };
        let stored = self.store.names.get(name);
        let compiled = stored.as_ref().and_then(|stored| stored.compiled.as_ref()).filter(|known| known.base == *base);
        match (&stored, compiled) {
            (Some(stored), Some(compiled)) => self.residency.learn(stored.version, facts_here(compiled, *weight_bytes)),
            _ => Signals::default(),
        }
    }

    /// Names that the store has and cannot serve now: it cannot read them, or a later version of the server wrote them.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.store.names.troubled()
    }

    /// Try again to read what the store could not read; returns how many names came back. Blocks.
    pub fn heal(&self) -> usize {
        let mut signals = Signals::default();
        let healed = {
            let _changes = lock(&self.changes);
            let healed = self.store.heal();
            for name in &healed {
                signals |= self.follow_store(name);
                signals |= self.learn_stored(name);
            }
            healed
        };
        if !healed.is_empty() {
            self.after_change(signals);
        }
        healed.len()
    }

    pub(super) fn check_base(&self, name: &AdapterName, alias: Alias) -> Result<(), AdapterError> {
        let Some(present) = self.present.get() else { return Ok(()) };
        let stored = alias.base.unwrap_or(present.adopted);
        if stored == present.base {
            return Ok(());
        }
        let (name, version, present) = (name.clone(), alias.version, present.base);
        Err(AdapterError::BaseMismatch { name, version, stored, present })
    }

    pub(super) fn compiled(&self, facts: &Arc<AdapterFacts>) -> Option<Compiled> {
        let Present { base, weight_bytes, .. } = *self.present.get()?;
        Some(Compiled { base, weight_bytes, facts: Arc::clone(facts) })
    }

    /// A leased version was compiled to `facts`: keep them with every name that stands for it and does not know them.
    /// Blocks on the disk where there is one; what cannot be written now is learned again at the next load.
    pub fn learn(&self, version: AdapterVersion, facts: &Arc<AdapterFacts>) {
        let Some(compiled) = self.compiled(facts) else { return };
        let stale = |stored: &&StoredAdapter| {
            stored.compiled.as_ref() != Some(&compiled) && self.check_base(&stored.name, Alias::of(stored)).is_ok()
        };
        let names: Vec<_> =
            lock(&self.catalog).of_version(version).filter(stale).map(|stored| stored.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        let mut signals = Signals::default();
        let changes = lock(&self.changes);
        for name in &names {
            match self.store.names.set_compiled(name, version, &compiled) {
                Ok(_) => signals |= self.follow_store(name),
                Err(error) => tracing::warn!(adapter = %name, %error, "what it compiled to could not be written down"),
            }
        }
        drop(changes);
        self.events.ring(signals);
    }
}

/// What a version compiled to, for numbers of `weight_bytes` on the device. Where it was written down for others, the
/// size is one that it does not exceed, until it is compiled again.
fn facts_here(compiled: &Compiled, weight_bytes: usize) -> Arc<AdapterFacts> {
    if compiled.weight_bytes == weight_bytes {
        return Arc::clone(&compiled.facts);
    }
    let facts = compiled.facts.as_ref();
    // Vectors take 4 bytes a number whatever matrices take.
    let bytes = facts.parameters.saturating_mul(weight_bytes.max(4) as u64);
    Arc::new(AdapterFacts { device_bytes: bytes, ..facts.clone() })
}
