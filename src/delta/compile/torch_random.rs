//! What torch's generator on the CPU gives for a seed, as far as configs rely on it: MT19937 (Matsumoto & Nishimura 1998) and
//! the beginning of `torch.randperm`.

use std::collections::HashMap;

/// From this length on `randperm` shuffles in another way.
const LARGE: usize = u32::MAX as usize / 20;

/// Words of the state, and how far one is mixed with another.
const WORDS: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator().manual_seed(seed)`.
struct Generator {
    state: [u32; WORDS],
    next: usize,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut state = [seed as u32; WORDS];
        for at in 1..WORDS {
            let before = state[at - 1];
            state[at] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        Self { state, next: WORDS }
    }

    fn twist(&mut self) {
        for at in 0..WORDS {
            let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + SHIFT) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }
}

/// The first `count` numbers of `torch.randperm(len, generator=torch.Generator().manual_seed(seed))`.
pub(super) fn permutation_start(len: usize, count: usize, seed: u64) -> Vec<usize> {
    let generator = Generator::new(seed);
    let count = count.min(len);
    if len < LARGE { shuffled(generator, len, count) } else { shuffled_inside_out(generator, len, count) }
}

/// Fisher and Yates from the front: a place is final once it has been passed. Only places that have changed are kept.
fn shuffled(mut generator: Generator, len: usize, count: usize) -> Vec<usize> {
    let mut moved: HashMap<usize, usize> = HashMap::new();
    let passed = |at: usize| {
        let left = (len - at) as u64;
        let other = at + if left > 1 { (u64::from(generator.next_u32()) % left) as usize } else { 0 };
        let own = moved.get(&at).copied().unwrap_or(at);
        moved.insert(other, own).unwrap_or(other)
    };
    (0..count).map(passed).collect()
}

/// The same for long ones: every number is put in at random, so that all are drawn for, and any may come to the front.
fn shuffled_inside_out(mut generator: Generator, len: usize, count: usize) -> Vec<usize> {
    let mut front = Vec::with_capacity(count);
    for at in 0..len {
        let place = (generator.next_u64() % (at as u64 + 1)) as usize;
        if at < count {
            front.push(front.get(place).copied().unwrap_or(at));
        }
        if let Some(held) = front.get_mut(place) {
            *held = at;
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_generator_of_1998() {
        let mut generator = Generator::new(5489);
        let words: Vec<u32> = (0..10_000).map(|_| generator.next_u32()).collect();
        assert_eq!((words[0], words[9999]), (3_499_211_612, 4_123_659_995));
    }

    #[test]
    fn permutations_begin_as_torchs() {
        let cases: [(usize, u64, &[usize]); 6] = [
            (1, 777, &[0]),
            (7, 0, &[4, 0, 5, 3, 2, 6, 1]),
            (32 * 32, 777, &[103, 249, 319, 701, 999, 360]),
            (72 * 32, (1 << 32) + 5, &[611, 1994, 2025, 2061, 1410]),
            (896 * 4864, 777, &[1_964_135, 343_469, 4_243_599, 3_558_904]),
            (LARGE - 1, 777, &[11_440_646, 199_500_216, 10_121_607, 3_119_241]),
        ];
        for (len, seed, expected) in cases {
            assert_eq!(permutation_start(len, expected.len(), seed), expected, "{len}");
        }
    }

    #[test]
    #[ignore = "draws some 430 million words"]
    fn a_long_permutation_begins_as_torchs() {
        let expected = [150_358_698, 199_533_091, 83_306_822, 145_970_095, 40_813_261];
        assert_eq!(permutation_start(LARGE, expected.len(), 777), expected);
    }

    #[test]
    fn a_permutation_inside_out_is_one() {
        for (len, count) in [(1, 1), (7, 7), (40, 3), (40, 40)] {
            let whole = shuffled_inside_out(Generator::new(3), len, len);
            let mut sorted = whole.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            assert_eq!(shuffled_inside_out(Generator::new(3), len, count), whole[..count]);
        }
    }
}
