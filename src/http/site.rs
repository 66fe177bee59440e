//! What the door is made of.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::adapters::AdapterRegistry;
use crate::admission::Gate;
use crate::wire::Lifecycle;

/// What answers are made of. One per server.
pub struct Site {
    /// The way in.
    pub gate: Arc<Gate>,
    /// Which adapters there are.
    pub registry: Arc<AdapterRegistry>,
    /// Whether requests are taken.
    pub lifecycle: Lifecycle,
    /// The base's name.
    pub base: String,
    /// Most tokens of a sequence.
    pub max_model_len: u32,
    /// When the base was loaded.
    pub started: SystemTime,
    /// A stream whose reader takes nothing for so long is ended.
    pub stall_limit: Duration,
    /// Bytes of an answer that is given as a whole.
    pub max_message_bytes: usize,
}

/// Seconds since the Unix epoch; 0 of a time before it.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
