//! Laying a request aside whose reader is behind, and letting it go on.
//!
//! A parked sequence is one that was preempted and has no place in a queue. What it computed stays in the prefix index as
//! long as nobody needs the blocks, so that it need not be kept for it. Nobody is charged for it meanwhile, and its party
//! comes back as one that was away: it has not saved anything up.

use super::Scheduler;
use crate::types::RequestId;

impl Scheduler {
    /// Lay a request aside: its sequences take no part in steps, hold no place among the running ones and give up their
    /// KV, until [`Self::unpark`]. What the prefix index keeps of it meanwhile need not be computed again. Without effect
    /// where it is not here or parked already.
    pub fn park(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id).filter(|request| !request.parked) else { return };
        request.parked = true;
        let ranks = request.live.clone();
        self.num_parked += ranks.len();
        for rank in ranks {
            let sequence = &mut self.sequences[rank.id()];
            let (flow, pages) = (sequence.flow(), sequence.pages);
            if self.running.contains(rank) {
                self.left.extend(sequence.leave());
                let mut table = sequence.preempt();
                self.cache.release_table(&mut table);
            }
            self.unqueue(flow, rank);
            self.fair.leave(flow.party);
            if let Some(pages) = pages {
                let unwanted = self.pages.leave(pages, rank);
                self.release_pages(unwanted);
            }
        }
    }

    /// Let a parked request go on where it was: its sequences wait in the order of their rank.
    pub fn unpark(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id).filter(|request| request.parked) else { return };
        request.parked = false;
        let ranks = request.live.clone();
        self.num_parked -= ranks.len();
        let party = self.fair.join(request.party, ranks.len());
        for rank in ranks {
            let sequence = &mut self.sequences[rank.id()];
            sequence.party = party;
            let flow = sequence.flow();
            if let (Some(pages), Some(slot)) = (sequence.pages, sequence.slot) {
                self.pages.join(pages, rank, slot);
            }
            self.waiting.insert(flow, rank);
        }
    }
}
