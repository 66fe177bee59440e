//! What the processor could compute at most: the measure for a GEMM. Nothing that serves requests calls this.
#![allow(unsafe_code)]

use std::hint::black_box;

use super::CpuBackend;
use super::isa::Isa;
#[cfg(not(target_arch = "x86_64"))]
use super::isa::{Arithmetic, Plain};

/// Sums side by side, as many as a tile has: enough for two multiply-adds a cycle of four cycles' latency.
const SUMS: usize = 12;

/// Parts of a call, so that threads end together.
const PARTS: usize = 16;

impl CpuBackend {
    /// Multiply and add f32 in registers, on all threads, at the widest the path has; `turns` times twelve registers in
    /// each of sixteen parts. Returns how many numbers were multiplied and added. Whoever takes the time has the rate
    /// that no GEMM in f32 exceeds.
    ///
    /// Semantics: `sum = sum * b + b`, of which the result is thrown away.
    #[must_use]
    pub fn multiply_add(&self, turns: usize) -> usize {
        let isa = self.isa.get();
        self.pool.run(usize::MAX, PARTS, |_| {
            // SAFETY: `DetectedIsa` proves the instruction set.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                match isa {
                    Isa::Avx512Bf16 | Isa::Avx512 => wide(turns),
                    Isa::Avx2 => half(turns),
                    Isa::Portable => baseline(turns),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            plain(turns);
        });
        PARTS * turns * SUMS * lanes(isa)
    }
}

/// Numbers of a register.
fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512Bf16 | Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Portable => 4,
    }
}

/// A loop over registers of one width.
#[cfg(target_arch = "x86_64")]
macro_rules! registers {
    ($name:ident, $features:literal, $splat:ident, |$sum:ident, $b:ident| $next:expr) => {
        #[target_feature(enable = $features)]
        fn $name(turns: usize) {
            use std::arch::x86_64::*;
            let mut sums = [$splat(black_box(1.0)); SUMS];
            let $b = $splat(black_box(1e-6));
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
registers!(wide, "avx512f", _mm512_set1_ps, |sum, b| _mm512_fmadd_ps(sum, b, b));
#[cfg(target_arch = "x86_64")]
registers!(half, "avx2,fma", _mm256_set1_ps, |sum, b| _mm256_fmadd_ps(sum, b, b));
#[cfg(target_arch = "x86_64")]
registers!(baseline, "sse2", _mm_set1_ps, |sum, b| _mm_add_ps(_mm_mul_ps(sum, b), b));

#[cfg(not(target_arch = "x86_64"))]
fn plain(turns: usize) {
    let mut sums = [[black_box(1.0_f32); 4]; SUMS];
    let b = black_box(1e-6_f32);
    for _ in 0..turns {
        for sum in sums.as_flattened_mut() {
            *sum = Plain::mul_add(*sum, b, b);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Numerics;
    use crate::ops::cpu::CpuOptions;

    #[test]
    fn every_path_counts_what_it_multiplies() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: Some(isa) }).unwrap();
            assert_eq!(cpu.multiply_add(3), 3 * 16 * 12 * lanes(isa));
        }
    }
}
