//! Metadata of an architecture as the `config.json` that transformers would have written, so that one mapping leads to
//! the decoder. Every key of the architecture is read or refused: one that is not known may change what is computed.

use serde_json::{Map, Value, json};

use super::GgufRefusal;
use crate::files::gguf::{GgufHeader, GgufMetadata};

/// Architectures: llama.cpp's name, transformers' class, and whether rows that rotate together lie side by side.
const ARCHITECTURES: [(&str, &str, bool); 3] =
    [("llama", "LlamaForCausalLM", true), ("qwen2", "Qwen2ForCausalLM", false), ("qwen3", "Qwen3ForCausalLM", false)];

/// Keys that are read, behind the architecture's name.
const KNOWN: [&str; 22] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// What llama.cpp rotates by where the file does not say.
const DEFAULT_THETA: f64 = 10_000.0;

/// Ids that end a text.
const ENDS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// What the metadata say of the network.
pub(super) struct Network {
    /// As transformers writes it.
    pub(super) config: Map<String, Value>,
    /// The rows of q and k that rotate together lie side by side.
    pub(super) rotates_pairs: bool,
    /// Rows of a head; even where they rotate in pairs.
    pub(super) head_dim: usize,
}

impl Network {
    /// Read the metadata.
    ///
    /// # Errors
    /// [`GgufRefusal`].
    pub(super) fn of(header: &GgufHeader) -> Result<Self, GgufRefusal> {
        let metadata = &header.metadata;
        check_kind(metadata)?;
        let name = metadata.text("general.architecture")?;
        let name = name.ok_or_else(|| metadata.wrong("general.architecture", "an architecture"))?;
        let served = ARCHITECTURES.into_iter().find(|(served, ..)| *served == name);
        let (architecture, class, rotates_pairs) =
            served.ok_or_else(|| GgufRefusal::Architecture { found: name.chars().take(64).collect() })?;
        let keys = Keys { metadata, architecture };
        keys.check_known()?;
        let head_dim = keys.head_dim()?;
        let config = config(header, &keys, class, head_dim)?;
        Ok(Self { config, rotates_pairs, head_dim: head_dim as usize })
    }
}

fn check_kind(metadata: &GgufMetadata) -> Result<(), GgufRefusal> {
    if let Some(parts) = metadata.count("split.count")?.filter(|parts| *parts > 1) {
        return Err(GgufRefusal::Split { parts });
    }
    match metadata.text("general.type")? {
        None | Some("model") => Ok(()),
        Some(found) => Err(GgufRefusal::Kind { found: found.chars().take(64).collect() }),
    }
}

fn config(
    header: &GgufHeader,
    keys: &Keys<'_>,
    class: &'static str,
    head_dim: u64,
) -> Result<Map<String, Value>, GgufRefusal> {
    let tensor = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name);
    let embedding = tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    let vocab_size = embedding.unwrap_or(0) as u64;
    let heads = keys.needed("attention.head_count")?;
    let context = keys.needed("context_length")?;
    check_served(keys, vocab_size, head_dim, context)?;
    let epsilon = keys.number("attention.layer_norm_rms_epsilon")?;
    let epsilon = epsilon.ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    let fields = [
        ("architectures", json!([class])),
        ("model_type", keys.architecture.into()),
        ("vocab_size", vocab_size.into()),
        ("hidden_size", keys.needed("embedding_length")?.into()),
        ("intermediate_size", keys.needed("feed_forward_length")?.into()),
        ("num_hidden_layers", keys.needed("block_count")?.into()),
        ("num_attention_heads", heads.into()),
        ("num_key_value_heads", keys.count("attention.head_count_kv")?.unwrap_or(heads).into()),
        ("head_dim", head_dim.into()),
        ("hidden_act", "silu".into()),
        ("max_position_embeddings", context.into()),
        ("rms_norm_eps", epsilon.into()),
        ("rope_theta", keys.number("rope.freq_base")?.unwrap_or(DEFAULT_THETA).into()),
        ("tie_word_embeddings", tensor("output.weight").is_none().into()),
        ("attention_bias", tensor("blk.0.attn_output.bias").is_some().into()),
        ("mlp_bias", tensor("blk.0.ffn_down.bias").is_some().into()),
        ("eos_token_id", ends(keys.metadata)?.into()),
    ];
    let mut config: Map<String, Value> = fields.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
    config.extend(rope_scaling(keys)?.map(|scaling| ("rope_scaling".to_owned(), scaling)));
    Ok(config)
}

