//! How long sequences may be and how much memory the KV cache and the adapters get.

use super::error::AppError;
use crate::config::{AdapterLimits, CacheConfig, StepLimits};
use crate::model::DecoderSpec;
use crate::ops::KvDtype;

/// Share of the available memory that the KV cache takes by default.
const KV_SHARE: f64 = 0.2;
/// Share of the available memory that adapters may take by default.
const ADAPTER_SHARE: f64 = 0.25;
/// Share of the available memory that adapters may take on their way in by default.
const LOAD_SHARE: f64 = 0.25;
/// Where the system does not say what is available.
const ASSUMED_MEMORY: u64 = 4 << 30;

/// What sizes are decided by.
pub(super) struct Demand<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) kv: KvDtype,
    pub(super) max_model_len: Option<u32>,
    pub(super) scheduler: StepLimits,
    pub(super) cache: CacheConfig,
    pub(super) adapters: AdapterLimits,
    /// Bytes of the base model on the device, which is not loaded yet.
    pub(super) weight_bytes: u64,
    /// Bytes this process may take.
    pub(super) available: Option<u64>,
    /// Where the model does not lie in the memory of this process.
    pub(super) device: Option<DeviceRoom>,
}

/// The memory of a GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceRoom {
    /// Bytes that may be taken for everything together.
    pub(super) bytes: u64,
    /// Of them, what activations and scratch of the largest step take.
    pub(super) workspace_bytes: u64,
}

/// What the KV cache and the adapters get by default.
struct Defaults {
    kv_bytes: u64,
    adapter_bytes: u64,
}

impl Defaults {
    /// Shares of the memory of this process; on a GPU, where nobody else takes any, all that weights and workspace leave.
    fn new(demand: &Demand<'_>, available: u64) -> Result<Self, AppError> {
        let share = |bytes: u64, share: f64| (bytes as f64 * share) as u64;
        let Some(room) = demand.device else {
            return Ok(Self { kv_bytes: share(available, KV_SHARE), adapter_bytes: share(available, ADAPTER_SHARE) });
        };
        let left = room.left(demand.weight_bytes)?;
        let adapter_bytes = demand.adapters.memory_bytes.unwrap_or_else(|| {
            let beside_kv = demand.cache.kv_cache_bytes.map_or(left, |kv| left.saturating_sub(kv));
            share(left, ADAPTER_SHARE).min(beside_kv)
        });
        Ok(Self { kv_bytes: left.saturating_sub(adapter_bytes), adapter_bytes })
    }
}

impl DeviceRoom {
    /// Bytes beside weights and workspace.
    fn left(self, weight_bytes: u64) -> Result<u64, AppError> {
        let Self { bytes, workspace_bytes } = self;
        let left = bytes.checked_sub(weight_bytes).and_then(|left| left.checked_sub(workspace_bytes));
        left.ok_or(AppError::DeviceTooSmall { bytes, weight_bytes, workspace_bytes, kv_bytes: 0, adapter_bytes: 0 })
    }

    /// What was asked for must fit beside weights and workspace.
    fn check(self, demand: &Demand<'_>) -> Result<(), AppError> {
        let left = self.left(demand.weight_bytes)?;
        let (kv_bytes, adapter_bytes) =
            (demand.cache.kv_cache_bytes.unwrap_or(0), demand.adapters.memory_bytes.unwrap_or(0));
        if kv_bytes.saturating_add(adapter_bytes) <= left {
            return Ok(());
        }
        let (Self { bytes, workspace_bytes }, weight_bytes) = (self, demand.weight_bytes);
        Err(AppError::DeviceTooSmall { bytes, weight_bytes, workspace_bytes, kv_bytes, adapter_bytes })
    }
}

/// What they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) max_model_len: u32,
    pub(super) kv_blocks: u32,
    /// Tokens they hold.
    pub(super) kv_tokens: u64,
    pub(super) kv_bytes: u64,
    pub(super) adapter_bytes: u64,
    /// Host memory for adapters on their way in.
    pub(super) load_bytes: u64,
}

