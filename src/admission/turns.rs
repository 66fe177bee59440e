//! Turns at something that only few can do at a time, given by the same counters as places in a step: whoever has had
//! least goes next, client and adapter taken together. What a turn costs is microseconds of work: a guess when it begins,
//! what it took once it is done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::scheduler::fair_share::{FairShare, PartyId, ShareConfig};
use crate::types::Party;

/// A queue with turns. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    shares: FairShare,
    /// By arrival, within a party. Nobody waits while a turn is free.
    waiting: BTreeMap<PartyId, BTreeMap<u64, Waiter>>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiter {
    guess: i64,
    turn: oneshot::Sender<Turn>,
}

/// RAII: one turn. The next in line has it after the drop.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    party: PartyId,
    /// What was charged for it.
    guess: i64,
    began: Instant,
}

/// RAII: a place in line, given up on drop.
struct InLine<'t> {
    turns: &'t Turns,
    party: PartyId,
    arrival: u64,
}

impl Turns {
    /// `count` turns at a time.
    pub(super) fn new(count: usize) -> Self {
        let shares = FairShare::new(ShareConfig::default());
        let state = State { free: count, shares, waiting: BTreeMap::new(), arrivals: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for a turn at work that is likely to take `guess` microseconds. Dropping the future gives the place in line
    /// up.
    pub(super) async fn take(&self, party: Party, guess: u64) -> Turn {
        let guess = i64::try_from(guess).unwrap_or(i64::MAX).max(1);
        let (in_line, receiver) = {
            let mut state = self.state();
            let party = state.shares.join(party, 1);
            if state.free > 0 {
                state.free -= 1;
                state.shares.charge(party, guess);
                return self.turn(party, guess);
            }
            let (turn, receiver) = oneshot::channel();
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.entry(party).or_default().insert(arrival, Waiter { guess, turn });
            (InLine { turns: self, party, arrival }, receiver)
        };
        let turn = receiver.await;
        drop(in_line);
        match turn {
            Ok(turn) => turn,
            // The sender is in the state, which `self` keeps alive, until it is used.
            Err(_) => std::future::pending().await,
        }
    }

    fn turn(&self, party: PartyId, guess: i64) -> Turn {
        Turn { turns: self.clone(), party, guess, began: Instant::now() }
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.values().map(BTreeMap::len).sum()
    }

    /// How many more could begin now.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.state().free
    }
}

impl State {
    /// The first of those who have had least.
    fn next(&mut self) -> Option<(PartyId, Waiter)> {
        let first = |(party, line): (&PartyId, &BTreeMap<u64, Waiter>)| {
            let (arrival, _) = line.first_key_value()?;
            Some((self.shares.level(*party), *arrival, *party))
        };
        let (_, arrival, party) = self.waiting.iter().filter_map(first).min()?;
        self.remove(party, arrival).map(|waiter| (party, waiter))
    }

