//! The order of sequences: who is served first, and who yields when blocks run out. The only place that knows it.

use std::cmp::Reverse;

use crate::types::SequenceId;

/// Place in the order of service; smaller is more senior. Total and fixed for the life of a sequence, which is what
/// makes the most senior sequence certain to end.
///
/// Larger priority first, first come first served within: sequence ids ascend with arrival, so a preempted sequence
/// is ahead of everything that came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Reverse<i32>,
    id: SequenceId,
}

impl Rank {
    pub(super) fn new(priority: i32, id: SequenceId) -> Self {
        Self { priority: Reverse(priority), id }
    }

    pub(super) fn id(self) -> SequenceId {
        self.id
    }

    pub(super) fn is_senior_to(self, other: Self) -> bool {
        self < other
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
}
