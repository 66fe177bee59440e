//! Versions that fail whoever uses them: counted, and set aside after so many requests in a row.
//!
//! What is counted is the process's own experience: a restart forgets it, and so does whoever loads the adapter by name
//! or uploads it anew.

use std::collections::HashMap;
use std::fmt;

use crate::types::{AdapterFault, AdapterVersion};

/// Requests in a row after which a version is set aside, unless it is said otherwise.
pub(super) const MAX_FAULTS: u32 = 3;

/// Why a version is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Requests in a row that failed for its sake.
    pub faults: u32,
    /// What the last one failed of.
    pub fault: AdapterFault,
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set aside: the last {} requests on it failed, {}", self.faults, self.fault)
    }
}

/// Faults in a row by version. Versions without any are not here.
pub(super) struct FaultLog {
    max: u32,
    versions: HashMap<AdapterVersion, SetAside>,
}

impl Default for FaultLog {
    fn default() -> Self {
        Self { max: MAX_FAULTS, versions: HashMap::new() }
    }
}

impl FaultLog {
    /// 0 sets nothing aside.
    pub(super) fn limit(&mut self, max: u32) {
        self.max = max;
    }

    /// A request on this version has ended. True where that sets the version aside.
    pub(super) fn judge(&mut self, version: AdapterVersion, verdict: Result<(), AdapterFault>) -> bool {
        let Err(fault) = verdict else {
            // Requests that began before it was set aside may still end well; that is for somebody to look at.
            if self.set_aside(version).is_none() {
                self.versions.remove(&version);
            }
            return false;
        };
        let entry = self.versions.entry(version).or_insert(SetAside { faults: 0, fault });
        *entry = SetAside { faults: entry.faults.saturating_add(1), fault };
        self.max > 0 && entry.faults == self.max
    }

    pub(super) fn set_aside(&self, version: AdapterVersion) -> Option<SetAside> {
        self.versions.get(&version).filter(|entry| self.max > 0 && entry.faults >= self.max).copied()
    }

    /// Give it another chance. True where it was set aside.
    pub(super) fn pardon(&mut self, version: AdapterVersion) -> bool {
        let was = self.set_aside(version).is_some();
        self.versions.remove(&version);
        was
    }

    /// Versions set aside now.
    pub(super) fn count(&self) -> usize {
        self.versions.values().filter(|entry| self.max > 0 && entry.faults >= self.max).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: AdapterVersion = AdapterVersion([1; 32]);
    const OTHER: AdapterVersion = AdapterVersion([2; 32]);

    #[test]
    fn only_faults_in_a_row_set_a_version_aside_and_no_other() {
        let mut log = FaultLog::default();
        let fault = Err(AdapterFault::NonFinite);
        for verdict in [fault, fault, Ok(()), fault, fault] {
            assert!(!log.judge(V, verdict));
            assert!(!log.judge(OTHER, fault) || log.set_aside(OTHER).is_some());
        }
        assert_eq!(log.set_aside(V), None);
        assert!(log.judge(V, Err(AdapterFault::StepFailed)));
        let aside = SetAside { faults: 3, fault: AdapterFault::StepFailed };
        assert_eq!((log.set_aside(V), log.count()), (Some(aside), 2));
        assert!(!log.judge(V, fault), "said once");
        log.judge(V, Ok(()));
        assert!(log.set_aside(V).is_some(), "it stays until somebody says otherwise");
        assert!(log.pardon(V) && !log.pardon(V));
        assert_eq!((log.set_aside(V), log.count()), (None, 1));
        assert!(!log.judge(V, fault), "it begins anew");
    }

    #[test]
    fn a_limit_of_none_sets_nothing_aside() {
        let mut log = FaultLog::default();
        log.limit(0);
        for _ in 0..100 {
            assert!(!log.judge(V, Err(AdapterFault::NonFinite)));
        }
        assert_eq!((log.set_aside(V), log.count()), (None, 0));
        log.limit(1);
        assert!(log.judge(OTHER, Err(AdapterFault::NonFinite)));
    }
}
