//! KV for a start that does not fit: parties that hold more than the one in line, and have had no less, yield some of
//! theirs, so that long sequences of one do not keep another from its first token for as long as they last.

use super::blocked::Blocked;
use super::sequence::Sequence;
use super::{Scheduler, SequenceState};

impl Scheduler {
    /// Before a step: preempt what must yield to the start that found no room in the last one. Nobody yields unless
    /// that makes the room, and nobody for one who would then hold more: blocks do not go back and forth. The most
    /// senior running sequence never yields.
    pub(super) fn make_way(&mut self) {
        let Some(Blocked { rank, missing }) = self.blocked.take() else { return };
        let Some(waiting) = self.sequences.get(rank.id()).filter(|sequence| self.waits(sequence)) else { return };
        let party = waiting.party;
        let needed = waiting.blocks_for(waiting.tokens.len());
        let held = self.running.iter().map(|rank| &self.sequences[rank.id()]);
        let mut holdings = self.fair.holdings(held.map(|sequence| (sequence.party, sequence.table.len())));
        let level = self.fair.level(party);
        let mut victims = Vec::new();
        let mut freed = 0;
        let mut order = self.yield_order();
        while freed < missing
            && let Some(victim) = order.pop()
        {
            let sequence = &self.sequences[victim.id()];
            let blocks = sequence.table.len();
            let yields = self.running.first() != Some(victim)
                && self.fair.level(sequence.party) >= level
                && holdings.moves(sequence.party, blocks, party, needed);
            if yields {
                freed += blocks;
                victims.push(victim);
            }
        }
        if freed >= missing {
            victims.into_iter().for_each(|victim| self.preempt(victim));
        }
    }

    /// Neither started nor laid aside since.
    fn waits(&self, sequence: &Sequence) -> bool {
        let parked = self.requests.get(&sequence.request).is_some_and(|request| request.parked);
        sequence.state != SequenceState::Running && !parked
    }
}
