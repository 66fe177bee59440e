//! How many files may be open, and who may have them: clients must not leave the store, or each other, without.

use crate::config::TransportConfig;

/// What the process opens for itself: standard streams, listeners, pollers, the model, the store and what it loads.
const OWN: u32 = 64;
/// An open upload has its two files open.
const PER_UPLOAD: u32 = 2;
/// Connections that ask for metrics.
const METRICS_CONNECTIONS: u32 = 32;

/// Who may have how many descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptors {
    pub(super) connections: u32,
    pub(super) metrics_connections: u32,
}

/// Ask the system for as many as it gives, and lower the limits of `transport` to what it does give, with a warning.
pub(super) fn share(transport: TransportConfig, max_uploads: usize) -> (TransportConfig, u32) {
    let Some(limit) = raise_limit() else { return (transport, METRICS_CONNECTIONS) };
    let uploads = u32::try_from(max_uploads).unwrap_or(u32::MAX);
    let Descriptors { connections, metrics_connections } = divide(limit, transport.max_connections, uploads);
    if connections == transport.max_connections {
        return (transport, metrics_connections);
    }
    let max_connections_per_peer = transport.max_connections_per_peer.min((connections / 2).max(1));
    tracing::warn!(
        descriptors = limit,
        asked = transport.max_connections,
        max_connections = connections,
        max_connections_per_peer,
        "the system allows too few open files for --max-connections; `ulimit -n` says how many"
    );
    (TransportConfig { max_connections: connections, max_connections_per_peer, ..transport }, metrics_connections)
}

/// Divide `limit` descriptors: what is not needed otherwise goes to connections, a quarter of all at least.
fn divide(limit: u64, max_connections: u32, max_uploads: u32) -> Descriptors {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let metrics_connections = METRICS_CONNECTIONS.min((limit / 16).max(1));
    let reserved = OWN.saturating_add(max_uploads.saturating_mul(PER_UPLOAD)).saturating_add(metrics_connections);
    let most = limit.saturating_sub(reserved).max(limit / 4).max(1);
    Descriptors { connections: max_connections.min(most), metrics_connections }
}

/// Raise the soft limit to the hard one; what it is then. `None`: without limit, or the system has no such thing.
#[cfg(unix)]
fn raise_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current
}

#[cfg(not(unix))]
fn raise_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_nothing_else_needs() {
        let all = |limit| divide(limit, 1024, 64);
        assert_eq!(all(1 << 20), Descriptors { connections: 1024, metrics_connections: 32 });
        assert_eq!(all(u64::MAX), Descriptors { connections: 1024, metrics_connections: 32 });
        assert_eq!(all(1024), Descriptors { connections: 800, metrics_connections: 32 });
        assert_eq!(all(256), Descriptors { connections: 64, metrics_connections: 16 });
        assert_eq!(all(64), Descriptors { connections: 16, metrics_connections: 4 });
        assert_eq!(divide(1024, 100, 64).connections, 100, "what was asked for is not raised");
        assert_eq!(divide(0, 100, 64).connections, 1);
    }
}
