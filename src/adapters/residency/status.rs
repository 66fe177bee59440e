//! What is told of residency, and its limits: plain data.

use std::sync::Arc;

use crate::types::{AdapterFacts, AdapterSlot};

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
