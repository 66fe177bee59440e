//! LoHa (Hyeon-Woo et al. 2022, FedPara): ΔW = s·(w1a·w1b) ∘ (w2a·w2b), which is a product of rank r² of the rows' and
//! columns' products (Khatri–Rao).

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, RankAndAlpha, matrix};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;

pub(super) struct LoHaConfig {
    folds: Folds,
    ranks: RankAndAlpha,
}

impl LoHaConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["rank_dropout", "module_dropout", "use_effective_conv2d"]);
        Ok(Self {
            folds: Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "LoHa", None)?,
            ranks: RankAndAlpha::read(fields)?,
        })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let (rank, scaling) = self.ranks.of(compilation, module)?;
        self.folds.check_rank(module, rank.saturating_mul(rank))?;
        let mut factor = |parameter, shape: [usize; 2]| {
            Ok::<_, DeltaError>(compilation.required(module, parameter, &shape)?.to_f32())
        };
        let (left, right) = ([module.output, rank], [rank, module.input]);
        let (w1_a, w1_b) = (factor("hada_w1_a", left)?, factor("hada_w1_b", right)?);
        let (w2_a, w2_b) = (factor("hada_w2_a", left)?, factor("hada_w2_b", right)?);
        // Row k of A and column k of B are of the pair (k / rank, k % rank) of ranks.
        let number =
            |at: usize, col: usize| w1_b[at / rank * module.input + col] * w2_b[at % rank * module.input + col];
        let a = matrix(compilation, rank * rank, module.input, number)?;
        let number = |row: usize, at: usize| w1_a[row * rank + at / rank] * w2_a[row * rank + at % rank];
        let b = matrix(compilation, module.output, rank * rank, number)?;
        Ok(Some(LowRank { a, b, scaling }))
    }
}

impl OfModules for LoHaConfig {
    const OWN_KEY: &'static str = ".hada_";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}
