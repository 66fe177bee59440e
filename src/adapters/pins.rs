//! How much of the device may be pinned, and by whom: what is pinned is never evicted, so a client that pins everything
//! would have it all.

use std::collections::{BTreeMap, HashMap};

use super::catalog::Catalog;
use super::error::AdapterError;
use super::stored::StoredAdapter;
use crate::types::{AdapterName, AdapterVersion, ClientKey};

/// Most that may be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinLimits {
    /// Versions, all clients together.
    pub max_adapters: usize,
    /// Their bytes on the device.
    pub max_bytes: u64,
}

impl PinLimits {
    /// No limit.
    pub const NONE: Self = Self { max_adapters: usize::MAX, max_bytes: u64::MAX };

    /// Names that one client may have pinned: a quarter of all is left to others, one at least, where there are two.
    #[must_use]
    pub fn max_per_client(&self) -> usize {
        self.max_adapters.saturating_sub((self.max_adapters / 4).max(1)).max(1)
    }
}

/// Who pinned what, as far as this process knows: pins of an earlier one are nobody's.
#[derive(Debug)]
pub(super) struct Pins {
    limits: PinLimits,
    owners: HashMap<AdapterName, ClientKey>,
}

/// A pin that is wanted.
pub(super) struct Pin<'a> {
    pub(super) name: &'a AdapterName,
    pub(super) version: AdapterVersion,
    /// It takes on the device.
    pub(super) bytes: u64,
    /// Whose it is; those of the operator are bounded only all together.
    pub(super) client: ClientKey,
}

impl Pins {
    pub(super) fn new(limits: PinLimits) -> Self {
        Self { limits, owners: HashMap::new() }
    }

    /// Whether it may be, beside what other names of `catalog` have pinned. `size` says what a version takes. Two names
    /// of one version take its place once.
    pub(super) fn check(
        &self,
        pin: &Pin<'_>,
        catalog: &Catalog,
        size: impl Fn(&StoredAdapter) -> u64,
    ) -> Result<(), AdapterError> {
        let others = || catalog.pinned().filter(|stored| stored.name != *pin.name);
        self.check_client(pin, others())?;
        let sizes: BTreeMap<_, _> = others().map(|stored| (stored.version, size(stored))).collect();
        if sizes.contains_key(&pin.version) {
            return Ok(());
        }
        let (pinned, pinned_bytes) = (sizes.len(), sizes.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes)));
        let PinLimits { max_adapters: max, max_bytes } = self.limits;
        if pinned >= max || pinned_bytes.saturating_add(pin.bytes) > max_bytes {
            let (name, bytes) = (pin.name.clone(), pin.bytes);
            return Err(AdapterError::PinLimit { name, bytes, pinned, max, pinned_bytes, max_bytes });
        }
        Ok(())
    }

    fn check_client<'a>(
        &self,
        pin: &Pin<'_>,
        others: impl Iterator<Item = &'a StoredAdapter>,
    ) -> Result<(), AdapterError> {
        if pin.client == ClientKey::LOCAL {
            return Ok(());
        }
        let own = others.filter(|stored| self.owners.get(&stored.name) == Some(&pin.client)).count();
        let max = self.limits.max_per_client();
        if own >= max {
            return Err(AdapterError::PinsOfClient { name: pin.name.clone(), pinned: own, max });
        }
        Ok(())
    }

    /// A name was pinned by a client, or is no longer pinned (`None`).
    pub(super) fn own(&mut self, name: &AdapterName, client: Option<ClientKey>) {
        match client {
            Some(client) => drop(self.owners.insert(name.clone(), client)),
            None => drop(self.owners.remove(name)),
        }
    }
}
