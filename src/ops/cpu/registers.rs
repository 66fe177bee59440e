//! Loops of products in registers alone, which touch no memory: what an instruction can do at most.
//!
//! Semantics of each: `sum = sum * b + b`, of which the result is thrown away.

use std::hint::black_box;

#[cfg(not(target_arch = "x86_64"))]
use super::isa::{Arithmetic, Plain};

/// Sums side by side, as many as a tile has: enough for two multiply-adds a cycle of four cycles' latency.
pub(super) const SUMS: usize = 12;

/// A loop over registers of one width.
#[cfg(target_arch = "x86_64")]
macro_rules! registers {
    ($name:ident, $features:literal, $splat:ident, $b:ident = $operand:expr, |$sum:ident| $next:expr) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(turns: usize) {
            use std::arch::x86_64::*;
            let mut sums = [$splat(black_box(1.0)); SUMS];
            let $b = $operand;
            for _ in 0..turns {
                for sum in &mut sums {
                    let $sum = *sum;
                    *sum = $next;
                }
            }
            black_box(sums);
        }
    };
}

#[cfg(target_arch = "x86_64")]
registers!(wide, "avx512f", _mm512_set1_ps, b = _mm512_set1_ps(black_box(1e-6)), |sum| _mm512_fmadd_ps(sum, b, b));
#[cfg(target_arch = "x86_64")]
registers!(half, "avx2,fma", _mm256_set1_ps, b = _mm256_set1_ps(black_box(1e-6)), |sum| _mm256_fmadd_ps(sum, b, b));
#[cfg(target_arch = "x86_64")]
registers!(baseline, "sse2", _mm_set1_ps, b = _mm_set1_ps(black_box(1e-6)), |sum| _mm_add_ps(_mm_mul_ps(sum, b), b));
// Pairs of bf16: `sum = sum + b · b`.
#[cfg(target_arch = "x86_64")]
registers!(
    pairs,
    "avx512f,avx512bf16",
    _mm512_set1_ps,
    b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(1.0))),
    |sum| _mm512_dpbf16_ps(sum, b, b)
);

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn plain(turns: usize) {
    let mut sums = [[black_box(1.0_f32); 4]; SUMS];
    let b = black_box(1e-6_f32);
    for _ in 0..turns {
        for sum in sums.as_flattened_mut() {
            *sum = Plain::mul_add(*sum, b, b);
        }
    }
    black_box(sums);
}
