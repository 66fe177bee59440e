//! Module paths of every family: the one table the loader reads weights by and deltas find their sites in.

use super::experts::sparse_blocks;
use super::spec::{DecoderSpec, Mlp};
use crate::delta::{BaseLayout, BaseSizes, LayerSite, Module, ModuleKind, Site};

/// The modules of a decoder, with the names its checkpoint uses.
#[must_use]
pub fn base_layout(spec: &DecoderSpec) -> BaseLayout {
    let mut modules = vec![
        module(spec, "model.embed_tokens".to_owned(), Site::Embed),
        module(spec, "model.norm".to_owned(), Site::FinalNorm),
        module(spec, "lm_head".to_owned(), Site::LmHead),
    ];
    for layer in 0..spec.layers.len() as u32 {
        for (name, site) in layer_modules(spec, layer) {
            modules.push(module(spec, format!("model.layers.{layer}.{name}"), Site::Layer(layer, site)));
        }
    }
    let sizes = BaseSizes {
        layers: spec.layers.len(),
        hidden_size: spec.hidden_size,
        q_dim: spec.q_dim(),
        kv_dim: spec.kv_dim(),
        kv_heads: spec.kv_heads,
        intermediate_size: spec.dense_size(),
        vocab_size: spec.vocab_size,
        norm_offset: spec.norm_offset,
        tied: spec.tied,
        model_type: spec.family.model_type(),
    };
    BaseLayout::new(sizes, modules).with_sparse_blocks(sparse_blocks(spec))
}

/// Names within a layer. Router and experts are a [`SparseBlock`](crate::delta::SparseBlock).
fn layer_modules(spec: &DecoderSpec, layer: u32) -> Vec<(&'static str, LayerSite)> {
    use LayerSite::{
        AttentionNorm, AttentionOutNorm, Down, Gate, GateUp, K, KNorm, MlpNorm, MlpOutNorm, O, Q, QNorm, Qkv, Up, V,
    };
    let mut modules = vec![("input_layernorm", AttentionNorm), ("self_attn.o_proj", O)];
    let fused = spec.fused_projections;
    if fused {
        modules.push(("self_attn.qkv_proj", Qkv));
    } else {
        modules.extend([("self_attn.q_proj", Q), ("self_attn.k_proj", K), ("self_attn.v_proj", V)]);
    }
    match spec.layers[layer as usize].mlp {
        Mlp::Dense(_) if fused => modules.extend([("mlp.gate_up_proj", GateUp), ("mlp.down_proj", Down)]),
        Mlp::Dense(_) => modules.extend([("mlp.gate_proj", Gate), ("mlp.up_proj", Up), ("mlp.down_proj", Down)]),
        Mlp::Experts(_) => {}
    }
    if spec.qk_norm {
        modules.extend([("self_attn.q_norm", QNorm), ("self_attn.k_norm", KNorm)]);
    }
    if spec.sandwich_norms {
        modules.extend([("post_attention_layernorm", AttentionOutNorm), ("pre_feedforward_layernorm", MlpNorm)]);
        modules.push(("post_feedforward_layernorm", MlpOutNorm));
    } else {
        modules.push(("post_attention_layernorm", MlpNorm));
    }
    modules
}

fn module(spec: &DecoderSpec, path: String, site: Site) -> Module {
    use LayerSite::{
        AfterAttention, AfterMlp, AttentionNorm, AttentionOutNorm, Down, ExpertsDown, ExpertsGate, ExpertsGateUp,
        ExpertsUp, Gate, GateUp, K, KNorm, MlpNorm, MlpOutNorm, O, Q, QNorm, Qkv, Router, Up, V,
    };
    use ModuleKind::{Embedding, Linear, Norm};
    let (inner, mlp_bias) = (spec.dense_size(), spec.dense().is_some_and(|mlp| mlp.bias));
    let hidden = spec.hidden_size;
    let (q, kv) = (spec.q_dim(), spec.kv_dim());
    let (kind, input, output, bias) = match site {
        Site::Embed => (Embedding, spec.vocab_size, hidden, false),
        Site::LmHead => (Linear, hidden, spec.vocab_size, false),
        Site::FinalNorm | Site::VirtualTokens | Site::Labels => (Norm, hidden, hidden, false),
        Site::Layer(_, part) => match part {
            Q => (Linear, hidden, q, spec.qkv_bias),
            K | V => (Linear, hidden, kv, spec.qkv_bias),
            Qkv => (Linear, hidden, q + 2 * kv, spec.qkv_bias),
            O => (Linear, q, hidden, spec.o_bias),
            Gate | Up => (Linear, hidden, inner, mlp_bias),
            GateUp => (Linear, hidden, 2 * inner, mlp_bias),
            Down => (Linear, inner, hidden, mlp_bias),
            QNorm | KNorm => (Norm, spec.head_dim, spec.head_dim, false),
            AttentionNorm | AttentionOutNorm | MlpNorm | MlpOutNorm => (Norm, hidden, hidden, false),
            AfterAttention | AfterMlp | Router | ExpertsGate | ExpertsUp | ExpertsGateUp | ExpertsDown => {
                unreachable!("`layer_modules` lists modules of the base only")
            }
        },
    };
    let weight = match site {
        Site::LmHead if spec.tied => "model.embed_tokens.weight".to_owned(),
        _ => format!("{path}.weight"),
    };
    Module { path, site, kind, input, output, bias, weight }
}