/// Decide. The KV cache is what was asked for, else the least of a share of the memory and what every sequence at its
/// longest would fill. A default that does not hold one whole sequence shortens the context; what was asked for is
/// never changed silently.
pub(super) fn decide(demand: &Demand<'_>) -> Result<Sizes, AppError> {
    let Demand { spec, cache, scheduler, .. } = demand;
    let context = saturate(spec.context_length as u64);
    let mut max_model_len = demand.max_model_len.unwrap_or(context);
    if max_model_len > context {
        return Err(AppError::ContextTooLong { given: max_model_len, context_length: spec.context_length });
    }
    let available = demand.available.unwrap_or(ASSUMED_MEMORY);
    let defaults = Defaults::new(demand, available)?;
    if let Some(given) = cache.shared_layers.filter(|layers| *layers as usize >= spec.layers.len()) {
        return Err(AppError::SharedLayers { given, layers: spec.layers.len() });
    }
    let block_bytes = token_bytes(spec, demand.kv, cache.shared_layers) * u64::from(cache.block_size);
    let blocks_of = |tokens: u32| u64::from(tokens.div_ceil(cache.block_size));
    let wanted = blocks_of(max_model_len) * u64::from(scheduler.max_num_seqs);
    let budget = cache.kv_cache_bytes.unwrap_or(defaults.kv_bytes) / block_bytes.max(1);
    // Places are numbered in 32 bits.
    let most = u64::from(u32::MAX / cache.block_size);
    let blocks = if cache.kv_cache_bytes.is_some() { budget } else { budget.min(wanted) }.min(most);

    if blocks < blocks_of(max_model_len) {
        let tokens = blocks * u64::from(cache.block_size);
        if tokens == 0 || demand.max_model_len.is_some() {
            let given = cache.kv_cache_bytes.unwrap_or(budget * block_bytes);
            let needed = blocks_of(max_model_len) * block_bytes;
            return Err(AppError::KvCacheTooSmall { given, tokens, max_model_len, needed });
        }
        tracing::warn!(
            context_length = context,
            max_model_len = tokens,
            "the KV cache does not hold a sequence of the model's full length; --kv-cache-bytes makes it larger"
        );
        max_model_len = saturate(tokens);
    }
    let adapter_bytes = demand.adapters.memory_bytes.unwrap_or(defaults.adapter_bytes);
    let load_bytes = demand.adapters.load_bytes.unwrap_or((available as f64 * LOAD_SHARE) as u64);
    let (kv_tokens, kv_bytes) = (blocks * u64::from(cache.block_size), blocks * block_bytes);
    check_memory(demand)?;
    Ok(Sizes { max_model_len, kv_blocks: saturate(blocks), kv_tokens, kv_bytes, adapter_bytes, load_bytes })
}

/// Sizes that were asked for must be there beside the base model: the kernel promises memory that it does not have, and
/// ends the process when it is used. Defaults are shares of what is there.
fn check_memory(demand: &Demand<'_>) -> Result<(), AppError> {
    if let Some(room) = demand.device {
        return room.check(demand);
    }
    let Some(available) = demand.available else { return Ok(()) };
    let kv = demand.cache.kv_cache_bytes;
    let (adapters, load) = (demand.adapters.memory_bytes, demand.adapters.load_bytes);
    if [kv, adapters, load].iter().all(Option::is_none) {
        return Ok(());
    }
    let weight_bytes = demand.weight_bytes;
    let [kv_bytes, adapter_bytes, load_bytes] = [kv, adapters, load].map(|asked| asked.unwrap_or(0));
    let needed = weight_bytes.saturating_add(kv_bytes).saturating_add(adapter_bytes).saturating_add(load_bytes);
    if needed <= available {
        return Ok(());
    }
    Err(AppError::MemoryTooSmall { kv_bytes, adapter_bytes, load_bytes, weight_bytes, available })
}

/// Bytes of K and V of one token in all layers, and of what comes out of shared ones.
fn token_bytes(spec: &DecoderSpec, kv: KvDtype, shared_layers: Option<u32>) -> u64 {
    let kept = shared_layers.map_or(0, |_| spec.hidden_size * size_of::<f32>());
    (2 * spec.layers.len() * spec.kv_dim() * kv.size() + kept) as u64
}

