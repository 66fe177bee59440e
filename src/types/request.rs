//! What admission hands to the engine.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::client::{ClientKey, ConnectionId, Party};
use super::ids::{AdapterSlot, AdapterVersion, RequestId};
use super::sampling::{SamplingParams, StoppingParams};

/// Virtual tokens of an adapter: they occupy KV indices `0..count` of every sequence that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualTokens {
    /// How many; at least 1.
    pub count: u32,
    /// True for prefix tuning (K and V are stored as saved, written without a forward pass); false for prompt
    /// embeddings, which are prefilled once per version as a sequence of their own.
    pub saved_kv: bool,
}

/// The adapter of a request: which weights, and where they lie on the device. The slot stays valid while the
/// request lives, because the caller holds a lease on the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterBinding {
    /// Content digest; the prefix cache is keyed by it.
    pub version: AdapterVersion,
    /// Place on the device.
    pub slot: AdapterSlot,
    /// Present for prefix and prompt tuning.
    pub virtual_tokens: Option<VirtualTokens>,
    /// The first token that it works on, counted from the first of the prompt: rows before are the base's. 0 unless tokens of
    /// the prompt activate it; [`Self::NEVER`] where the prompt does not have them.
    pub active_from: u32,
    /// The first token whose KV is its own: that of tokens before is the base's, and shared with it.
    pub kv_from: u32,
    /// So many layers from the first on compute what the base's compute, for each of its rows.
    pub base_layers: u32,
}

impl AdapterBinding {
    /// Beyond every token.
    pub const NEVER: u32 = u32::MAX;
}

/// A validated, tokenized request with its adapter resident.
#[derive(Clone, Debug)]
pub struct EngineRequest {
    /// Unique within the process.
    pub id: RequestId,
    /// Who asks: what it takes is charged to it.
    pub client: ClientKey,
    /// Requests of one party take turns by connection, so that one that sends many does not hold up the others.
    pub connection: ConnectionId,
    /// Prompt token ids; not empty, each below the vocabulary size.
    pub prompt: Arc<[u32]>,
    /// `None` is the base model.
    pub adapter: Option<AdapterBinding>,
    /// How to choose tokens.
    pub sampling: Arc<SamplingParams>,
    /// When to stop.
    pub stopping: Arc<StoppingParams>,
    /// Number of choices, at least 1; each is a sequence of its own.
    pub choices: u32,
    /// A head start, larger is more; 0 is the default. Never an absolute order.
    pub priority: i32,
    /// Mixed into the prefix cache key so that tenants never share blocks; empty is the common tenant.
    pub tenant_salt: Arc<[u8]>,
    /// The engine ends the request with `DeadlineExceeded` at this time, whatever its phase.
    pub deadline: Option<Instant>,
    /// When it entered the server: queue time counts from here.
    pub arrived: Instant,
}

impl EngineRequest {
    /// Who is charged for it.
    #[must_use]
    pub fn party(&self) -> Party {
        Party { client: self.client, adapter: self.adapter.map(|adapter| adapter.version) }
    }
}
