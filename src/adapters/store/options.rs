//! How a store is opened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::files::StoreLimits;

/// What to do when parts of a store cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreError {
    /// Serve what can be read; the rest answers that it cannot be read now, and is tried again.
    #[default]
    Degraded,
    /// Do not open the store.
    Refuse,
}

/// How a store is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Quotas.
    pub limits: StoreLimits,
    /// What to do when parts of it cannot be read.
    pub errors: OnStoreError,
    /// How long an object without a name is kept, at least, before a start removes it.
    pub grace: Duration,
    /// The time of opening, in ms since the Unix epoch.
    pub now_ms: u64,
}

impl StoreOptions {
    /// A week after which objects without a name are removed: time to notice that a name was lost by accident.
    pub const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

    /// The defaults, now.
    #[must_use]
    pub fn new(limits: StoreLimits) -> Self {
        Self { limits, errors: OnStoreError::default(), grace: Self::GRACE, now_ms: unix_ms(SystemTime::now()) }
    }

    pub(super) fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Milliseconds since the Unix epoch.
pub(in super::super) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}
