//! How much there may be of something, in all and for one peer; and which connection goes when there are too many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::peer::Peer;
use crate::types::{Class, ConnectionId, Problem};

/// A wait after which something that was used up may be free.
const RETRY: Duration = Duration::from_millis(500);

/// All that is allowed is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    /// By everybody together.
    #[error("the limit of {limit} is reached")]
    Total {
        /// The limit.
        limit: u64,
    },
    /// By this peer.
    #[error("{peer} has reached its limit of {limit}")]
    Peer {
        /// Who.
        peer: Peer,
        /// Its limit.
        limit: u64,
    },
}

impl Exhausted {
    /// It may be free again soon. `what` is used up, in words.
    pub(crate) fn problem(self, reason: &'static str, what: &str) -> Problem {
        let (Self::Total { limit } | Self::Peer { limit, .. }) = self;
        let problem = Problem::new(Class::Exhausted, reason, format_args!("{what}: {self}"));
        problem.with("limit", limit).retry_after(RETRY)
    }

    /// The word for metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Total { .. } => "total",
            Self::Peer { .. } => "peer",
        }
    }
}

/// So much of something in all, and so much of it for one peer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shares {
    inner: Arc<SharesInner>,
}

struct SharesInner {
    max: u64,
    max_per_peer: u64,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: u64,
    by_peer: HashMap<Peer, u64>,
}

impl Shares {
    pub(crate) fn new(max: u64, max_per_peer: u64) -> Self {
        Self { inner: Arc::new(SharesInner { max, max_per_peer, taken: Mutex::default() }) }
    }

    /// Take `amount` for `peer`, all or nothing; given back on drop.
    pub(crate) fn acquire(&self, peer: Peer, amount: u64) -> Result<Share, Exhausted> {
        let SharesInner { max, max_per_peer, .. } = *self.inner;
        let mut taken = self.lock();
        let of_peer = taken.by_peer.get(&peer).copied().unwrap_or(0).saturating_add(amount);
        if of_peer > max_per_peer {
            return Err(Exhausted::Peer { peer, limit: max_per_peer });
        }
        let total = taken.total.saturating_add(amount);
        if total > max {
            return Err(Exhausted::Total { limit: max });
        }
        taken.total = total;
        taken.by_peer.insert(peer, of_peer);
        Ok(Share { shares: self.clone(), peer, amount })
    }

    fn of(&self, peer: Peer) -> u64 {
        self.lock().by_peer.get(&peer).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.inner.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RAII: what a peer has taken.
pub(crate) struct Share {
    shares: Shares,
    peer: Peer,
    amount: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.total -= self.amount;
        let left = taken.by_peer.get(&self.peer).copied().unwrap_or(0).saturating_sub(self.amount);
        // Peers that hold nothing are forgotten.
        if left == 0 {
            taken.by_peer.remove(&self.peer);
        } else {
            taken.by_peer.insert(self.peer, left);
        }
    }
}

/// A connection on which no call runs for this long gives way to a new one when there are too many.
const IDLE: Duration = Duration::from_secs(5);

/// Connections that were asked to give way and are not closed yet: beyond this the new ones are refused.
const MAX_LEAVING: usize = 16;

/// The open connections. Where there are as many as allowed, the one that has been idle longest gives way, of the peer
/// that has most; where none is idle, the new one is refused. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    places: Shares,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    next_id: u64,
    by_id: HashMap<u64, Entry>,
    leaving: usize,
}

struct Entry {
    peer: Peer,
    activity: Arc<Activity>,
    _place: Share,
}

impl Connections {
    pub(super) fn new(max: u32, max_per_peer: u32) -> Self {
        Self { places: Shares::new(u64::from(max), u64::from(max_per_peer)), open: Arc::default() }
    }

    /// A place for one connection, given back on drop.
    pub(super) fn acquire(&self, peer: Peer) -> Result<ConnectionPermit, Exhausted> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match self.places.acquire(peer, 1) {
            Ok(place) => place,
            Err(refused) => {
                let within = match refused {
                    Exhausted::Peer { peer, .. } => Some(peer),
                    Exhausted::Total { .. } => None,
                };
                if !self.make_room(&mut open, within) {
                    return Err(refused);
                }
                self.places.acquire(peer, 1)?
            }
        };
        let id = open.next_id;
        let activity = Arc::new(Activity::new(ConnectionId(id)));
        open.next_id += 1;
        open.by_id.insert(id, Entry { peer, activity: Arc::clone(&activity), _place: place });
        Ok(ConnectionPermit { connections: self.clone(), id, activity })
    }

    /// Ask an idle connection to leave, of a certain peer or of any. Its place is free at once.
    fn make_room(&self, open: &mut Open, within: Option<Peer>) -> bool {
        if open.leaving >= MAX_LEAVING {
            return false;
        }
        let now = Instant::now();
        let idle = open.by_id.iter().filter(|(_, entry)| within.is_none_or(|peer| peer == entry.peer));
        let idle = idle.filter_map(|(id, entry)| {
            let since = entry.activity.idle_since()?;
            (now.saturating_duration_since(since) >= IDLE)
                .then(|| (std::cmp::Reverse(self.places.of(entry.peer)), since, *id))
        });
        let Some((.., victim)) = idle.min() else { return false };
        if let Some(entry) = open.by_id.remove(&victim) {
            entry.activity.leave.notify_one();
            open.leaving += 1;
        }
        true
    }
}

