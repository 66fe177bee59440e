//! LoKr (Yeh et al. 2024, LyCORIS): ΔW = s·(w1 ⊗ w2), where each factor is whole or itself a product of rank r. By the rule
//! (P1·Q1) ⊗ (P2·Q2) = (P1 ⊗ P2)·(Q1 ⊗ Q2) it is a product of the ranks of the factors.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, RankAndAlpha, matrix};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::files::Json;

pub(super) struct LoKrConfig {
    folds: Folds,
    ranks: RankAndAlpha,
    decompose_both: bool,
    /// `None` is -1: as near to the square root as can be.
    decompose_factor: Option<usize>,
}

impl LoKrConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["rank_dropout", "module_dropout", "use_effective_conv2d", "rank_dropout_scale"]);
        let decompose_factor = match fields.get("decompose_factor").map(Json::as_f64) {
            None | Some(Some(-1.0)) => None,
            Some(_) => fields.usize("decompose_factor")?,
        };
        Ok(Self {
            folds: Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "LoKr", None)?,
            ranks: RankAndAlpha::read(fields)?,
            decompose_both: fields.bool_or("decompose_both", false)?,
            decompose_factor,
        })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let (rank, scaling) = self.ranks.of(compilation, module)?;
        self.folds.check_rank(module, rank)?;
        let (rows1, rows2) = factorization(module.output, self.decompose_factor);
        let (cols1, cols2) = factorization(module.input, self.decompose_factor);
        // PEFT's rules for which factor it decomposes.
        let whole1 = !self.decompose_both || 2 * rank >= rows1.max(cols1);
        let whole2 = 2 * rank >= rows2.max(cols2);
        let names = ["lokr_w1", "lokr_w1_a", "lokr_w1_b"];
        let first = Factor::take(compilation, module, names, [rows1, cols1], (!whole1).then_some(rank))?;
        let names = ["lokr_w2", "lokr_w2_a", "lokr_w2_b"];
        let second = Factor::take(compilation, module, names, [rows2, cols2], (!whole2).then_some(rank))?;
        let folded = first.rank * second.rank;
        self.folds.check_rank(module, folded)?;
        let number = |at: usize, col: usize| {
            first.right(at / second.rank, col / cols2) * second.right(at % second.rank, col % cols2)
        };
        let a = matrix(compilation, folded, module.input, number)?;
        let number = |row: usize, at: usize| {
            first.left(row / rows2, at / second.rank) * second.left(row % rows2, at % second.rank)
        };
        let b = matrix(compilation, module.output, folded, number)?;
        Ok(Some(LowRank { a, b, scaling }))
    }
}

impl OfModules for LoKrConfig {
    const OWN_KEY: &'static str = ".lokr_";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}

/// One factor as a product left·right.
struct Factor {
    rank: usize,
    cols: usize,
    left: Numbers,
    right: Numbers,
}

/// A matrix, or the identity.
enum Numbers {
    Identity,
    Given(Vec<f32>),
}

impl Numbers {
    fn at(&self, row: usize, col: usize, cols: usize) -> f32 {
        match self {
            Self::Identity => f32::from(u8::from(row == col)),
            Self::Given(numbers) => numbers[row * cols + col],
        }
    }
}

impl Factor {
    /// `rank` of one that the file has as a product; else it is whole, and one side of its product the identity.
    fn take(
        compilation: &mut Compilation<'_>,
        module: &Module,
        [whole, left, right]: [&'static str; 3],
        [rows, cols]: [usize; 2],
        rank: Option<usize>,
    ) -> Result<Self, DeltaError> {
        let mut take =
            |name, shape: [usize; 2]| Ok::<_, DeltaError>(compilation.required(module, name, &shape)?.to_f32());
        if let Some(rank) = rank {
            let left = Numbers::Given(take(left, [rows, rank])?);
            return Ok(Self { rank, cols, left, right: Numbers::Given(take(right, [rank, cols])?) });
        }
        let whole = Numbers::Given(take(whole, [rows, cols])?);
        Ok(match rows <= cols {
            true => Self { rank: rows, cols, left: Numbers::Identity, right: whole },
            false => Self { rank: cols, cols, left: whole, right: Numbers::Identity },
        })
    }

    fn left(&self, row: usize, at: usize) -> f32 {
        self.left.at(row, at, self.rank)
    }

    fn right(&self, at: usize, col: usize) -> f32 {
        self.right.at(at, col, self.cols)
    }
}

/// PEFT's cut of a width in two, the smaller first: by the factor where it divides, else the divisors nearest to each
/// other of which the smaller is no larger than the factor.
fn factorization(width: usize, factor: Option<usize>) -> (usize, usize) {
    if let Some(factor) = factor
        && factor > 0
        && width.is_multiple_of(factor)
    {
        return (factor, width / factor);
    }
    let most = factor.unwrap_or(width);
    let divides = |small: &usize| width.is_multiple_of(*small);
    let smaller = (1..).take_while(|small| small * small <= width && *small <= most.max(1)).filter(divides);
    let small = smaller.last().unwrap_or(1);
    (small, width / small)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_cut_as_peft_cuts_them() {
        // By peft.tuners.lokr.layer.factorization.
        let cases = [
            (128, None, (8, 16)),
            (250, None, (10, 25)),
            (360, None, (18, 20)),
            (512, None, (16, 32)),
            (1024, None, (32, 32)),
            (127, None, (1, 127)),
            (128, Some(2), (2, 64)),
            (250, Some(2), (2, 125)),
            (128, Some(4), (4, 32)),
            (250, Some(4), (2, 125)),
            (360, Some(4), (4, 90)),
            (250, Some(8), (5, 50)),
            (250, Some(16), (10, 25)),
            (896, Some(16), (16, 56)),
        ];
        for (width, factor, expected) in cases {
            assert_eq!(factorization(width, factor), expected, "{width} by {factor:?}");
        }
    }
}
