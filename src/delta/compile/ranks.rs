//! Ranks and scalings of LoRA by module: `r`, `lora_alpha`, the patterns of both, and rsLoRA (Kalajdzievski 2023).

use super::compilation::CompileLimits;
use crate::delta::DeltaError;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::PatternTable;

/// What a config says of them.
pub(super) struct Ranks {
    rank: usize,
    max_rank: usize,
    alpha: f64,
    rank_pattern: PatternTable,
    alpha_pattern: PatternTable,
    rslora: bool,
}

impl Ranks {
    pub(super) fn read(fields: &Fields, limits: CompileLimits) -> Result<Self, DeltaError> {
        Ok(Self {
            rank: fields.usize("r")?.unwrap_or(8),
            max_rank: limits.max_rank,
            alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: PatternTable::read_whole(fields, "rank_pattern")?,
            alpha_pattern: PatternTable::read(fields, "alpha_pattern")?,
            rslora: fields.bool_or("use_rslora", false)?,
        })
    }

    pub(super) fn is_rslora(&self) -> bool {
        self.rslora
    }

    /// Expressions that every path is held against.
    pub(super) fn expressions(&self) -> usize {
        self.rank_pattern.expressions() + self.alpha_pattern.expressions()
    }

    /// Rank and scaling of a module or parameter of the base, which has this `path` in the model the adapter was trained on.
    pub(super) fn of(&self, module: &str, path: &str) -> Result<(usize, f32), DeltaError> {
        let rank = self.rank_pattern.lookup(path)?.map_or(self.rank, |rank| rank as usize);
        if !(1..=self.max_rank).contains(&rank) {
            return Err(DeltaError::Rank { module: module.to_owned(), rank, max: self.max_rank });
        }
        let alpha = self.alpha_pattern.lookup(path)?.unwrap_or(self.alpha);
        let scaling = if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 } as f32;
        if scaling.is_finite() {
            Ok((rank, scaling))
        } else {
            let expected = "a number whose scaling is a finite f32";
            Err(DeltaError::BadField { field: "lora_alpha".to_owned(), found: alpha.to_string(), expected })
        }
    }
}
