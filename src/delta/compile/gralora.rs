//! GraLoRA (Jung et al. 2025): W is cut in k × k blocks, each with a product of rank r / k of its own; beside them there
//! may be one of rank h over all of it.

use super::compilation::{Compilation, CompileLimits};
use super::folds::{Folds, matrix};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;

pub(super) struct GraloraConfig {
    folds: Folds,
    rank: usize,
    /// Rank of the product over all blocks; 0 for none.
    hybrid: usize,
    /// Blocks along either side.
    blocks: usize,
    scaling: f32,
}

impl GraloraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["gralora_dropout", "fan_in_fan_out"]);
        let rank = fields.usize("r")?.unwrap_or(32);
        let hybrid = fields.usize("hybrid_r")?.unwrap_or(0);
        let blocks = fields.usize("gralora_k")?.unwrap_or(2);
        if blocks == 0 || !rank.is_multiple_of(blocks) {
            return Err(fields.bad("gralora_k", "a divisor of r"));
        }
        let alpha = fields.f64("alpha")?.unwrap_or(64.0);
        let scaling = (alpha / rank.saturating_add(hybrid).max(1) as f64) as f32;
        let folds =
            Folds::read(fields, defaults::lora_targets(layout.model_type), limits, "GraLoRA", Some("gralora_only"))?;
        Ok(Self { folds, rank, hybrid, blocks, scaling })
    }

    fn pair(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<Option<LowRank>, DeltaError> {
        let Self { rank, hybrid, blocks, scaling, .. } = *self;
        let (input, output) = (module.input, module.output);
        let of_blocks = rank.saturating_mul(blocks);
        let folded = of_blocks.saturating_add(hybrid);
        self.folds.check_rank(module, rank)?;
        self.folds.check_rank(module, folded)?;
        if !input.is_multiple_of(blocks) || !output.is_multiple_of(blocks) {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.folds.kind() });
        }
        let (inputs, outputs, each) = (input / blocks, output / blocks, rank / blocks);
        let mut take = |name, shape: &[usize]| Ok::<_, DeltaError>(compilation.required(module, name, shape)?.to_f32());
        let (left, right) = (take("gralora_A", &[blocks, inputs, rank])?, take("gralora_B", &[blocks, rank, outputs])?);
        let general = match hybrid {
            0 => None,
            _ => Some((
                take("gralora_A_general.weight", &[hybrid, input])?,
                take("gralora_B_general.weight", &[output, hybrid])?,
            )),
        };
        // Row block * rank + q of A is column q of the inputs' block; an output's block takes its share of every block's.
        let number = |at: usize, col: usize| match &general {
            Some((a, _)) if at >= of_blocks => a[(at - of_blocks) * input + col],
            _ if at / rank == col / inputs => left[col * rank + at % rank],
            _ => 0.0,
        };
        let a = matrix(compilation, folded, input, number)?;
        let number = |row: usize, at: usize| {
            let (block, of_block) = (row / outputs, row % outputs);
            match &general {
                Some((_, b)) if at >= of_blocks => b[row * hybrid + at - of_blocks],
                _ if at % rank / each == block => {
                    let share = at / rank * each + at % each;
                    right[(block * rank + share) * outputs + of_block]
                }
                _ => 0.0,
            }
        };
        let b = matrix(compilation, output, folded, number)?;
        Ok(Some(LowRank { a, b, scaling }))
    }
}

impl OfModules for GraloraConfig {
    const OWN_KEY: &'static str = ".gralora_";

    fn modules(&self) -> &Modules {
        self.folds.modules()
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let pair = self.pair(compilation, module)?;
        self.folds.give(compilation, module, pair)
    }
}
