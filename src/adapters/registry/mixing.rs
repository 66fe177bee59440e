//! From names and weights to a version that is their mix, and from files that came with a request to theirs.

use std::sync::Arc;

use super::super::error::AdapterError;
use super::super::lease::{AdapterLease, MixPart};
use super::super::residency::{SetAside, Want};
use super::super::stored::AdapterBytes;
use super::{AdapterRegistry, ResolvedAdapter};
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, ClientKey};

/// A part of a mix, resolved.
#[derive(Clone, Debug)]
pub struct ResolvedPart {
    /// Which adapter.
    pub adapter: ResolvedAdapter,
    /// How much of it.
    pub weight: f32,
    /// What it compiled to, where that is known.
    pub facts: Option<Arc<AdapterFacts>>,
}

/// Names and weights resolved to a mix, whose parts are kept while this lives.
#[derive(Clone, Debug)]
pub struct ResolvedMix {
    /// The parts, as they were asked for.
    pub parts: Vec<ResolvedPart>,
    /// A user of the mix.
    pub lease: AdapterLease,
}

impl AdapterRegistry {
    /// Resolve every part of a mix, each as [`AdapterRegistry::resolve`] does, and count a user of what they are together.
    ///
    /// # Errors
    /// As [`AdapterRegistry::resolve`], of the first part that is refused.
    pub fn resolve_mix<'a>(
        &self,
        parts: impl IntoIterator<Item = (&'a AdapterName, Option<AdapterVersion>, f32)>,
    ) -> Result<ResolvedMix, AdapterError> {
        let resolve = |(name, version, weight)| {
            let adapter = self.resolve(name, version)?;
            let facts = self.residency.status(adapter.lease.version()).facts;
            Ok(ResolvedPart { adapter, weight, facts })
        };
        let parts = parts.into_iter().map(resolve).collect::<Result<Vec<_>, AdapterError>>()?;
        let leased = |part: &ResolvedPart| MixPart { lease: part.adapter.lease.clone(), weight: part.weight };
        let lease = self.leases.lease_mix(parts.iter().map(leased).collect());
        Ok(ResolvedMix { parts, lease })
    }

    /// Ask for a mix on the device, for a client. Its size there is that of its parts, which is that of their files until
    /// they have been compiled once.
    ///
    /// # Errors
    /// [`AdapterError::SetAside`] of a part, [`AdapterError::VersionSetAside`].
    pub fn want_mix(&self, mix: ResolvedMix, client: ClientKey) -> Result<Want, AdapterError> {
        let ResolvedMix { parts, lease } = mix;
        parts.iter().try_for_each(|part| self.check_set_aside(&part.adapter))?;
        self.check_derived(lease.version())?;
        let bytes = |part: &ResolvedPart| part.facts.as_ref().map_or(part.adapter.bytes, |facts| facts.device_bytes);
        Ok(self.residency.want(lease, parts.iter().map(bytes).fold(0, u64::saturating_add), client))
    }

    /// Count a user of files that came with a request. Takes the time of a digest of them.
    #[must_use]
    pub fn lease_sent(&self, files: Arc<AdapterBytes>) -> AdapterLease {
        self.leases.lease_sent(files)
    }

    /// Ask for files that came with a request on the device, for a client. Until they have been compiled, their size there
    /// is taken to be their own.
    ///
    /// # Errors
    /// [`AdapterError::VersionSetAside`].
    pub fn want_sent(&self, lease: AdapterLease, client: ClientKey) -> Result<Want, AdapterError> {
        self.check_derived(lease.version())?;
        let bytes = self.file_bytes(&lease);
        Ok(self.residency.want(lease, bytes, client))
    }

    fn check_derived(&self, version: AdapterVersion) -> Result<(), AdapterError> {
        match self.residency.set_aside(version) {
            Some(SetAside { faults, fault }) => Err(AdapterError::VersionSetAside(version, faults, fault)),
            None => Ok(()),
        }
    }
}