    fn remove(&mut self, party: PartyId, arrival: u64) -> Option<Waiter> {
        let line = self.waiting.get_mut(&party)?;
        let waiter = line.remove(&arrival);
        if line.is_empty() {
            self.waiting.remove(&party);
        }
        waiter
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        if state.remove(self.party, self.arrival).is_some() {
            state.shares.leave(self.party);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let took = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX);
        let mut state = self.turns.state();
        state.shares.charge(self.party, took.saturating_sub(self.guess).max(0));
        state.shares.leave(self.party);
        let Some((party, Waiter { guess, turn })) = state.next() else {
            state.free += 1;
            return;
        };
        state.shares.charge(party, guess);
        drop(state);
        // One that gave up just now drops the turn, and with it this runs again for the next.
        drop(turn.send(self.turns.turn(party, guess)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::types::{AdapterVersion, ClientKey};

    fn party(client: u8, adapter: u8) -> Party {
        Party { client: ClientKey([client; 32]), adapter: Some(AdapterVersion([adapter; 32])) }
    }

    /// Start waiting; the order in which turns come is the order of what is received.
    async fn queue(turns: &Turns, party: Party, guess: u64, order: &UnboundedSender<(u8, u8)>) {
        let (order, before, mine) = (order.clone(), turns.waiting(), turns.clone());
        tokio::spawn(async move {
            let turn = mine.take(party, guess).await;
            order.send((party.client.0[0], party.adapter.unwrap().0[0])).unwrap();
            drop(turn);
        });
        while turns.waiting() == before {
            tokio::task::yield_now().await;
        }
    }

    async fn order_of(count: usize, order: &mut UnboundedReceiver<(u8, u8)>) -> Vec<(u8, u8)> {
        let mut came = Vec::new();
        for _ in 0..count {
            came.push(order.recv().await.unwrap());
        }
        came
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_had_little_goes_before_who_has_had_much() {
        let turns = Turns::new(1);
        let (sender, mut order) = unbounded_channel();
        let held = turns.take(party(1, 1), 100).await;
        for _ in 0..4 {
            queue(&turns, party(1, 1), 100, &sender).await;
        }
        queue(&turns, party(2, 2), 10, &sender).await;
        queue(&turns, party(2, 2), 10, &sender).await;
        drop(held);
        let came = order_of(6, &mut order).await;
        assert_eq!(came, [(1, 1), (2, 2), (2, 2), (1, 1), (1, 1), (1, 1)], "newcomers stand level with who is served");
    }

    #[tokio::test(start_paused = true)]
    async fn many_adapters_of_one_client_are_one_client() {
        let turns = Turns::new(1);
        let (sender, mut order) = unbounded_channel();
        let held = turns.take(party(1, 1), 100).await;
        for adapter in 2..=20 {
            queue(&turns, party(1, adapter), 100, &sender).await;
        }
        queue(&turns, party(2, 40), 100, &sender).await;
        drop(held);
        let came = order_of(20, &mut order).await;
        assert!(came[..2].contains(&(2, 40)), "{came:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn adapters_behind_one_address_take_turns() {
        let turns = Turns::new(1);
        let (sender, mut order) = unbounded_channel();
        let held = turns.take(party(1, 1), 100).await;
        for _ in 0..20 {
            queue(&turns, party(1, 1), 100, &sender).await;
        }
        queue(&turns, party(1, 2), 100, &sender).await;
        drop(held);
        let came = order_of(21, &mut order).await;
        assert!(came[..2].contains(&(1, 2)), "{came:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_took_longer_than_it_looked_is_paid_for() {
        let turns = Turns::new(1);
        let (sender, mut order) = unbounded_channel();
        let long = turns.take(party(1, 1), 1).await;
        queue(&turns, party(1, 1), 1, &sender).await;
        for _ in 0..3 {
            queue(&turns, party(2, 2), 1000, &sender).await;
        }
        tokio::time::advance(Duration::from_millis(5)).await;
        drop(long);
        assert_eq!(order_of(4, &mut order).await, [(2, 2), (2, 2), (2, 2), (1, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_the_line_and_takes_no_turn_along() {
        let turns = Turns::new(1);
        let (sender, mut order) = unbounded_channel();
        let held = turns.take(party(1, 1), 1).await;
        let mut gone = Box::pin(turns.take(party(3, 3), 1));
        assert!(is_pending(&mut gone).await);
        queue(&turns, party(1, 1), 1, &sender).await;
        drop(gone);
        assert_eq!(turns.waiting(), 1);
        drop(held);
        assert_eq!(order_of(1, &mut order).await, [(1, 1)]);
        drop(turns.take(party(2, 2), 1).await);
        let state = turns.state();
        assert_eq!((state.free, state.waiting.len(), state.shares.num_parties()), (1, 0, 0));
    }

    /// Poll once; true where it is pending.
    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
    }
}
