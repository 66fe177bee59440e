//! From an address as it was written to the sockets that listen on it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use tokio::net::{TcpListener, lookup_host};

use crate::config::{ListenAddress, MetricsListen};

/// The addresses that `address` stands for, IPv4 first where it is a name.
pub(super) async fn resolve(address: &ListenAddress) -> io::Result<Vec<SocketAddr>> {
    if let Some(known) = address.known() {
        return Ok(known);
    }
    let mut found: Vec<_> = lookup_host(address.to_string()).await?.collect();
    found.sort_unstable_by_key(|address| (address.is_ipv6(), *address));
    found.dedup();
    if found.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsListenError {
    /// The address that was asked for cannot be had.
    #[error("metrics cannot be served on {address}: {source}")]
    Bind {
        /// As it was written.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Neither the default port nor one near it is free.
    #[error("no port from {first} to {last} is free for metrics")]
    NoFreePort {
        /// First tried.
        first: u16,
        /// Last tried.
        last: u16,
    },
}

/// Ports tried after the default one.
const FALLBACK_PORTS: u16 = 100;

/// Listen for readers of metrics as [`bind`] does for clients. Where nobody asked for the address, a taken port is no
/// error: the next free one is bound, with a log line.
///
/// # Errors
/// [`MetricsListenError`].
pub(super) async fn bind_metrics(listen: &MetricsListen) -> Result<Vec<TcpListener>, MetricsListenError> {
    let MetricsListen { address, explicit } = listen;
    let first = address.port();
    let last = if *explicit { first } else { first.saturating_add(FALLBACK_PORTS) };
    for port in first..=last {
        match bind(&address.clone().with_port(port)).await {
            Ok(sockets) => {
                if port != first {
                    tracing::info!(taken = %address, port, "the metrics port is taken, moved to a free one");
                }
                return Ok(sockets);
            }
            Err(error) if !explicit && error.kind() == ErrorKind::AddrInUse => {}
            // Another port would not help.
            Err(source) => return Err(MetricsListenError::Bind { address: address.to_string(), source }),
        }
    }
    Err(MetricsListenError::NoFreePort { first, last })
}

/// Listen on every address that `address` stands for, at the same port. An address of a family that this machine does
/// not have is left out where another one is there.
///
/// # Errors
/// The name is unknown, or an address cannot be had.
pub(super) async fn bind(address: &ListenAddress) -> io::Result<Vec<TcpListener>> {
    let mut sockets: Vec<TcpListener> = Vec::new();
    let mut missing = None;
    for mut at in resolve(address).await? {
        let first = sockets.first().map(TcpListener::local_addr).transpose()?;
        if let Some(first) = first {
            if address.is_any() {
                break;
            }
            at.set_port(first.port());
        }
        match TcpListener::bind(at).await {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable || is_unknown_family(&error) => {
                tracing::debug!(address = %at, %error, "this machine does not have the address");
                missing = Some(error);
            }
            // A free port of the first address need not be free on the second one.
            Err(error) if address.port() == 0 && first.is_some() && error.kind() == ErrorKind::AddrInUse => {
                tracing::info!(address = %at, "the port is taken on this address, which is left out");
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if sockets.is_empty() => Err(error),
        _ => Ok(sockets),
    }
}

/// The kernel was built or started without IPv6.
fn is_unknown_family(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    let unknown = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    #[cfg(not(target_os = "linux"))]
    let unknown = error.kind() == ErrorKind::Unsupported;
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bound(text: &str) -> Vec<SocketAddr> {
        let sockets = bind(&text.parse().unwrap()).await.unwrap();
        sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_name_is_served_on_all_its_addresses_at_one_port() {
        let addresses = bound("localhost:0").await;
        assert!(addresses[0].ip().is_loopback() && addresses[0].port() != 0);
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == addresses[0].port()));
        // The second is there wherever the machine has both families.
        if TcpListener::bind("[::1]:0").await.is_ok() && addresses[0].is_ipv4() {
            assert!(addresses.len() <= 2);
        }
    }

    #[tokio::test]
    async fn every_interface_takes_one_socket() {
        let addresses = bound(":0").await;
        assert!(matches!(&addresses[..], [address] if address.ip().is_unspecified()));
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error() {
        let taken = bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = taken[0].local_addr().unwrap().port();
        let error = bind(&format!("localhost:{port}").parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn metrics_are_served_on_all_addresses_of_a_name_at_one_port() {
        let listen = |address: &str| MetricsListen { address: address.parse().unwrap(), explicit: true };
        let sockets = bind_metrics(&listen("localhost:0")).await.unwrap();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == addresses[0].port()));
        let taken = format!("localhost:{}", addresses[0].port());
        let refused = bind_metrics(&listen(&taken)).await.unwrap_err();
        assert!(matches!(&refused, MetricsListenError::Bind { address, .. } if *address == taken), "{refused}");
    }

    #[tokio::test]
    async fn a_taken_metrics_port_moves_the_default_alone() {
        let taken = bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken[0].local_addr().unwrap();
        let listen = |explicit| MetricsListen { address: address.into(), explicit };
        assert!(bind_metrics(&listen(true)).await.is_err());
        let moved = bind_metrics(&listen(false)).await.unwrap();
        assert_ne!(moved[0].local_addr().unwrap(), address);
    }
}
