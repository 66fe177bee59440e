//! What every door that clients come in by has in common: bytes and connections, what a client may have of them, and the
//! end of the server.
//!
//! | part | job |
//! |---|---|
//! | [`transport`] | the accept loop, and how it ends |
//! | [`lifecycle`] | serving, draining, cut |
//! | `accept`, `listeners`, `connection` | taking connections; one connection of HTTP/2 or HTTP/1.1 from its first byte to its close |
//! | `split` | two doors on one connection |
//! | `limits`, `call_limits`, `decoding` | what clients may have: connections, calls, memory, threads |
//! | `guard` | what ends a call that does not end by itself |
//! | `peer`, `identity`, `request_id` | who calls, and what a call is called |
//!
//! It knows no message, no status and no service: those are the doors' own (`grpc`, `http`).

mod accept;
mod call_limits;
mod connection;
mod decoding;
mod guard;
mod identity;
pub mod lifecycle;
mod limits;
mod listeners;
mod peer;
mod request_id;
mod split;
pub mod transport;

pub(crate) use accept::Acceptor;
pub(crate) use call_limits::CallLimits;
pub(crate) use decoding::{DecodingTurns, SMALL, Turn};
pub(crate) use guard::{Guard, Interrupted};
pub(crate) use identity::of_peer;
pub use identity::{ClientIdentity, InvalidHeaderName};
pub(crate) use lifecycle::RunningCall;
pub use lifecycle::{Lifecycle, Phase};
pub(crate) use limits::{ActiveCall, Activity, Exhausted, Share, Shares};
pub use listeners::Listeners;
pub(crate) use peer::Peer;
pub(crate) use request_id::{RequestIds, is_valid, stamp};
pub(crate) use split::Split;
pub(crate) use transport::{Connected, serve};
