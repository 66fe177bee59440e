//! Mixes: the program of w₁·δ₁ + w₂·δ₂ + …, for adapters whose every op is linear in its numbers.
//!
//! Ops of several adapters stand at a site as several of one adapter do: kernels add what each entry gives, in order. So a
//! mix is its parts' ops, each with its weight, and nothing is multiplied out: for LoRA this is what PEFT's
//! `add_weighted_adapter` with `combination_type="cat"` gives.

use super::class::DeltaOp;
use super::compile::{CompileLimits, check_computed};
use super::error::DeltaError;
use super::layout::Site;
use super::program::DeltaProgram;
use crate::types::AdapterTask;

/// Why an adapter that tokens of a prompt activate cannot be part of a mix, as the end of a sentence about a class of it.
pub const OF_ACTIVATED: &str = "works only from where tokens of the prompt activate it";

/// Why one with a vocabulary of its own cannot.
pub const OF_OTHER_TOKENS: &str = "belongs to a vocabulary of its own";

impl DeltaProgram {
    /// `weight` times what it adds.
    ///
    /// # Errors
    /// [`DeltaError::NotLinear`]; [`DeltaError::NonFinite`] where the weight makes numbers overflow.
    pub fn weighted(self, weight: f32) -> Result<Self, DeltaError> {
        let whole = [(!self.invocation_tokens.is_empty(), OF_ACTIVATED), (self.vocab_size.is_some(), OF_OTHER_TOKENS)];
        if let Some((site, op)) = self.ops.first()
            && let Some((_, reason)) = whole.into_iter().find(|(is_so, _)| *is_so)
        {
            return Err(DeltaError::NotLinear { class: op.class(), site: *site, reason });
        }
        let weighted = |(site, op): (Site, DeltaOp)| {
            let class = op.class();
            let op = op.weighted(weight).map_err(|reason| DeltaError::NotLinear { class, site, reason })?;
            check_computed(site, &op)?;
            Ok((site, op))
        };
        Ok(Self { ops: self.ops.into_iter().map(weighted).collect::<Result<_, DeltaError>>()?, ..self })
    }

    /// What weighted programs add together; a step adds it in their order.
    ///
    /// # Errors
    /// [`DeltaError::Rank`] where the ranks of one site are together more than one adapter may have: that is what a step
    /// pays for.
    pub fn sum(parts: Vec<Self>, limits: CompileLimits) -> Result<Self, DeltaError> {
        let task = match parts.split_first() {
            Some((first, others)) if others.iter().all(|other| other.task == first.task) => first.task,
            _ => AdapterTask::default(),
        };
        let keeps_base_kv = parts.iter().all(|part| part.keeps_base_kv);
        let base_layers = parts.iter().map(|part| part.base_layers).min().unwrap_or(0);
        let (mut ops, mut unknown_fields) = (Vec::new(), Vec::new());
        for part in parts {
            ops.extend(part.ops);
            unknown_fields.extend(part.unknown_fields);
        }
        ops.sort_by_key(|(site, op)| (*site, op.class()));
        check_ranks(&ops, limits.max_rank)?;
        Ok(Self {
            kind: "mix".to_owned(),
            task,
            ops,
            invocation_tokens: Vec::new(),
            keeps_base_kv,
            base_layers,
            vocab_size: None,
            unknown_fields,
        })
    }
}

fn check_ranks(ops: &[(Site, DeltaOp)], max: usize) -> Result<(), DeltaError> {
    for at_site in ops.chunk_by(|(site, _), (next, _)| site == next) {
        let rank = at_site.iter().filter_map(|(_, op)| op.as_op().rank()).sum();
        if rank > max {
            return Err(DeltaError::Rank { module: at_site[0].0.to_string(), rank, max });
        }
    }
    Ok(())
}
