//! Paged attention, prefill and decode alike, on the GEMM's tiles.
//!
//! One algorithm per (row, query head), *query* for short: walk the stretches of [`SIDE`] KV tiles that hold a visible
//! place, in ascending order; score, mask, online softmax (Milakov & Gimelshein 2018), add `p V` place by place.
//! Stretches are counted from KV index 0, so neither chunking nor the batch moves them; one without a visible place is
//! skipped, and masked places of the others are left out of `p V` instead of being multiplied by 0, so that what a stale
//! page holds (even NaN) changes nothing. Many queries share the reading of a stretch, each with sums of its own.
//!
//! This file says which kernels compute an item; `walk` is the algorithm, `items` cuts a step.
#![allow(unsafe_code)]

mod items;
mod pass;
mod walk;

pub(super) use items::{Item, assert_consistent, items};
pub(super) use pass::Pass;

use super::gemm::Portable;
#[cfg(target_arch = "x86_64")]
use super::gemm::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
use super::isa::Fused;
use super::isa::{DetectedIsa, Isa, Plain};
use super::numerics::KvDtype;
use super::pack::{Line, PANEL};
use items::MAX_QUERIES;
use pass::{SIDE, STRETCH};
use walk::walk;

/// Lines that one thread needs to compute items of heads of `head_dim`.
pub(super) fn workspace_lines(head_dim: usize) -> usize {
    let panels = head_dim.div_ceil(PANEL);
    // Queries and their outputs, their scores, keys and values of a stretch.
    2 * (MAX_QUERIES + STRETCH) * panels + MAX_QUERIES * SIDE
}

/// Compute one item. `lines` are [`workspace_lines`], of any contents.
///
/// # Safety
/// No other thread touches the heads of the item in its rows of y meanwhile.
pub(super) unsafe fn attend(isa: DetectedIsa, pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: `DetectedIsa` proves the instruction set; the caller answers for y.
    unsafe {
        match (isa.get(), pass.layout.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, KvDtype::F32) => fused512::<false>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16 | Isa::Avx512, KvDtype::Bf16) => fused512::<true>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, KvDtype::F32) => fused256::<false>(pass, item, lines),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, KvDtype::Bf16) => fused256::<true>(pass, item, lines),
            (_, KvDtype::F32) => walk::<Portable<Plain, false>, Portable<Plain, false>, Plain>(pass, item, lines),
            (_, KvDtype::Bf16) => walk::<Portable<Plain, true>, Portable<Plain, false>, Plain>(pass, item, lines),
        }
    }
}

/// # Safety
/// As [`attend`], on a machine with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn fused256<const BF16: bool>(pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: handed on.
    unsafe { walk::<Avx2<BF16>, Avx2<false>, Fused>(pass, item, lines) }
}

/// # Safety
/// As [`attend`], on a machine with AVX-512F, AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn fused512<const BF16: bool>(pass: &Pass<'_>, item: &Item, lines: &mut [Line]) {
    // SAFETY: handed on.
    unsafe { walk::<Avx512<BF16>, Avx512<false>, Fused>(pass, item, lines) }
}