/// Values that are neutral, or say again what the tensors say.
fn check_served(keys: &Keys<'_>, vocab_size: u64, head_dim: u64, context: u64) -> Result<(), GgufRefusal> {
    keys.only("vocab_size", vocab_size, "; the embedding has another number of rows")?;
    keys.only("attention.value_length", head_dim, "; keys and values are of one length")?;
    keys.only("rope.dimension_count", head_dim, "; whole heads rotate")?;
    keys.only("expert_count", 0, "; dense models are")?;
    keys.only("expert_used_count", 0, "; dense models are")?;
    if keys.metadata.flag(&keys.name("attention.causal"))? == Some(false) {
        return Err(keys.unsupported("attention.causal", "; attention is causal"));
    }
    if keys.count("attention.sliding_window")?.is_some_and(|window| window != 0 && window < context) {
        return Err(keys.unsupported("attention.sliding_window", "; from GGUF models without a window are"));
    }
    Ok(())
}

/// How the rotary embedding is stretched; `None`: not at all.
fn rope_scaling(keys: &Keys<'_>) -> Result<Option<Value>, GgufRefusal> {
    const TYPE: &str = "rope.scaling.type";
    if keys.number("rope.scaling.attn_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(keys.unsupported("rope.scaling.attn_factor", "; 1 is"));
    }
    let factor = |key| -> Result<f64, GgufRefusal> { keys.number(key)?.ok_or_else(|| keys.missing(key)) };
    match keys.metadata.text(&keys.name(TYPE))? {
        Some("none") => Ok(None),
        Some("linear") => Ok(Some(json!({ "rope_type": "linear", "factor": factor("rope.scaling.factor")? }))),
        Some("yarn") => Ok(Some(json!({
            "rope_type": "yarn",
            "factor": factor("rope.scaling.factor")?,
            "original_max_position_embeddings": keys.needed("rope.scaling.original_context_length")?,
        }))),
        Some(_) => Err(keys.unsupported(TYPE, "; none, linear and yarn are")),
        // As it was written before there were several types.
        None if keys.has("rope.scale_linear") => {
            Ok(Some(json!({ "rope_type": "linear", "factor": factor("rope.scale_linear")? })))
        }
        None if keys.has("rope.scaling.factor") => Err(keys.missing(TYPE)),
        None => Ok(None),
    }
}

/// Ids that end a text, each once.
fn ends(metadata: &GgufMetadata) -> Result<Vec<u64>, GgufRefusal> {
    let mut ids = Vec::new();
    for key in ENDS {
        ids.extend(metadata.count(key)?.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a GgufMetadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn has(&self, key: &str) -> bool {
        self.metadata.get(&self.name(key)).is_some()
    }

    fn count(&self, key: &str) -> Result<Option<u64>, GgufRefusal> {
        Ok(self.metadata.count(&self.name(key))?)
    }

    fn needed(&self, key: &str) -> Result<u64, GgufRefusal> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, GgufRefusal> {
        Ok(self.metadata.number(&self.name(key))?)
    }

    fn missing(&self, key: &str) -> GgufRefusal {
        self.metadata.wrong(&self.name(key), "a value").into()
    }

    fn unsupported(&self, key: &str, hint: &'static str) -> GgufRefusal {
        let key = self.name(key);
        let found = self.metadata.shown(&key);
        GgufRefusal::Unsupported { key, found, hint }
    }

    /// Refuse any other value of a key.
    fn only(&self, key: &str, value: u64, hint: &'static str) -> Result<(), GgufRefusal> {
        match self.count(key)? {
            Some(found) if found != value => Err(self.unsupported(key, hint)),
            _ => Ok(()),
        }
    }

    fn check_known(&self) -> Result<(), GgufRefusal> {
        let own = |key: &&str| key.strip_prefix(self.architecture).is_some_and(|rest| rest.starts_with('.'));
        let known = |key: &str| KNOWN.contains(&&key[self.architecture.len() + 1..]);
        match self.metadata.keys().filter(own).find(|key| !known(key)) {
            Some(key) => Err(GgufRefusal::UnknownKey { key: key.to_owned() }),
            None => Ok(()),
        }
    }

    /// As llama.cpp: the key's length where it is written, else what the width leaves for each head.
    fn head_dim(&self) -> Result<u64, GgufRefusal> {
        if let Some(length) = self.count("attention.key_length")? {
            let even = length > 0 && length.is_multiple_of(2);
            return if even { Ok(length) } else { Err(self.unsupported("attention.key_length", "; even lengths are")) };
        }
        let (width, heads) = (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let fits = heads > 0 && width.is_multiple_of(heads) && (width / heads).is_multiple_of(2) && width > 0;
        let hint = "; it divides the width into heads of an even length";
        if fits { Ok(width / heads) } else { Err(self.unsupported("attention.head_count", hint)) }
    }
}
