//! `config.json` to [`DecoderSpec`], one small mapping per family. Defaults are those of the family's config class in
//! transformers; what is not implemented is refused by name.

use serde_json::{Map, Value};

use super::ModelError;
use super::config::Fields;
use super::spec::{DecoderSpec, Family, LayerSpec, RopeScaling, RopeSpec};
use crate::ops::Activation;

/// Read the spec off a parsed `config.json`.
///
/// # Errors
/// [`ModelError::MissingField`], [`ModelError::BadField`] and [`ModelError::Unsupported`], each naming the field.
pub fn read_spec(config: &Map<String, Value>) -> Result<DecoderSpec, ModelError> {
    let fields = Fields::new(config, "");
    let model_type = fields.str("model_type")?.ok_or_else(|| fields.bad("model_type", "a model family"))?;
    let family = Family::ALL.into_iter().find(|family| family.model_type() == model_type).ok_or_else(|| {
        fields.unsupported("model_type", "; served: llama, mistral, qwen2, qwen3, phi3, gemma2, gemma3_text")
    })?;
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config", "; f32, f16 and bf16 checkpoints are served"));
    }
    let mut spec = common(&fields, family)?;
    match family {
        Family::Llama => llama(&fields, &mut spec)?,
        Family::Mistral => windows(&fields, &mut spec, fields.has("sliding_window"), Some(4096), |_| true)?,
        Family::Qwen2 => qwen2(&fields, &mut spec)?,
        Family::Qwen3 => qwen3(&fields, &mut spec)?,
        Family::Phi3 => phi3(&fields, &mut spec)?,
        Family::Gemma2 => gemma2(&fields, &mut spec)?,
        Family::Gemma3 => gemma3(&fields, &mut spec)?,
    }
    check(&fields, &spec)?;
    Ok(spec)
}

/// The mapping as most families share it: Llama's fields with the family's defaults.
fn common(fields: &Fields<'_>, family: Family) -> Result<DecoderSpec, ModelError> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let hidden_size = fields.positive("hidden_size")?;
    let heads = fields.positive("num_attention_heads")?;
    let default_head_dim = match family {
        Family::Qwen3 => 128,
        Family::Gemma2 | Family::Gemma3 => 256,
        _ => hidden_size / heads,
    };
    let head_dim = fields.positive_or("head_dim", default_head_dim)?;
    let layers = fields.positive("num_hidden_layers")?;
    let default_kv_heads = match family {
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
        Family::Gemma2 | Family::Gemma3 => 4,
        Family::Llama | Family::Phi3 => heads,
    };
    // These families treat a written null as "as many as query heads" and an absent field as the class default.
    let kv_heads = if fields.has("num_key_value_heads") {
        fields.positive_or("num_key_value_heads", heads)?
    } else {
        default_kv_heads
    };
    let mut spec = DecoderSpec {
        family,
        vocab_size: fields.positive("vocab_size")?,
        hidden_size,
        intermediate_size: fields.positive("intermediate_size")?,
        heads,
        kv_heads,
        head_dim,
        layers: vec![LayerSpec { window: None, rope: 0 }; layers],
        ropes: vec![],
        norm_eps: fields.f64_or("rms_norm_eps", if family == Family::Phi3 { 1e-5 } else { 1e-6 })? as f32,
        norm_offset: if gemma { 1.0 } else { 0.0 },
        activation: activation(fields, gemma)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
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
        spec.ropes = vec![rope(fields, &spec, None, 10_000.0)?];
    }
    Ok(spec)
}

fn activation(fields: &Fields<'_>, gemma: bool) -> Result<Activation, ModelError> {
    // Gemma's `hidden_act` is a historical leftover; `hidden_activation` is what its MLP reads.
    let field = if gemma { "hidden_activation" } else { "hidden_act" };
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
    spec.mlp_bias = fields.bool_or("mlp_bias", false)?;
    Ok(())
}

/// Layers whose `layer_types` entry is `sliding_attention`, or, without that list, those `by_default` picks, get the
/// window if `enabled`.
fn windows(
    fields: &Fields<'_>,
    spec: &mut DecoderSpec,
    written: bool,
    default: Option<usize>,
    by_default: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let window = if written { fields.usize("sliding_window")? } else { default };
    let types = layer_types(fields, spec.layers.len())?;
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
        return Ok(());
    }
    let full = fields.usize("max_window_layers")?.unwrap_or(28);
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |layer| layer >= full)
}

fn phi3(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    windows(fields, spec, true, None, |_| true)
}

fn gemma2(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    attention_biases(fields, spec)?;
    spec.attention_scale = pre_attention_scale(fields)?;
    spec.attention_softcap = softcap(fields, "attn_logit_softcapping", Some(50.0))?;
    spec.final_softcap = softcap(fields, "final_logit_softcapping", Some(30.0))?;
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |layer| layer % 2 == 0)
}

fn gemma3(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    if fields.bool_or("use_bidirectional_attention", false)? {
        return Err(fields.unsupported("use_bidirectional_attention", ""));
    }
    attention_biases(fields, spec)?;
    spec.attention_scale = pre_attention_scale(fields)?;
    spec.attention_softcap = softcap(fields, "attn_logit_softcapping", None)?;
    spec.final_softcap = softcap(fields, "final_logit_softcapping", None)?;
    let pattern = match fields.positive_or("sliding_window_pattern", 0)? {
        0 => fields.positive_or("_sliding_window_pattern", 6)?,
        pattern => pattern,
    };
    windows(fields, spec, fields.has("sliding_window"), Some(4096), |layer| !(layer + 1).is_multiple_of(pattern))?;
    let global = rope(fields, spec, Some("full_attention"), 1_000_000.0)?;
    let local = gemma3_local_rope(fields, spec)?;
    spec.ropes = vec![global, local];
    let types = layer_types(fields, spec.layers.len())?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = types.as_ref().map_or(!(index + 1).is_multiple_of(pattern), |types| types[index]);
        layer.rope = usize::from(sliding);
    }
    Ok(())
}

