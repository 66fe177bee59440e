//! What the processor could compute and read at most: the measures for a GEMM. No step calls this.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::CpuBackend;
use super::isa::Isa;
use super::memory::Streamed;
use super::registers::{self, SUMS};
use crate::ops::OpsError;

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
                    Isa::Avx512Bf16 | Isa::Avx512 => registers::wide(turns),
                    Isa::Avx2 => registers::half(turns),
                    Isa::Portable => registers::baseline(turns),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            registers::plain(turns);
        });
        PARTS * turns * SUMS * lanes(isa)
    }
}

/// Words that a thread takes at a time of what is read.
const SHARE: usize = 1 << 17;

/// Memory to read through, placed as weights are.
#[derive(Debug)]
pub struct Reading(Streamed<u64>);

impl Reading {
    /// So many bytes, or a word more.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    pub fn new(bytes: usize) -> Result<Self, OpsError> {
        Ok(Self(Streamed::filled("a measurement", bytes / 8 + 1, 1)?))
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }
}

impl CpuBackend {
    /// Read all of it once, on all threads. Returns the sum of its words, which are ones.
    ///
    /// Semantics: `sum of words`.
    #[must_use]
    pub fn read(&self, memory: &Reading) -> u64 {
        let words: &[u64] = &memory.0;
        let total = AtomicU64::new(0);
        self.pool.run(usize::MAX, words.len().div_ceil(SHARE), |share| {
            let words = &words[share * SHARE..words.len().min((share + 1) * SHARE)];
            let (lines, rest) = words.as_chunks::<32>();
            let mut sums = [0_u64; 32];
            for line in lines {
                sums.iter_mut().zip(line).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            }
            let sum = sums.iter().chain(rest).fold(0, |sum: u64, word| sum.wrapping_add(*word));
            total.fetch_add(sum, Ordering::Relaxed);
        });
        total.into_inner()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Numerics;
    use crate::ops::cpu::CpuOptions;

    #[test]
    fn every_word_is_read_once() {
        let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap();
        for words in [1, 31, SHARE, 3 * SHARE + 45] {
            let memory = Reading::new(8 * (words - 1)).unwrap();
            assert_eq!((memory.bytes(), cpu.read(&memory)), (8 * words, words as u64));
        }
    }

    #[test]
    fn every_path_counts_what_it_multiplies() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: Some(isa) }).unwrap();
            assert_eq!(cpu.multiply_add(3), 3 * 16 * 12 * lanes(isa));
        }
    }
}
