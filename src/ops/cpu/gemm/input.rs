//! x in the form the tiles broadcast from.

use crate::ops::cpu::isa::{Arithmetic, DetectedIsa, Isa, dispatched};
use crate::ops::cpu::math::round_bf16_bits;
use crate::ops::cpu::numerics::{ComputeDtype, Numerics, WeightFormat};

/// How a row of x is laid out in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops::cpu) enum InputForm {
    /// f32, as it is.
    Exact,
    /// f32 with the value of the nearest bf16.
    Rounded,
    /// Two bf16 to a word, the lower k in the lower half; an odd last k is paired with 0.
    Pairs,
}

impl InputForm {
    pub(in crate::ops::cpu) fn of(isa: DetectedIsa, numerics: Numerics) -> Self {
        match numerics.compute {
            ComputeDtype::F32 => Self::Exact,
            ComputeDtype::Bf16 if Self::takes_pairs(isa, numerics.weights) => Self::Pairs,
            ComputeDtype::Bf16 => Self::Rounded,
        }
    }

    /// Whether bf16 products of weights in this format take two of x at a time.
    pub(super) fn takes_pairs(isa: DetectedIsa, weights: WeightFormat) -> bool {
        isa.get() == Isa::Avx512Bf16 && weights == WeightFormat::Bf16
    }

    /// Words that `depth` numbers take.
    pub(in crate::ops::cpu) fn words(self, depth: usize) -> usize {
        match self {
            Self::Exact | Self::Rounded => depth,
            Self::Pairs => depth.div_ceil(2),
        }
    }

    /// Words from one row to the next: whole cache lines, and an odd number of them so that rows of a power of two do
    /// not fall on the same few sets of a cache.
    pub(in crate::ops::cpu) fn stride(self, depth: usize) -> usize {
        (self.words(depth).div_ceil(16) | 1) * 16
    }
}

/// Prepared rows.
#[derive(Clone, Copy)]
pub(in crate::ops::cpu) struct Inputs<'a> {
    words: &'a [u32],
    form: InputForm,
    depth: usize,
    stride: usize,
    /// Prepared row of each row; the same without.
    map: Option<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    /// `words` holds whole rows of [`InputForm::stride`].
    pub(in crate::ops::cpu) fn new(words: &'a [u32], form: InputForm, depth: usize) -> Self {
        Self { words, form, depth, stride: form.stride(depth), map: None }
    }

    /// Some of the rows, in the order of `map`.
    pub(in crate::ops::cpu) fn with_map(self, map: &'a [u32]) -> Self {
        Self { map: Some(map), ..self }
    }

    pub(super) fn form(&self) -> InputForm {
        self.form
    }

    pub(in crate::ops::cpu) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn rows(&self) -> usize {
        self.map.map_or(self.words.len() / self.stride, <[u32]>::len)
    }

    /// A row, readable for [`InputForm::words`] of the depth.
    pub(super) fn row(&self, row: usize) -> *const u32 {
        let row = self.map.map_or(row, |map| map[row] as usize);
        self.words[row * self.stride..][..self.stride].as_ptr()
    }
}

dispatched! {
    /// Write one row in `form`.
    fn prepare_row(form: InputForm, x: &[f32], words: &mut [u32]) = prepare
}

#[inline(always)]
fn prepare<A: Arithmetic>(form: InputForm, x: &[f32], words: &mut [u32]) {
    match form {
        InputForm::Exact => words.iter_mut().zip(x).for_each(|(word, x)| *word = x.to_bits()),
        InputForm::Rounded => words.iter_mut().zip(x).for_each(|(word, x)| *word = round_bf16_bits(*x)),
        InputForm::Pairs => {
            let (pairs, last) = x.as_chunks::<2>();
            for (word, pair) in words.iter_mut().zip(pairs) {
                *word = round_bf16_bits(pair[0]) >> 16 | round_bf16_bits(pair[1]);
            }
            if let [last] = last {
                words[pairs.len()] = round_bf16_bits(*last) >> 16;
            }
        }
    }
}