fn gemma3_local_rope(fields: &Fields<'_>, spec: &DecoderSpec) -> Result<RopeSpec, ModelError> {
    if fields.get("rope_parameters").is_some() {
        return rope(fields, spec, Some("sliding_attention"), 10_000.0);
    }
    let theta = fields.f64_or("rope_local_base_freq", 10_000.0)?;
    Ok(RopeSpec { theta, rotary_dim: spec.head_dim, scaling: RopeScaling::Default })
}

fn pre_attention_scale(fields: &Fields<'_>) -> Result<f32, ModelError> {
    let scalar = fields.f64_or("query_pre_attn_scalar", 256.0)?;
    if scalar > 0.0 { Ok(scalar.powf(-0.5) as f32) } else { Err(fields.bad("query_pre_attn_scalar", "above 0")) }
}

fn softcap(fields: &Fields<'_>, field: &str, default: Option<f64>) -> Result<Option<f32>, ModelError> {
    let cap = if fields.has(field) { fields.f64(field)? } else { default };
    match cap {
        Some(cap) if cap <= 0.0 => Err(fields.bad(field, "above 0")),
        cap => Ok(cap.map(|cap| cap as f32)),
    }
}

/// One rotary kind. v5 writes `rope_parameters`, flat or (Gemma 3) by layer type; v4 writes `rope_theta` and
/// `rope_scaling`.
fn rope(
    fields: &Fields<'_>,
    spec: &DecoderSpec,
    layer_type: Option<&str>,
    default_theta: f64,
) -> Result<RopeSpec, ModelError> {
    let empty = Map::new();
    let (parameters, path) = match (fields.object("rope_parameters")?, layer_type) {
        (Some(all), Some(kind)) if all.contains_key(kind) => {
            (Fields::new(all, "rope_parameters").object(kind)?, "rope_parameters")
        }
        (Some(flat), _) => (Some(flat), "rope_parameters"),
        (None, _) => (fields.object("rope_scaling")?, "rope_scaling"),
    };
    let parameters = Fields::new(parameters.unwrap_or(&empty), path);
    let theta = match parameters.f64("rope_theta")? {
        Some(theta) => theta,
        None => fields.f64_or("rope_theta", default_theta)?,
    };
    let partial = match parameters.f64("partial_rotary_factor")? {
        Some(partial) => partial,
        None => fields.f64_or("partial_rotary_factor", 1.0)?,
    };
    let rotary_dim = (spec.head_dim as f64 * partial) as usize;
    if theta <= 0.0 {
        return Err(fields.bad("rope_theta", "above 0"));
    }
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > spec.head_dim {
        return Err(fields.bad("partial_rotary_factor", "a fraction that rotates an even number of head columns"));
    }
    let scaling = rope_scaling(fields, &parameters, rotary_dim, spec.context_length)?;
    Ok(RopeSpec { theta, rotary_dim, scaling })
}

fn rope_scaling(
    fields: &Fields<'_>,
    parameters: &Fields<'_>,
    rotary_dim: usize,
    context_length: usize,
) -> Result<RopeScaling, ModelError> {
    let field = if parameters.get("rope_type").is_some() { "rope_type" } else { "type" };
    let required = |name: &str| match parameters.f64(name)? {
        Some(number) if number > 0.0 => Ok(number),
        Some(_) => Err(parameters.bad(name, "above 0")),
        None => Err(parameters.bad(name, "a number above 0")),
    };
    match parameters.str(field)? {
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_context: required("original_max_position_embeddings")?,
        }),
        Some("longrope" | "su") => longrope(fields, parameters, rotary_dim, context_length),
        Some(_) => Err(parameters.unsupported(field, "; served: default, linear, llama3, longrope")),
    }
}

fn longrope(
    fields: &Fields<'_>,
    parameters: &Fields<'_>,
    rotary_dim: usize,
    context_length: usize,
) -> Result<RopeScaling, ModelError> {
    let (short_factor, long_factor) = (parameters.f64_list("short_factor")?, parameters.f64_list("long_factor")?);
    for (name, factors) in [("short_factor", &short_factor), ("long_factor", &long_factor)] {
        if factors.len() != rotary_dim / 2 || factors.iter().any(|factor| *factor <= 0.0) {
            return Err(parameters.bad(name, "one number above 0 for every pair of rotating columns"));
        }
    }
    let original_context = match parameters.usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => fields.positive_or("original_max_position_embeddings", context_length)?,
    };
    let stretch = match parameters.f64("factor")? {
        Some(factor) => factor,
        None => context_length as f64 / original_context as f64,
    };
    let attention_factor = match parameters.f64("attention_factor")? {
        Some(factor) => factor,
        None if stretch <= 1.0 => 1.0,
        None => (1.0 + stretch.ln() / (original_context as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_context })
}

fn check(fields: &Fields<'_>, spec: &DecoderSpec) -> Result<(), ModelError> {
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        return Err(fields.bad("num_key_value_heads", "a divisor of num_attention_heads"));
    }
    if spec.layers.iter().any(|layer| layer.window == Some(0)) {
        return Err(fields.bad("sliding_window", "at least 1, or null"));
    }
    if spec.norm_eps < 0.0 {
        return Err(fields.bad("rms_norm_eps", "0 or above"));
    }
    Ok(())
}
