//! What a load holds while it is under way, and how it can fail.

use super::super::budget::Reservation;
use super::super::error::{AdapterError, LoadFailure};
use crate::types::{AdapterSlot, AdapterVersion};

/// One load under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LoadId(pub(super) u64);

/// What a load holds. Victims keep their own reservations until they are removed, so only what they do not cover is
/// reserved beside them: at any time, what lies on the device and what is reserved stay within the budget.
pub(super) struct Load {
    pub(super) version: AdapterVersion,
    /// What the version takes once installed.
    pub(super) bytes: u64,
    pub(super) slot: AdapterSlot,
    /// False while the slot is still the first victim's.
    pub(super) owns_slot: bool,
    pub(super) reservation: Reservation,
    pub(super) victims: Vec<Victim>,
    pub(super) installing: bool,
}

/// Whom a load displaces. An orphan may be gone from the device already, so it can never be put back.
pub(super) struct Victim {
    pub(super) version: AdapterVersion,
    pub(super) orphan: bool,
}

/// What a waiter is told at its next poll.
pub(super) enum Failure {
    Failed(LoadFailure),
    Abandoned,
}

impl Failure {
    pub(super) fn into_error(self, version: AdapterVersion) -> AdapterError {
        match self {
            Self::Failed(source) => AdapterError::LoadFailed { version, source },
            Self::Abandoned => AdapterError::LoadAbandoned { version },
        }
    }
}
