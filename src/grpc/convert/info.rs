//! The server itself.

use std::time::Duration;

use super::super::pb;
use super::super::server_info::{ModelInfo, ServerInfo, ServerLimits};
use super::saturate;
use crate::adapters::ResidencyStats;
use crate::engine::EngineStats;
use crate::receipt::NumericsClass;

pub(in crate::grpc) fn server_info(info: &ServerInfo) -> pb::GetServerInfoResponse {
    pb::GetServerInfoResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: Some(model(&info.model)),
        dtype: info.dtype.clone(),
        device: info.device.clone(),
        isa: info.isa.clone(),
        threads: saturate(info.threads),
        kv_cache: Some(pb::KvCacheInfo { blocks: saturate(info.kv_blocks), block_size: saturate(info.kv_block_size) }),
        limits: Some(limits(&info.limits)),
        adapter_kinds: info.adapter_kinds.clone(),
        numerics: Some(numerics(&info.numerics)),
    }
}

fn numerics(numerics: &NumericsClass) -> pb::NumericsClass {
    let NumericsClass { device, isa, target, weights, compute, kv, kv_tile } = numerics.clone();
    pb::NumericsClass { device, isa, target, weights, compute, kv, kv_tile }
}

fn model(model: &ModelInfo) -> pb::BaseModel {
    pb::BaseModel {
        name: model.name.clone(),
        digest: model.digest.clone(),
        architecture: model.architecture.clone(),
        parameters: model.parameters,
        vocab_size: saturate(model.vocab_size),
        context_length: saturate(model.context_length),
        has_chat_template: model.has_chat_template,
        config_digest: model.config_digest.clone(),
    }
}

fn limits(limits: &ServerLimits) -> pb::Limits {
    pb::Limits {
        max_sequences: saturate(limits.max_sequences),
        max_batched_tokens: saturate(limits.max_batched_tokens),
        max_queued_requests: saturate(limits.max_queued_requests),
        default_max_tokens: limits.default_max_tokens,
        max_choices: limits.max_choices,
        max_logprobs: limits.max_logprobs,
        max_prompt_bytes: limits.max_prompt_bytes as u64,
        max_resident_adapters: limits.max_resident_adapters,
        max_adapter_rank: limits.max_adapter_rank,
        max_upload_bytes: limits.max_upload_bytes,
        max_chunk_bytes: saturate(limits.max_chunk_bytes),
        max_stop_strings: limits.max_stop_strings,
        max_stop_bytes: limits.max_stop_bytes,
        max_request_tokens: limits.max_request_tokens,
        max_inputs: limits.max_inputs,
        max_inline_adapter_bytes: limits.max_inline_adapter_bytes,
        max_receipt_tokens: limits.max_receipt_tokens,
    }
}

pub(in crate::grpc) fn stats(
    engine: EngineStats,
    registered: usize,
    adapters: &ResidencyStats,
    uptime: Duration,
) -> pb::GetStatsResponse {
    // Entry 0 counts the steps with the base alone.
    let most = engine.steps_by_distinct_adapters.iter().rposition(|steps| *steps > 0).unwrap_or(0);
    pb::GetStatsResponse {
        running_sequences: saturate(engine.running),
        waiting_sequences: saturate(engine.waiting),
        parked_sequences: saturate(engine.parked),
        parties: saturate(engine.parties),
        rows_held_back: engine.rows_held_back,
        kv_blocks_used: saturate(engine.kv_blocks_used),
        kv_blocks_total: saturate(engine.kv_blocks_total),
        steps: engine.steps,
        failed_steps: engine.failed_steps,
        preemptions: engine.preemptions,
        prefix_queries: engine.prefix_queries,
        prefix_hits: engine.prefix_hits,
        shared_layer_hits: engine.shared_layer_hits,
        tokens_computed: engine.tokens_computed,
        max_distinct_adapters: saturate(most),
        steps_by_distinct_adapters: engine.steps_by_distinct_adapters,
        adapters_registered: saturate(registered),
        adapters_resident: saturate(adapters.resident),
        uptime_seconds: uptime.as_secs_f64(),
    }
}
