//! Which of two sets of rotary frequencies a sequence is rotated by (longrope, Ding et al. 2024), as transformers
//! chooses them.

/// A model with two sets of rotary frequencies: short ones for sequences within the context of its pre-training, long
/// ones beyond. KV of the one is not KV of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongRope {
    /// Tokens, virtual ones included, up to which a sequence is short.
    pub original_context: u32,
    /// A sequence that outgrows it computes all its KV anew (Phi-3); else what is in the cache stays as it is. One with
    /// virtual tokens never does: transformers has not counted them when it decides.
    pub recompute: bool,
}

impl LongRope {
    /// No place of the sequence is rotated by the long frequencies.
    pub const NEVER: u32 = u32::MAX;

    /// True if a sequence that begins with so many tokens is long from its first place on.
    #[must_use]
    pub fn is_long(&self, tokens: usize) -> bool {
        tokens > self.original_context as usize
    }

    /// True if a sequence with so many virtual tokens computes its KV anew when it outgrows the original context.
    #[must_use]
    pub fn recomputes(&self, virtual_tokens: usize) -> bool {
        self.recompute && virtual_tokens == 0
    }

    /// The first KV index that is rotated by the long frequencies, for a sequence whose prompt and virtual tokens are
    /// `tokens` together: 0 where those are too many already, the original context where it grows over that without
    /// computing anything anew, [`Self::NEVER`] where it computes all anew instead.
    #[must_use]
    pub fn first_long(&self, tokens: usize, virtual_tokens: usize) -> u32 {
        match () {
            () if self.is_long(tokens) => 0,
            () if self.recomputes(virtual_tokens) => Self::NEVER,
            () => self.original_context,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_after_the_original_context_is_the_first_of_a_long_sequence() {
        let phi = LongRope { original_context: 16, recompute: true };
        let other = LongRope { recompute: false, ..phi };
        assert_eq!((phi.first_long(16, 0), phi.first_long(17, 0)), (LongRope::NEVER, 0));
        assert_eq!((other.first_long(16, 0), other.first_long(17, 0)), (16, 0));
        assert_eq!((phi.first_long(16, 3), phi.first_long(17, 3)), (16, 0));
    }
}
