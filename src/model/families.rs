//! `config.json` to [`DecoderSpec`], one small mapping per family. Defaults are those of the family's config class in
//! transformers; what is not implemented is refused by name.

use serde_json::{Map, Value};

use super::ModelError;
use super::config::Fields;
use super::experts_config;
use super::rope_config::{flat_rope, gemma3_ropes};
use super::spec::{DecoderSpec, DenseMlp, Family, LayerSpec, Mlp, RopeScaling};
use crate::ops::Activation;

/// Most decoder layers; the deepest published models have some 130.
const MAX_LAYERS: usize = 1024;
/// Most rows of an embedding.
const MAX_VOCABULARY: usize = 1 << 24;
/// Widest residual stream, MLP or stack of heads.
const MAX_WIDTH: usize = 1 << 20;

/// Fields that transformers' config classes type without an alternative: a written null is an error there.
const NEVER_NULL: [&str; 13] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "max_window_layers",
    "query_pre_attn_scalar",
];

/// Read the spec off a parsed `config.json`: what is meant, before anybody looks at the tensors. Allocates little,
/// whatever the numbers say.
///
/// # Errors
/// [`ModelError::MissingField`], [`ModelError::BadField`] and [`ModelError::Unsupported`], each naming the field.
pub fn read_spec(config: &Map<String, Value>) -> Result<DecoderSpec, ModelError> {
    let fields = Fields::new(config, "");
    let model_type = fields.str("model_type")?.ok_or_else(|| fields.bad("model_type", "a model family"))?;
    let family = Family::ALL.into_iter().find(|family| family.model_type() == model_type).ok_or_else(|| {
        let served = "; served: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, phi3, gemma2, gemma3_text";
        fields.unsupported("model_type", served)
    })?;
    fields.not_null(&NEVER_NULL)?;
    if fields.get("per_layer_config").is_some() {
        return Err(fields.unsupported("per_layer_config", "; all layers of a model have one shape"));
    }
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config", "; f32, f16 and bf16 checkpoints are served"));
    }
    let mut spec = common(&fields, family)?;
    match family {
        Family::Llama => llama(&fields, &mut spec)?,
        Family::Mistral => mistral(&fields, &mut spec)?,
        Family::Qwen2 => qwen2(&fields, &mut spec)?,
        Family::Qwen3 => qwen3(&fields, &mut spec)?,
        Family::Phi3 => phi3(&fields, &mut spec)?,
        Family::Gemma2 => gemma2(&fields, &mut spec)?,
        Family::Gemma3 => gemma3(&fields, &mut spec)?,
        Family::Mixtral => mixtral(&fields, &mut spec)?,
        Family::Qwen3Moe => qwen3_moe(&fields, &mut spec)?,
    }
    check(&fields, &spec)?;
    Ok(spec)
}

/// The mapping as most families share it: Llama's fields with the family's defaults.
fn common(fields: &Fields<'_>, family: Family) -> Result<DecoderSpec, ModelError> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let width = |field| fields.size(field, MAX_WIDTH, "at most 2^20");
    let hidden_size = width("hidden_size")?;
    let heads = width("num_attention_heads")?;
    let default_head_dim = match family {
        Family::Qwen3 => 128,
        Family::Gemma2 | Family::Gemma3 => 256,
        _ => hidden_size / heads,
    };
    // These derive it where it is null; the other classes have no place for a null.
    if !matches!(family, Family::Llama | Family::Mistral | Family::Mixtral) {
        fields.not_null(&["head_dim"])?;
    }
    let head_dim = fields.positive_or("head_dim", default_head_dim)?;
    if head_dim == 0 || heads.saturating_mul(head_dim) > MAX_WIDTH {
        return Err(fields.bad("head_dim", "at least 1, and with all heads together at most 2^20"));
    }
    let layers = fields.size("num_hidden_layers", MAX_LAYERS, "at most 1024")?;
    let default_kv_heads = match family {
        Family::Mistral | Family::Mixtral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
        Family::Gemma2 | Family::Gemma3 | Family::Qwen3Moe => 4,
        Family::Llama | Family::Phi3 => heads,
    };
    // These families treat a written null as "as many as query heads" and an absent field as the class default.
    let kv_heads = if fields.has("num_key_value_heads") {
        fields.positive_or("num_key_value_heads", heads)?
    } else {
        default_kv_heads
    };
    let default_eps = if matches!(family, Family::Phi3 | Family::Mixtral) { 1e-5 } else { 1e-6 };
    let mlp = Mlp::Dense(DenseMlp {
        intermediate_size: width("intermediate_size")?,
        activation: activation(fields, gemma)?,
        bias: false,
    });
    let mut spec = DecoderSpec {
        family,
        vocab_size: fields.size("vocab_size", MAX_VOCABULARY, "at most 2^24")?,
        hidden_size,
        heads,
        kv_heads,
        head_dim,
        layers: vec![LayerSpec { window: None, rope: 0, mlp }; layers],
        ropes: vec![],
        norm_eps: fields.f64_or("rms_norm_eps", default_eps)? as f32,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        qkv_bias: false,
        o_bias: false,
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3 | Family::Qwen3Moe),
        sandwich_norms: gemma,
        fused_projections: family == Family::Phi3,
        embed_scale: if gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: None,
        final_softcap: None,
        tied: fields.bool_or("tie_word_embeddings", gemma)?,
        context_length: fields.positive("max_position_embeddings")?,
    };
    if family != Family::Gemma3 {
        spec.ropes = vec![flat_rope(fields, &spec)?];
    }
    Ok(spec)
}