fn saturate(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrefixCache;
    use crate::model::read_spec;

    fn spec() -> DecoderSpec {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
            "max_position_embeddings": 100, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        });
        read_spec(config.as_object().unwrap()).unwrap()
    }

    /// 3 layers × 8 numbers × 2 bytes × K and V: 96 bytes a token, 1,536 a block of 16.
    fn decide_with(change: impl FnOnce(&mut Demand<'_>)) -> Result<Sizes, AppError> {
        let spec = spec();
        let mut demand = Demand {
            spec: &spec,
            kv: KvDtype::Bf16,
            max_model_len: None,
            scheduler: StepLimits { max_num_seqs: 4, max_num_batched_tokens: 64 },
            cache: CacheConfig {
                block_size: 16,
                kv_cache_bytes: None,
                prefix_cache: PrefixCache::Salted,
                shared_layers: None,
            },
            adapters: AdapterLimits {
                max_resident: 4,
                max_bytes: 1 << 20,
                max_rank: 64,
                memory_bytes: None,
                load_bytes: None,
                max_faults: 3,
                allow_unknown_fields: false,
            },
            weight_bytes: 0,
            available: Some(1 << 30),
            device: None,
        };
        change(&mut demand);
        decide(&demand)
    }

    #[test]
    fn plenty_of_memory_gives_every_sequence_its_full_length() {
        let sizes = decide_with(|_| {}).unwrap();
        assert_eq!(
            sizes,
            Sizes {
                max_model_len: 100,
                kv_blocks: 28,
                kv_tokens: 448,
                kv_bytes: 28 * 1536,
                adapter_bytes: 1 << 28,
                load_bytes: 1 << 28
            }
        );
    }

    #[test]
    fn little_memory_gives_its_share_and_then_shortens_the_context() {
        let sizes = decide_with(|demand| demand.available = Some(10 * 5 * 1536)).unwrap();
        assert_eq!((sizes.max_model_len, sizes.kv_blocks), (100, 10));
        let sizes = decide_with(|demand| demand.available = Some(3 * 5 * 1536)).unwrap();
        assert_eq!((sizes.max_model_len, sizes.kv_blocks), (48, 3));
    }

    #[test]
    fn what_was_asked_for_is_not_changed() {
        let sizes = decide_with(|demand| demand.cache.kv_cache_bytes = Some(1_000_000)).unwrap();
        assert_eq!(sizes.kv_blocks, 651);
        let error = decide_with(|demand| {
            demand.cache.kv_cache_bytes = Some(1536);
            demand.max_model_len = Some(17);
        });
        assert!(matches!(error, Err(AppError::KvCacheTooSmall { tokens: 16, needed: 3072, .. })));
        let error = decide_with(|demand| demand.cache.kv_cache_bytes = Some(1));
        assert!(matches!(error, Err(AppError::KvCacheTooSmall { tokens: 0, .. })));
        let error = decide_with(|demand| demand.max_model_len = Some(101));
        assert!(matches!(error, Err(AppError::ContextTooLong { given: 101, context_length: 100 })));
        let error = decide_with(|demand| demand.cache.shared_layers = Some(3));
        assert!(matches!(error, Err(AppError::SharedLayers { given: 3, layers: 3 })));
    }

    /// 16 hidden numbers of 4 bytes for each of the 16 tokens of a block: 2,560 bytes.
    #[test]
    fn hidden_states_behind_shared_layers_are_part_of_the_cache() {
        let sizes = decide_with(|demand| {
            demand.cache.kv_cache_bytes = Some(1_000_000);
            demand.cache.shared_layers = Some(2);
        });
        assert_eq!(sizes.unwrap().kv_blocks, 390);
    }

    #[test]
    fn a_gpu_gives_all_that_weights_and_workspace_leave() {
        let room = DeviceRoom { bytes: 1 << 20, workspace_bytes: 1 << 18 };
        let on_device = |demand: &mut Demand<'_>| (demand.device, demand.weight_bytes) = (Some(room), 1 << 18);
        let sizes = decide_with(on_device).unwrap();
        let left = 1 << 19;
        assert_eq!((sizes.adapter_bytes, sizes.kv_blocks), (left / 4, 28));
        assert!(sizes.adapter_bytes + sizes.kv_bytes <= left);
        assert_eq!(sizes.load_bytes, 1 << 28, "adapters come in through the memory of the host");
        let all_kv = decide_with(|demand| {
            on_device(demand);
            demand.cache.kv_cache_bytes = Some(left);
        });
        assert_eq!(all_kv.unwrap().adapter_bytes, 0);
        let too_much = decide_with(|demand| {
            on_device(demand);
            demand.cache.kv_cache_bytes = Some(left);
            demand.adapters.memory_bytes = Some(1);
        });
        assert!(matches!(too_much, Err(AppError::DeviceTooSmall { adapter_bytes: 1, .. })));
        let too_large = decide_with(|demand| {
            on_device(demand);
            demand.weight_bytes = 1 << 20;
        });
        assert!(matches!(too_large, Err(AppError::DeviceTooSmall { .. })));
    }

    #[test]
    fn what_memory_cannot_hold_beside_the_model_is_refused_with_the_numbers() {
        let error = |change: fn(&mut Demand<'_>)| decide_with(change).unwrap_err().to_string();
        let kv = error(|demand| demand.cache.kv_cache_bytes = Some(2 << 30));
        assert!(kv.contains("--kv-cache-bytes 2.0 GiB") && kv.contains("1.0 GiB"), "{kv}");
        let sum = error(|demand| {
            demand.cache.kv_cache_bytes = Some(512 << 20);
            demand.weight_bytes = 600 << 20;
        });
        assert!(sum.contains("600.0 MiB"), "{sum}");
        let adapters = error(|demand| {
            demand.adapters.memory_bytes = Some(900 << 20);
            demand.weight_bytes = 600 << 20;
        });
        assert!(adapters.contains("--adapter-memory 900.0 MiB"), "{adapters}");
        let load = error(|demand| demand.adapters.load_bytes = Some(2 << 30));
        assert!(load.contains("--load-memory 2.0 GiB"), "{load}");
        let fits = |demand: &mut Demand<'_>| {
            demand.cache.kv_cache_bytes = Some(512 << 20);
            demand.adapters.memory_bytes = Some(256 << 20);
            demand.weight_bytes = 256 << 20;
        };
        assert!(decide_with(fits).is_ok());
        // Nothing was asked for: shares of what is there.
        assert!(decide_with(|demand| demand.weight_bytes = 2 << 30).is_ok());
        // A system that does not say.
        let unknown = |demand: &mut Demand<'_>| (demand.available, demand.cache.kv_cache_bytes) = (None, Some(1 << 40));
        assert!(decide_with(unknown).is_ok());
    }
}
