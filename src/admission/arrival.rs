//! Who asks, and by when.

use std::time::Instant;

use crate::types::{ClientKey, ConnectionId};

/// Who sent a request, when it came and when it must have ended.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Who is charged for it.
    pub client: ClientKey,
    /// The connection it came over.
    pub connection: ConnectionId,
    /// Queue time counts from here.
    pub arrived: Instant,
    /// The client's deadline.
    pub deadline: Option<Instant>,
}

impl Arrival {
    /// Just now, from nobody in particular, without a deadline.
    #[must_use]
    pub fn now() -> Self {
        Self { client: ClientKey::LOCAL, connection: ConnectionId::default(), arrived: Instant::now(), deadline: None }
    }
}