/// RAII: one open connection.
pub(super) struct ConnectionPermit {
    connections: Connections,
    id: u64,
    activity: Arc<Activity>,
}

impl ConnectionPermit {
    /// What happens on it.
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.by_id.remove(&self.id).is_none() {
            open.leaving = open.leaving.saturating_sub(1);
        }
    }
}

/// Whether calls run on a connection, and since when none does.
pub(crate) struct Activity {
    connection: ConnectionId,
    state: Mutex<ActivityState>,
    leave: Notify,
}

struct ActivityState {
    calls: usize,
    idle_since: Instant,
}

impl Activity {
    pub(crate) fn new(connection: ConnectionId) -> Self {
        let state = ActivityState { calls: 0, idle_since: Instant::now() };
        Self { connection, state: Mutex::new(state), leave: Notify::new() }
    }

    /// Whose activity it is.
    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// A call has begun.
    pub(crate) fn begin(self: &Arc<Self>) -> ActiveCall {
        self.lock().calls += 1;
        ActiveCall { activity: Arc::clone(self) }
    }

    /// `None` while a call runs.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.calls == 0).then_some(state.idle_since)
    }

    /// Waits until the connection is asked to leave.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, ActivityState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RAII: a call runs on a connection.
pub(crate) struct ActiveCall {
    activity: Arc<Activity>,
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.calls -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn peer(last: u8) -> Peer {
        IpAddr::from([127, 0, 0, last]).into()
    }

    #[test]
    fn shares_are_given_back_and_peers_without_any_forgotten() {
        let shares = Shares::new(10, 6);
        let first = shares.acquire(peer(1), 4).unwrap();
        assert_eq!(shares.acquire(peer(1), 3).err(), Some(Exhausted::Peer { peer: peer(1), limit: 6 }));
        let second = shares.acquire(peer(2), 5).unwrap();
        assert_eq!(shares.acquire(peer(3), 2).err(), Some(Exhausted::Total { limit: 10 }));
        assert!(shares.acquire(peer(3), 1).is_ok(), "given back at once");
        drop(first);
        let third = shares.acquire(peer(3), 5).unwrap();
        assert!(shares.acquire(peer(1), u64::MAX).is_err());
        drop((second, third));
        let taken = shares.lock();
        assert_eq!((taken.total, taken.by_peer.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_of_the_peer_with_most_gives_way() {
        let connections = Connections::new(4, 4);
        let lone = connections.acquire(peer(1)).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let crowd: Vec<_> = (0..3).map(|_| connections.acquire(peer(2)).unwrap()).collect();
        assert_eq!(connections.acquire(peer(3)).err(), Some(Exhausted::Total { limit: 4 }), "nobody is idle yet");
        tokio::time::advance(IDLE).await;
        let busy = crowd[0].activity().begin();
        drop(crowd[2].activity().begin());
        let fourth = connections.acquire(peer(3)).unwrap();
        crowd[1].activity().asked_to_leave().await;
        // The one that is busy and the one that was so just now stay; the lone one is the last that is idle.
        let fifth = connections.acquire(peer(3)).unwrap();
        lone.activity().asked_to_leave().await;
        assert!(connections.acquire(peer(3)).is_err());
        drop((busy, crowd, lone, fourth, fifth));
        let open = connections.open.lock().unwrap();
        assert_eq!((open.by_id.len(), open.leaving, connections.places.lock().total), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_at_its_own_limit_makes_room_among_its_own() {
        let connections = Connections::new(10, 2);
        let _other = connections.acquire(peer(1)).unwrap();
        let (first, _second) = (connections.acquire(peer(2)).unwrap(), connections.acquire(peer(2)).unwrap());
        assert_eq!(connections.acquire(peer(2)).err(), Some(Exhausted::Peer { peer: peer(2), limit: 2 }));
        tokio::time::advance(IDLE).await;
        let _third = connections.acquire(peer(2)).unwrap();
        let _fourth = connections.acquire(peer(2)).unwrap();
        first.activity().asked_to_leave().await;
        assert!(connections.acquire(peer(2)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_will_not_leave_hold_up_the_new_ones() {
        let connections = Connections::new(64, 64);
        let old: Vec<_> = (0..64).map(|_| connections.acquire(peer(1)).unwrap()).collect();
        tokio::time::advance(IDLE).await;
        let new: Vec<_> = (0..64).map_while(|_| connections.acquire(peer(2)).ok()).collect();
        assert_eq!(new.len(), MAX_LEAVING);
        drop(old);
        assert!(connections.acquire(peer(2)).is_ok());
    }
}
