//! VB-LoRA (Li et al. 2024): rows of A and columns of B are mixtures of a few vectors out of a bank that all modules share.

use super::compilation::{Compilation, CompileLimits, key};
use super::folds::{Folds, matrix};
use super::method::Method;
use super::tensors::IndexDtypes;
use crate::delta::DeltaError;
use crate::delta::class::LowRank;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::keys::VECTOR_BANK;

pub(super) struct VbLoraConfig {
    folds: Folds,
    rank: usize,
    vectors: usize,
    length: usize,
    topk: usize,
    /// The file has indices and weights of the vectors instead of logits.
    only_topk: bool,
}

impl VbLoraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&["vblora_dropout", "fan_in_fan_out", "init_vector_bank_bound", "init_logits_std"]);
        let size = |field: &str, default: usize| match fields.usize(field)?.unwrap_or(default) {
            0 => Err(fields.bad(field, "a positive whole number")),
            size => Ok(size),
        };
        let config = Self {
            folds: Folds::read(
                fields,
                defaults::adalora_targets(layout.model_type),
                limits,
                "VB-LoRA",
                Some("vblora_only"),
            )?,
            rank: fields.usize("r")?.unwrap_or(4),
            vectors: size("num_vectors", 256)?,
            length: size("vector_length", 256)?,
            topk: size("topk", 2)?,
            only_topk: fields.bool_or("save_only_topk_weights", false)?,
        };
        match config.topk <= config.vectors {
            true => Ok(config),
            false => Err(fields.bad("topk", "at most num_vectors")),
        }
    }

    /// The pair of a module: A `[rank, in]`, B `[out, rank]`, vectors of the bank laid end to end along `in` and `out`.
    fn pair(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        bank: &[f32],
    ) -> Result<Option<LowRank>, DeltaError> {
        let Self { rank, length, topk, .. } = *self;
        self.folds.check_rank(module, rank)?;
        let (input, output) = (module.input, module.output);
        if !input.is_multiple_of(length) || !output.is_multiple_of(length) {
            return Err(DeltaError::WrongModule { module: module.path.clone(), kind: self.folds.kind() });
        }
        let names = ["vblora_logits_A", "vblora_logits_A_topk_indices", "vblora_logits_A_topk_weights"];
        let of_a = self.mixtures(compilation, module, names, [rank, input / length])?;
        let names = ["vblora_logits_B", "vblora_logits_B_topk_indices", "vblora_logits_B_topk_weights"];
        let of_b = self.mixtures(compilation, module, names, [output / length, rank])?;
        let mixed = |mixture: &[(usize, f32)], at: usize| {
            mixture.iter().map(|(vector, weight)| weight * bank[vector * length + at]).sum::<f32>()
        };
        let mixture =
            |mixtures: &[(usize, f32)], at: usize, within: usize| mixed(&mixtures[at * topk..][..topk], within);
        let tiles = input / length;
        let a = matrix(compilation, rank, input, |row, col| mixture(&of_a, row * tiles + col / length, col % length))?;
        let b = matrix(compilation, output, rank, |row, col| mixture(&of_b, row / length * rank + col, row % length))?;
        Ok(Some(LowRank { a, b, scaling: 1.0 }))
    }

    /// For each of `shape` the vectors it is mixed of, with their weights; empty while numbers have not come.
    fn mixtures(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        [logits, indices, weights]: [&'static str; 3],
        [rows, cols]: [usize; 2],
    ) -> Result<Vec<(usize, f32)>, DeltaError> {
        if !self.only_topk {
            let logits = compilation.required(module, logits, &[rows, cols, self.vectors])?.to_f32();
            return Ok(logits.chunks_exact(self.vectors).flat_map(|logits| self.strongest(logits)).collect());
        }
        let shape = [rows, cols, self.topk];
        let Some(vectors) =
            compilation.tensors.take_indices(&key(module, indices), &shape, IndexDtypes::Integers, |_| self.vectors)?
        else {
            return Err(compilation.missing(module, indices));
        };
        let saved = self.topk - 1;
        let weights = compilation.required(module, weights, &[rows, cols, saved])?.to_f32();
        // Of weights that sum to 1 the last is left out.
        let weight = |at: usize| {
            let own = &weights[at / self.topk * saved..][..saved];
            own.get(at % self.topk).copied().unwrap_or_else(|| 1.0 - own.iter().sum::<f32>())
        };
        Ok(vectors.iter().enumerate().map(|(at, vector)| (vector, weight(at))).collect())
    }

    /// The vectors of the highest logits, of equal ones the first, and the softmax over them.
    fn strongest(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        order.truncate(self.topk);
        let highest = order.first().map_or(0.0, |first| logits[*first]);
        let powers: Vec<f32> = order.iter().map(|vector| (logits[*vector] - highest).exp()).collect();
        let sum: f32 = powers.iter().sum();
        order.into_iter().zip(powers).map(|(vector, power)| (vector, power / sum)).collect()
    }
}

impl Method for VbLoraConfig {
    fn kind(&self) -> &'static str {
        self.folds.kind()
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".vblora_logits_")
    }

    fn works_out_numbers(&self) -> bool {
        true
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let bank = compilation.required_shared(VECTOR_BANK, &[self.vectors, self.length])?.to_f32();
        self.folds.modules().compile(compilation, |compilation, module| {
            let pair = self.pair(compilation, module, &bank)?;
            self.folds.give(compilation, module, pair)
        })
    }
}
