//! How the flags of AdapterHub's library wire a bottleneck to its block.
//!
//! With x the stream, h what the block adds to it and u = s·(U·f(D·v + b1) + b2), the library computes, on bases whose blocks begin
//! with their norm, R = h, or x + h where `original_ln_before` is true and `residual_before_ln` false:
//!
//! | | v | the stream becomes |
//! |---|---|---|
//! | sequential | h, or x + h with `original_ln_before` | u + R (+ x with `original_ln_after`) |
//! | with `ln_after` | the same | LayerNorm(u) + R (+ x), or LayerNorm(u + R) (+ x) with `adapter_residual_before_ln` |
//! | `is_parallel` | x | u + h (+ x), or LayerNorm(u) + h (+ x) |

use crate::delta::DeltaError;
use crate::delta::layout::{BaseLayout, LayerSite, Site};
use crate::delta::peft::fields::Fields;
use crate::files::Json;
use crate::ops::{Blend, Wiring};

/// Models of which the library has the layers written out. On others it hooks itself into the base by a description that
/// lies beside the adapter (`adapter_interface.json`) and is not read here.
const WRITTEN_OUT: [&str; 2] = ["llama", "mistral"];

/// What becomes of v, x and h.
pub(super) fn wiring(fields: &Fields, layout: &BaseLayout, norm_after: bool) -> Result<Wiring, DeltaError> {
    let is_parallel = fields.bool_or("config.is_parallel", false)?;
    let adds_before = fields.bool_or("config.original_ln_before", false)?;
    let adds_after = fields.bool_or("config.original_ln_after", true)?;
    let norms_residual = fields.bool_or("config.adapter_residual_before_ln", false)?;
    let residual_first = match fields.get("config.residual_before_ln") {
        Some(Json::String(_)) if !is_parallel && adds_before => {
            let hint = ": the library itself cannot run it on a base whose blocks begin with their norm; true is what \
                        its bottlenecks have";
            return Err(fields.unsupported("config.residual_before_ln", hint));
        }
        None | Some(Json::Bool(true) | Json::String(_)) => true,
        Some(Json::Bool(false)) => false,
        Some(_) => return Err(fields.bad("config.residual_before_ln", "true or false")),
    };
    if !WRITTEN_OUT.contains(&layout.model_type) {
        check_hooked(fields, layout, is_parallel, adds_before, adds_after)?;
    }
    let residual = if !is_parallel && adds_before && !residual_first { Blend::BOTH } else { Blend::H };
    let reads = match (is_parallel, adds_before) {
        (true, _) => Blend::X,
        (false, true) => Blend::BOTH,
        (false, false) => Blend::H,
    };
    let kept = if adds_after { Blend::X } else { Blend::NOTHING };
    let plus = |one: Blend, other: Blend| Blend { of_x: one.of_x + other.of_x, of_h: one.of_h + other.of_h };
    let (branch, stream) = match (norm_after, norms_residual && !is_parallel) {
        // h in the branch and x in the stream, so that each is touched where it is.
        (false, _) => (Blend::H, plus(kept, Blend { of_h: 0.0, ..residual })),
        (true, true) => (residual, kept),
        (true, false) => (Blend::NOTHING, plus(kept, residual)),
    };
    Ok(Wiring { reads, stream, branch })
}

/// On a base of which the library has not written out the layers, only what a block gives is certain.
fn check_hooked(
    fields: &Fields,
    layout: &BaseLayout,
    is_parallel: bool,
    adds_before: bool,
    adds_after: bool,
) -> Result<(), DeltaError> {
    let norms_blocks =
        layout.modules().any(|module| matches!(module.site, Site::Layer(_, LayerSite::AttentionOutNorm)));
    if norms_blocks || layout.sparse_blocks().next().is_some() {
        let hint = ": on such a base the place of an adapter depends on the AdapterModelInterface that it was trained with, \
                    which is not read";
        return Err(fields.unsupported("config.mh_adapter", hint));
    }
    let hint = " on this base: what it reads depends on the AdapterModelInterface that it was trained with, which is not \
                read; double_seq_bn, which reads a block's output alone, is served";
    for (is_on, field) in [(is_parallel, "config.is_parallel"), (adds_before, "config.original_ln_before")] {
        if is_on {
            return Err(fields.unsupported(field, hint));
        }
    }
    match adds_after {
        true => Ok(()),
        false => Err(fields.unsupported("config.original_ln_after", ", which the library refuses on this base")),
    }
}
