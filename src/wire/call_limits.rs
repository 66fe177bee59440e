//! What the calls of all doors may have together.

use super::decoding::DecodingTurns;
use super::limits::Shares;
use crate::config::TransportConfig;

/// Shared by every door of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CallLimits {
    /// Calls that run.
    pub(crate) calls: Shares,
    /// Bytes of messages that have begun to arrive and are not yet answered.
    pub(crate) bytes: Shares,
    /// Who may take a large message apart now.
    pub(crate) turns: DecodingTurns,
}

impl CallLimits {
    /// As the configuration has them.
    pub(crate) fn new(config: &TransportConfig) -> Self {
        Self {
            calls: Shares::new(u64::from(config.max_calls), u64::from(config.max_calls_per_peer)),
            // No peer can take all of it.
            bytes: Shares::new(config.message_memory, config.message_memory.div_ceil(2)),
            turns: DecodingTurns::default(),
        }
    }
}
