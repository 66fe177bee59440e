//! Numbers that look like weights and cost little to make.

use half::bf16;

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// `len` numbers, uniform in ±`bound`.
pub(crate) fn weights(seed: u64, len: usize, bound: f32) -> Vec<bf16> {
    let mut random = Random::new(seed);
    let step = bound / 32768.0;
    let mut numbers = Vec::with_capacity(len.next_multiple_of(4));
    while numbers.len() < len {
        let word = random.next();
        numbers.extend([0, 16, 32, 48].map(|shift| bf16::from_f32(f32::from((word >> shift) as i16) * step)));
    }
    numbers.truncate(len);
    numbers
}
