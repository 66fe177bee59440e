//! Bottlenecks (Houlsby et al. 2019): a small network beside or behind a block of a layer, as an adapter has it at a hidden
//! site. Here x is the residual stream, h what the block adds to it, v what the network reads.
//!
//! Its two matrices are a [`LowRankPair`](super::LowRankPair), which the kernels of low-rank deltas read; here is what is between
//! them, and what becomes of x and h.

/// A sum of x and h: `of_x * x + of_h * h`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blend {
    /// Of the stream.
    pub of_x: f32,
    /// Of what the block adds.
    pub of_h: f32,
}

impl Blend {
    /// Nothing of either.
    pub const NOTHING: Self = Self { of_x: 0.0, of_h: 0.0 };
    /// x alone.
    pub const X: Self = Self { of_x: 1.0, of_h: 0.0 };
    /// h alone.
    pub const H: Self = Self { of_x: 0.0, of_h: 1.0 };
    /// x + h.
    pub const BOTH: Self = Self { of_x: 1.0, of_h: 1.0 };

    /// Of two numbers.
    #[must_use]
    pub fn of(self, x: f32, h: f32) -> f32 {
        self.of_x * x + self.of_h * h
    }
}

/// How a bottleneck is wired to its site: what each becomes, from x and h as they were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wiring {
    /// v, what the network reads.
    pub reads: Blend,
    /// The stream.
    pub stream: Blend,
    /// What is added to the stream, before the network adds to it.
    pub branch: Blend,
}
