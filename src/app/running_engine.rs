//! Backend, decoder and engine, built for whichever backend is chosen. Behind this module nobody knows which it is.

use std::sync::Arc;

use tokio::sync::watch;

use super::base::OpenedBase;
use super::computing::Computing;
use super::error::AppError;
use super::sizing::Sizes;
use crate::adapters::AdapterRegistry;
use crate::config::{AdapterLimits, PrefixCache, ServeConfig};
use crate::delta::CompileLimits;
use crate::engine::{
    self, AdapterInstaller, EngineEnd, EngineFact, EngineHandle, EngineInstaller, EngineObserver, HostMemory, Loaders,
    ModelExecutor, ModelLoader, StartedEngine,
};
use crate::model::{Decoder, DecoderLimits, base_layout};
use crate::ops::{Backend, BackendInfo};
use crate::scheduler::{SchedulerConfig, ShareConfig};
use crate::telemetry::Metrics;

/// Most virtual tokens of one adapter; they must fit the context all the same.
const MAX_VIRTUAL_TOKENS: usize = 4096;

/// A running engine.
pub(super) struct RunningEngine {
    pub(super) engine: EngineHandle,
    pub(super) adapters: Arc<dyn AdapterInstaller>,
    /// Says why the engine thread has ended, once it has.
    pub(super) ended: watch::Receiver<Option<EngineEnd>>,
    pub(super) backend: BackendInfo,
}

/// Limits that adapters of a server must keep.
pub(super) fn compile_limits(limits: &AdapterLimits, max_model_len: u32) -> CompileLimits {
    let max_virtual_tokens = MAX_VIRTUAL_TOKENS.min(max_model_len.saturating_sub(1) as usize);
    CompileLimits {
        max_rank: limits.max_rank as usize,
        max_virtual_tokens,
        allow_unknown_fields: limits.allow_unknown_fields,
    }
}

/// Load the base, start the engine and connect the registry with it.
///
/// # Errors
/// Weights that are missing or misshapen, memory or threads that the system refuses.
pub(super) fn start(
    config: &ServeConfig,
    base: &OpenedBase,
    computing: Computing,
    sizes: Sizes,
    registry: Arc<AdapterRegistry>,
    metrics: &Metrics,
) -> Result<RunningEngine, AppError> {
    let parts = Parts { config, base, sizes, registry, metrics };
    match computing {
        Computing::Cpu(backend) => parts.start(*backend),
        Computing::Reference(backend) => parts.start(backend),
        Computing::Cuda(backend) => parts.start(*backend),
    }
}

struct Parts<'a> {
    config: &'a ServeConfig,
    base: &'a OpenedBase,
    sizes: Sizes,
    registry: Arc<AdapterRegistry>,
    metrics: &'a Metrics,
}

impl Parts<'_> {
    fn start<B: Backend>(self, backend: B) -> Result<RunningEngine, AppError> {
        let OpenedBase { spec, checkpoint, .. } = self.base;
        let info = backend.info();
        let backend = Arc::new(backend);
        let context = self.sizes.max_model_len as usize;
        let model = self.base.load(backend.as_ref(), context, self.config.progress)?;
        let limits = DecoderLimits {
            max_rows: self.config.scheduler.max_num_batched_tokens as usize,
            kv_blocks: self.sizes.kv_blocks as usize,
            block_size: self.config.cache.block_size as usize,
            adapter_slots: self.config.adapter_limits.max_resident as usize,
            shared_layers: self.config.cache.shared_layers.map(|layers| layers as usize),
        };
        let decoder = Decoder::new(Arc::clone(&backend), spec.clone(), model, limits)?;
        let executor = ModelExecutor::new(decoder, self.config.cache.block_size);
        let metrics = self.metrics.clone();
        let observer: EngineObserver = Box::new(move |fact| match fact {
            EngineFact::Step(facts) => metrics.record_step(&facts),
            EngineFact::Gauges(gauges) => metrics.record_gauges(&gauges),
            EngineFact::Failed(culprit) => metrics.record_failed_step(culprit),
        });
        let queue_limit = self.config.request_limits.max_queued as usize;
        let StartedEngine { handle, installs, ended } =
            engine::start(executor, self.scheduler(), queue_limit, observer)?;
        let limits = compile_limits(&self.config.adapter_limits, self.sizes.max_model_len);
        let loader = ModelLoader::new(backend, base_layout(spec), Arc::clone(checkpoint), limits);
        let memory = HostMemory::new(self.sizes.load_bytes);
        let engine = handle.clone();
        let loaders = Loaders::start(move || engine.is_busy())?;
        let installer = EngineInstaller::start(loader, self.registry, installs, loaders, memory, self.metrics.clone());
        Ok(RunningEngine { engine: handle, adapters: Arc::new(installer), ended, backend: info })
    }

    fn scheduler(&self) -> SchedulerConfig {
        let config = &self.config;
        SchedulerConfig {
            block_size: config.cache.block_size,
            num_blocks: self.sizes.kv_blocks,
            max_num_seqs: config.scheduler.max_num_seqs as usize,
            max_num_batched_tokens: config.scheduler.max_num_batched_tokens as usize,
            max_prefill_chunk: None,
            max_model_len: self.sizes.max_model_len,
            prefix_cache: config.cache.prefix_cache != PrefixCache::Off,
            shared_layers: config.cache.shared_layers,
            base_digest: self.base.checkpoint.digest(),
            long_rope: self.base.spec.long_rope(),
            share: ShareConfig {
                input_weight: config.fair_share.input_weight,
                output_weight: config.fair_share.output_weight,
                step_tokens: config.fair_share.step_tokens as usize,
            },
        }
    }
}