fn activation(fields: &Fields<'_>, gemma: bool) -> Result<Activation, ModelError> {
    // Gemma's `hidden_act` is a historical leftover; `hidden_activation` is what its MLP reads.
    let field = if gemma { "hidden_activation" } else { "hidden_act" };
    fields.not_null(&[field])?;
    match fields.str(field)? {
        None if gemma => Ok(Activation::GeluTanh),
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        Some(_) => Err(fields.unsupported(field, "; served: silu, gelu, gelu_pytorch_tanh")),
    }
}

fn attention_biases(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let bias = fields.bool_or("attention_bias", false)?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    Ok(())
}

fn llama(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    attention_biases(fields, spec)?;
    let mlp_bias = fields.bool_or("mlp_bias", false)?;
    for layer in &mut spec.layers {
        if let Mlp::Dense(mlp) = &mut layer.mlp {
            mlp.bias = mlp_bias;
        }
    }
    // transformers' cache forgets what is outside such a window, its mask does not: one sequence, two results.
    let forgets = |window: usize| window < spec.context_length;
    if fields.usize("sliding_window")?.is_some_and(forgets) {
        return Err(fields.unsupported("sliding_window", "; Llama has none"));
    }
    match layer_types(fields, spec.layers.len())? {
        Some(types) if types.contains(&true) => Err(fields.unsupported("layer_types", "; Llama has no window")),
        _ => Ok(()),
    }
}

/// With `layer_types` transformers takes the file for Ministral's, where layers differ.
fn mistral(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    fields.not_null(&["num_key_value_heads"])?;
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |_| true)
}

/// Layers whose `layer_types` entry is `sliding_attention`, or, without that list, those `by_default` picks, get the
/// window. A list that asks for a window where there is none is refused.
fn windows(
    fields: &Fields<'_>,
    spec: &mut DecoderSpec,
    written: bool,
    default: Option<usize>,
    by_default: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let window = if written { fields.usize("sliding_window")? } else { default };
    let types = layer_types(fields, spec.layers.len())?;
    if window.is_none() && types.as_ref().is_some_and(|types| types.contains(&true)) {
        return Err(fields.bad("layer_types", "no sliding_attention where there is no window"));
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = types.as_ref().map_or_else(|| by_default(index), |types| types[index]);
        layer.window = window.filter(|_| sliding).map(|window| window as u32);
    }
    Ok(())
}

/// True for each sliding layer, from `layer_types`.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = fields.str_list("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(fields.bad("layer_types", "one entry per layer"));
    }
    let sliding = |kind: &&str| match *kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(fields.unsupported("layer_types", "; served: full_attention, sliding_attention")),
    };
    types.iter().map(sliding).collect::<Result<_, _>>().map(Some)
}

fn qwen2(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    spec.qkv_bias = true;
    qwen_windows(fields, spec)
}

fn qwen3(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    attention_biases(fields, spec)?;
    qwen_windows(fields, spec)
}

fn qwen_windows(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    if !fields.bool_or("use_sliding_window", false)? {
        // Such files name a window all the same.
        return windows(fields, spec, false, None, |_| false);
    }
    let full = fields.usize("max_window_layers")?.unwrap_or(28);
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |layer| layer >= full)
}

fn phi3(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let window = fields.usize("sliding_window")?;
    one_window(fields, spec, window)
}

/// One window for all layers; transformers masks by it whatever `layer_types` says, and caches by the latter.
fn one_window(fields: &Fields<'_>, spec: &mut DecoderSpec, window: Option<usize>) -> Result<(), ModelError> {
    if layer_types(fields, spec.layers.len())?.is_some_and(|types| types.contains(&window.is_none())) {
        return Err(fields.unsupported("layer_types", "; this family has one window for all layers"));
    }
    spec.layers.iter_mut().for_each(|layer| layer.window = window.map(|window| window as u32));
    Ok(())
}

fn mixtral(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let window = fields.usize("sliding_window")?;
    one_window(fields, spec, window)?;
    experts_config::mixtral(fields, spec)
}

