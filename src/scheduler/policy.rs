//! The order of the sequences of one party: who is served first, and who yields when blocks run out. Between parties
//! [`fair_share`](super::fair_share) decides.

use crate::types::SequenceId;

/// Later arrivals of its party that a sequence passes, or lets pass, per level of priority.
const PASSES_PER_LEVEL: i64 = 64;

/// Virtual tokens that a waiting sequence is ahead of, or behind, other parties per level of priority.
const VIRTUAL_TOKENS_PER_LEVEL: i64 = 32;

/// Place in the order of service; smaller is more senior. Total and fixed for the life of a sequence, which is what
/// makes the most senior sequence certain to end.
///
/// First come, first served: sequence ids ascend with arrival, so a preempted sequence is ahead of everything that
/// came after it. Priority is a head start of so many arrivals, never an absolute order: whatever others ask for, a
/// sequence is passed by a bounded number of those that came later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Rank {
    position: i64,
    id: SequenceId,
}

impl Rank {
    pub(super) fn new(priority: i32, id: SequenceId) -> Self {
        Self { position: id.0 as i64 - i64::from(priority) * PASSES_PER_LEVEL, id }
    }

    pub(super) fn id(self) -> SequenceId {
        self.id
    }

    pub(super) fn is_senior_to(self, other: Self) -> bool {
        self < other
    }

    /// Virtual tokens by which it is ahead of other parties while it waits; negative where it is behind.
    pub(super) fn head_start(self) -> i64 {
        (self.id.0 as i64 - self.position) / PASSES_PER_LEVEL * VIRTUAL_TOKENS_PER_LEVEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_comes_before_arrival_and_arrival_decides_within() {
        let mut ranks = [(0, 1), (5, 4), (-1, 0), (0, 0), (5, 3)].map(|(p, id)| Rank::new(p, SequenceId(id)));
        ranks.sort();
        assert_eq!(ranks.map(|rank| rank.id().0), [3, 4, 0, 1, 0]);
        assert!(ranks[0].is_senior_to(ranks[1]));
    }

    #[test]
    fn priority_is_a_head_start_of_so_many_arrivals_and_no_more() {
        let low = Rank::new(-3, SequenceId(0));
        let passed = |id| Rank::new(3, SequenceId(id)).is_senior_to(low);
        assert!(passed(6 * 64 - 1));
        assert!(!passed(6 * 64));
        assert_eq!((low.head_start(), Rank::new(3, SequenceId(7)).head_start()), (-96, 96));
    }
}
