//! Several listening sockets as one: a name such as `localhost` stands for an address of each family.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::net::{TcpListener, TcpStream};

/// Listening sockets that are accepted from in turn.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<TcpListener>,
    /// Where the next look begins, so that no socket can starve another.
    turn: AtomicUsize,
}

impl From<TcpListener> for Listeners {
    fn from(socket: TcpListener) -> Self {
        vec![socket].into()
    }
}

impl From<Vec<TcpListener>> for Listeners {
    fn from(sockets: Vec<TcpListener>) -> Self {
        Self { sockets, turn: AtomicUsize::new(0) }
    }
}

impl Listeners {
    /// Where they listen.
    ///
    /// # Errors
    /// The system's.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(TcpListener::local_addr).collect()
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// Of whichever socket has one.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| {
            let first = self.turn.fetch_add(1, Ordering::Relaxed);
            let count = self.sockets.len();
            // All of them are polled until one is ready: each has to know whom to wake.
            for offset in 0..count {
                if let Poll::Ready(accepted) = self.sockets[first.wrapping_add(offset) % count].poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_socket_is_accepted_from() {
        let sockets =
            vec![TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let listeners = Listeners::from(sockets);
        let addresses = listeners.addresses().unwrap();
        // Many wait at the first; the second is not starved.
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(addresses[0]).await.unwrap());
        }
        clients.push(TcpStream::connect(addresses[1]).await.unwrap());
        let mut of_second = Vec::new();
        for _ in 0..4 {
            let (stream, _) = listeners.accept().await.unwrap();
            of_second.push(stream.local_addr().unwrap() == addresses[1]);
        }
        assert_eq!(of_second.iter().filter(|second| **second).count(), 1);
        assert!(of_second[..2].contains(&true), "in turn: {of_second:?}");
    }
}