fn qwen3_moe(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    fields.not_null(&["num_key_value_heads"])?;
    attention_biases(fields, spec)?;
    let written = if fields.has("sliding_window") { fields.usize("sliding_window")? } else { Some(4096) };
    let window = if fields.bool_or("use_sliding_window", false)? { written } else { None };
    if window.is_some() && fields.get("max_window_layers").is_some() {
        return Err(fields.unsupported("max_window_layers", "; it has no effect on Qwen3-MoE in transformers"));
    }
    one_window(fields, spec, window)?;
    experts_config::qwen3_moe(fields, spec)
}

/// Gemma's layers slide by the class's own pattern, which needs a window.
fn gemma_windows(fields: &Fields<'_>, spec: &mut DecoderSpec, pattern: usize) -> Result<(), ModelError> {
    fields.not_null(&["sliding_window", "num_key_value_heads"])?;
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |layer| !(layer + 1).is_multiple_of(pattern))
}

fn causal_only(fields: &Fields<'_>) -> Result<(), ModelError> {
    let both_ways = fields.bool_or("use_bidirectional_attention", false)?;
    if both_ways { Err(fields.unsupported("use_bidirectional_attention", "; attention is causal")) } else { Ok(()) }
}

fn gemma2(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    causal_only(fields)?;
    attention_biases(fields, spec)?;
    spec.attention_scale = pre_attention_scale(fields)?;
    spec.attention_softcap = softcap(fields, "attn_logit_softcapping", Some(50.0))?;
    spec.final_softcap = softcap(fields, "final_logit_softcapping", Some(30.0))?;
    gemma_windows(fields, spec, 2)
}

fn gemma3(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    causal_only(fields)?;
    attention_biases(fields, spec)?;
    spec.attention_scale = pre_attention_scale(fields)?;
    if fields.get("attn_logit_softcapping").is_some() {
        return Err(fields.unsupported("attn_logit_softcapping", "; it has no effect on Gemma 3 in transformers"));
    }
    spec.final_softcap = softcap(fields, "final_logit_softcapping", None)?;
    let pattern = gemma3_pattern(fields)?;
    gemma_windows(fields, spec, pattern)?;
    spec.ropes = gemma3_ropes(fields, spec)?;
    for layer in &mut spec.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
    Ok(())
}

/// Every how manieth layer sees everything, where `layer_types` does not say which.
fn gemma3_pattern(fields: &Fields<'_>) -> Result<usize, ModelError> {
    const DEFAULT: usize = 6;
    if fields.get("layer_types").is_some() {
        return Ok(DEFAULT);
    }
    if fields.has("sliding_window_pattern") {
        return fields.positive("sliding_window_pattern");
    }
    // transformers writes this one beside `layer_types` and never reads it.
    match fields.usize("_sliding_window_pattern")? {
        Some(unread) if unread != DEFAULT => {
            let hint = "; it has no effect in transformers, `sliding_window_pattern` and `layer_types` have";
            Err(fields.unsupported("_sliding_window_pattern", hint))
        }
        _ => Ok(DEFAULT),
    }
}

fn pre_attention_scale(fields: &Fields<'_>) -> Result<f32, ModelError> {
    let scalar = fields.f64_or("query_pre_attn_scalar", 256.0)?;
    let scale = scalar.powf(-0.5) as f32;
    let fits = scalar > 0.0 && scale.is_finite();
    if fits { Ok(scale) } else { Err(fields.bad("query_pre_attn_scalar", "above 0")) }
}

fn softcap(fields: &Fields<'_>, field: &str, default: Option<f64>) -> Result<Option<f32>, ModelError> {
    let cap = if fields.has(field) { fields.f64(field)? } else { default };
    match cap {
        Some(cap) if cap as f32 <= 0.0 || !(cap as f32).is_finite() => Err(fields.bad(field, "above 0")),
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}

fn check(fields: &Fields<'_>, spec: &DecoderSpec) -> Result<(), ModelError> {
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(fields.bad("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    let originals = spec.ropes.iter().filter_map(|rope| match rope.scaling {
        RopeScaling::LongRope { original_context, .. } => Some(original_context),
        _ => None,
    });
    if originals.clone().min() != originals.max() {
        return Err(fields.unsupported("rope_parameters", "; two longropes of one model turn at one length"));
    }
    if spec.layers.iter().any(|layer| layer.window == Some(0)) {
        return Err(fields.bad("sliding_window", "at least 1, or null"));
    }
    if spec.kv_heads > spec.heads {
        return Err(fields.bad("num_key_value_heads", "at most num_attention_heads"));
    }
    if spec.norm_eps < 0.0 || !spec.norm_eps.is_finite() {
        return Err(fields.bad("rms_norm_eps", "0 or above"));
    }
    Ok(())
}
