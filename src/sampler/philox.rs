//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).
//!
//! A counter-based generator has no state: the draw of a token is a pure function of where the token stands, so it
//! cannot depend on the batch, on preemption or on what was drawn before.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block of Philox4x32-10.
fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut words = counter;
    let mut key = key;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(words[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(words[2]);
        let (first_high, first_low) = ((first >> 32) as u32, first as u32);
        let (second_high, second_low) = ((second >> 32) as u32, second as u32);
        words = [second_high ^ words[1] ^ key[0], second_low, first_high ^ words[3] ^ key[1], first_low];
    }
    words
}

/// The uniform number in [0, 1), 53 bits wide, of one output position of one choice.
pub(super) fn uniform(seed: u64, choice: u32, output_position: u32) -> f64 {
    let words = philox4x32([output_position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[1]) << 32 | u64::from(words[0]);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_known_answers_come_out() {
        // kat_vectors of the Random123 distribution.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_stay_in_the_half_open_unit_interval_and_differ_by_place() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in [0, 1, 1 << 32, u64::MAX] {
            for choice in 0..8 {
                for position in 0..64 {
                    let value = uniform(seed, choice, position);
                    assert!((0.0..1.0).contains(&value));
                    assert!(seen.insert(value.to_bits()), "seed {seed} choice {choice} position {position}");
                }
            }
        }
    }
}
