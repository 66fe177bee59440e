//! Does `vdpbf16ps` pay on this processor? Some multiply two pairs of bf16 in the time of one f32, others take four times
//! as long, and are faster by widening to f32. Asked once, when a backend is made.
#![allow(unsafe_code)]

/// Whether products of bf16 pairs are faster than those of the same numbers widened. The two rates differ by a factor of
/// two or more wherever they were measured, so that the shortest of a few runs gives the same answer at every start.
///
/// The machine has AVX512-BF16, or the answer is no.
pub(super) fn pay() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use super::isa::Isa;
        use super::registers;

        /// Registers' worth of products in a run: some ten microseconds.
        const TURNS: usize = 8000;
        const RUNS: usize = 7;
        if !Isa::Avx512Bf16.is_available() {
            return false;
        }
        let shortest = |run: unsafe fn(usize)| {
            let time = |_| {
                let start = std::time::Instant::now();
                // SAFETY: AVX512-BF16 is there, as asked above, and AVX-512F with it.
                unsafe { run(TURNS) };
                start.elapsed()
            };
            (0..RUNS).map(time).min().unwrap_or_default()
        };
        // A register of pairs holds twice the numbers.
        shortest(registers::pairs) < 2 * shortest(registers::wide)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;

    #[test]
    fn a_machine_without_the_instruction_gains_nothing_and_one_with_it_always_answers_the_same() {
        let first = super::pay();
        assert!(!first || Isa::Avx512Bf16.is_available());
        assert!((0..20).all(|_| super::pay() == first));
    }
}
