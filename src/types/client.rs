//! Who asks: plain data by which requests of one client are known to be of one client.

/// A client, as far as the server can tell clients apart: a digest of its address, or of the name that a trusted
/// gateway gives it. Opaque: only equality means anything, and no address can be read from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(pub [u8; 32]);

impl ClientKey {
    /// Whoever asks without a transport: tests, and work the server does for itself.
    pub const LOCAL: Self = Self([0; 32]);
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientKey({}…)", hex::encode(&self.0[..4]))
    }
}

/// The connection that a request came over, by the number the server gave it. Says nothing of who is behind it: what
/// one client sends over several connections is charged to that client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Whose share of the server a piece of work is: each is charged for what it takes. A key of a tenant would be one
/// more field here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Party {
    /// Who asks.
    pub client: ClientKey,
    /// What for; `None` is the base.
    pub adapter: Option<super::AdapterVersion>,
}
