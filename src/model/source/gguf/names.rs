//! Names of tensors: llama.cpp's (`gguf-py/gguf/constants.py`) and transformers'.

/// One divisor for each rotary frequency (Llama 3.1). transformers has no tensor for it.
pub(in crate::model) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Outside of the layers.
const OUTSIDE: [(&str, &str); 4] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    (ROPE_FACTORS, ROPE_FACTORS),
];

/// Modules of a layer.
const MODULES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// transformers' name of a tensor of llama.cpp's; `None` where the families that are served have none.
pub(super) fn of_transformers(name: &str) -> Option<String> {
    if let Some((_, outside)) = OUTSIDE.iter().find(|(ggml, _)| *ggml == name) {
        return Some((*outside).to_owned());
    }
    let (layer, module, part) = layer_parts(name)?;
    let (_, module) = MODULES.iter().find(|(ggml, _)| *ggml == module)?;
    Some(format!("model.layers.{layer}.{module}.{part}"))
}

/// Whether the rows of a tensor rotate.
pub(super) fn rotates(name: &str) -> bool {
    layer_parts(name).is_some_and(|(_, module, _)| matches!(module, "attn_q" | "attn_k"))
}

/// `blk.LAYER.MODULE.PART`, where the layer is written as a number is.
fn layer_parts(name: &str) -> Option<(u32, &str, &str)> {
    let mut parts = name.strip_prefix("blk.")?.splitn(3, '.');
    let (layer, module, part) = (parts.next()?, parts.next()?, parts.next()?);
    let number: u32 = layer.parse().ok()?;
    let plain = number.to_string() == layer && matches!(part, "weight" | "bias");
    plain.then_some((number, module, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_transformers_or_unknown() {
        let of = |name| of_transformers(name);
        assert_eq!(of("token_embd.weight").as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(of("blk.12.attn_q.bias").as_deref(), Some("model.layers.12.self_attn.q_proj.bias"));
        assert_eq!(of("blk.0.ffn_norm.weight").as_deref(), Some("model.layers.0.post_attention_layernorm.weight"));
        for name in ["blk.00.attn_q.weight", "blk.+1.attn_q.weight", "blk.0.attn_q.scale", "blk.0.ffn_gate_exps.weight"]
        {
            assert_eq!(of(name), None, "{name}");
        }
        assert!(
            rotates("blk.3.attn_k.bias") && !rotates("blk.3.attn_k_norm.weight") && !rotates("blk.3.attn_v.weight")
        );
    }
}
