//! What the engine says of itself between two steps: plain data.

/// A snapshot of the engine between two steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences with KV on the device.
    pub running: usize,
    /// Sequences waiting for their first step or for KV after a preemption.
    pub waiting: usize,
    /// Sequences laid aside until their reader has caught up.
    pub parked: usize,
    /// Clients and adapters, by pairs, that have live sequences.
    pub parties: usize,
    /// Rows that sequences did not get since start, because others had had less.
    pub rows_held_back: u64,
    /// KV blocks in use by sequences and adapters' virtual tokens (cached but unreferenced blocks count as free).
    pub kv_blocks_used: usize,
    /// KV blocks in all.
    pub kv_blocks_total: usize,
    /// Steps run since start.
    pub steps: u64,
    /// Steps that did not bring a result for all of their sequences.
    pub failed_steps: u64,
    /// Preemptions since start.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix index since start.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Prompt tokens behind those of which the shared layers were found to be computed.
    pub shared_layer_hits: u64,
    /// Rows computed since start.
    pub tokens_computed: u64,
    /// How many steps held 0, 1, 2, … distinct adapters (the base not counted).
    pub steps_by_distinct_adapters: Vec<u64>,
}
