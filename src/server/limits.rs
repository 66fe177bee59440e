//! How many connections there may be, in all and from one peer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Why a connection was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConnectionRefused {
    /// As many as allowed are open.
    #[error("{limit} connections are open, the limit is reached")]
    TooMany {
        /// `--max-connections`.
        limit: usize,
    },
    /// As many as allowed are open from this address.
    #[error("{limit} connections are open from {peer}, the limit is reached")]
    TooManyFromPeer {
        /// The address.
        peer: IpAddr,
        /// `--max-connections-per-peer`.
        limit: usize,
    },
}

/// Counts open connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct ConnectionLimits {
    max: usize,
    max_per_peer: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

impl ConnectionLimits {
    pub(super) fn new(max: usize, max_per_peer: usize) -> Self {
        Self { max, max_per_peer, open: Arc::default() }
    }

    /// A place for one connection, given back on drop.
    pub(super) fn acquire(&self, peer: IpAddr) -> Result<ConnectionPermit, ConnectionRefused> {
        let peer = peer.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.total >= self.max {
            return Err(ConnectionRefused::TooMany { limit: self.max });
        }
        let from_peer = open.by_peer.get(&peer).copied().unwrap_or(0);
        if from_peer >= self.max_per_peer {
            return Err(ConnectionRefused::TooManyFromPeer { peer, limit: self.max_per_peer });
        }
        open.total += 1;
        open.by_peer.insert(peer, from_peer + 1);
        Ok(ConnectionPermit { limits: self.clone(), peer })
    }
}

/// RAII: one open connection.
pub(super) struct ConnectionPermit {
    limits: ConnectionLimits,
    peer: IpAddr,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.limits.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.total -= 1;
        match open.by_peer.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.by_peer.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_given_back_can_be_taken_again() {
        let limits = ConnectionLimits::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = limits.acquire(a).unwrap();
        let _second = limits.acquire(a).unwrap();
        assert_eq!(limits.acquire(a).err(), Some(ConnectionRefused::TooManyFromPeer { peer: a, limit: 2 }));
        let third = limits.acquire(b).unwrap();
        assert_eq!(limits.acquire(b).err(), Some(ConnectionRefused::TooMany { limit: 3 }));
        drop(first);
        assert!(limits.acquire(b).is_ok());
        assert!(limits.acquire(a).is_ok(), "the place of `b` above was given back at once");
        drop(third);
        assert_eq!(limits.open.lock().unwrap().by_peer.len(), 1, "peers without connections are forgotten");
    }

    #[test]
    fn an_address_counts_once_whether_mapped_or_not() {
        let limits = ConnectionLimits::new(3, 1);
        let v4: IpAddr = [127, 0, 0, 1].into();
        let _first = limits.acquire(v4).unwrap();
        assert!(limits.acquire("::ffff:127.0.0.1".parse().unwrap()).is_err());
    }
}
