//! The fields of `config.json` that describe experts, read as transformers 5 reads them.

use super::ModelError;
use super::config::Fields;
use super::spec::{DecoderSpec, Mlp};
use crate::ops::{Activation, ExpertsSpec};

/// Most experts of a layer; published models have up to some hundreds.
const MAX_EXPERTS: usize = 1 << 12;
/// Widest MLP of an expert.
const MAX_WIDTH: usize = 1 << 20;

/// Mixtral: experts in every layer, whose weights always add up to 1. `router_jitter_noise` is noise of training.
pub(super) fn mixtral(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    fields.not_null(&["num_local_experts", "num_experts", "num_experts_per_tok"])?;
    if !fields.bool_or("norm_topk_prob", true)? {
        return Err(fields.unsupported("norm_topk_prob", "; it has no effect on Mixtral in transformers"));
    }
    let dense = spec.dense();
    let experts = ExpertsSpec {
        experts: number_of_experts(fields, "num_local_experts", "num_experts")?,
        experts_per_token: fields.positive_or("num_experts_per_tok", 2)?,
        intermediate_size: spec.dense_size(),
        activation: dense.map_or(Activation::Silu, |mlp| mlp.activation),
        renormalise: true,
    };
    check(fields, &experts)?;
    spec.layers.iter_mut().for_each(|layer| layer.mlp = Mlp::Experts(experts));
    Ok(())
}

/// Qwen3-MoE: experts in every layer that `decoder_sparse_step` divides, counted from 1, and `mlp_only_layers` leaves out.
pub(super) fn qwen3_moe(fields: &Fields<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let typed = ["num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"];
    fields.not_null(&typed)?;
    fields.not_null(&["norm_topk_prob", "decoder_sparse_step"])?;
    let dense = spec.dense();
    let experts = ExpertsSpec {
        experts: number_of_experts(fields, "num_experts", "num_local_experts")?,
        experts_per_token: fields.positive_or("num_experts_per_tok", 8)?,
        intermediate_size: fields.size("moe_intermediate_size", MAX_WIDTH, "at most 2^20")?,
        activation: dense.map_or(Activation::Silu, |mlp| mlp.activation),
        renormalise: fields.bool_or("norm_topk_prob", false)?,
    };
    check(fields, &experts)?;
    let step = fields.positive_or("decoder_sparse_step", 1)?;
    let dense_layers = fields.usize_list("mlp_only_layers")?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if !dense_layers.contains(&index) && (index + 1).is_multiple_of(step) {
            layer.mlp = Mlp::Experts(experts);
        }
    }
    Ok(())
}

/// The two names are one field in transformers, where the last one written counts; here two that differ are refused.
fn number_of_experts(fields: &Fields<'_>, name: &str, other: &str) -> Result<usize, ModelError> {
    let found = [name, other].map(|field| if fields.has(field) { Some(field) } else { None });
    let counts = found.map(|field| field.map(|field| fields.size(field, MAX_EXPERTS, "at most 4096")).transpose());
    match counts {
        [Ok(Some(count)), Ok(Some(same))] if count != same => {
            Err(fields.unsupported(other, "; it is another name of the number of experts, which differs"))
        }
        [Ok(Some(count)), Ok(_)] | [Ok(None), Ok(Some(count))] => Ok(count),
        [Ok(None), Ok(None)] => fields.size(name, MAX_EXPERTS, "at most 4096"),
        [Err(error), _] | [_, Err(error)] => Err(error),
    }
}

fn check(fields: &Fields<'_>, experts: &ExpertsSpec) -> Result<(), ModelError> {
    if experts.experts_per_token > experts.experts {
        return Err(fields.bad("num_experts_per_tok", "at most the number of experts"));
    }
    Ok(())
}
