//! Methods whose change of a weight the file holds in another form: it is worked out at load, where it is a product of two
//! small matrices as their pair, and from then on the adapter is of [`LowRank`](crate::delta::LowRank) or
//! [`Dense`](crate::delta::Dense) like any other.

use half::bf16;

use super::compilation::{Compilation, CompileLimits};
use super::modules::Modules;
use crate::delta::DeltaError;
use crate::delta::class::DeltaOp;
use crate::delta::layout::{Module, Site};
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::PatternTable;
use crate::ops::{HostData, HostTensor, OpsError, TensorData};

/// What the configs of these methods have in common.
pub(super) struct Folds {
    modules: Modules,
    max_rank: usize,
}

impl Folds {
    /// See [`Modules::read`].
    pub(super) fn read(
        fields: &Fields,
        default: Option<&[&str]>,
        limits: CompileLimits,
        kind: &'static str,
        only: Option<&str>,
    ) -> Result<Self, DeltaError> {
        Ok(Self { modules: Modules::read(fields, default, kind, only)?, max_rank: limits.max_rank })
    }

    pub(super) fn kind(&self) -> &'static str {
        self.modules.kind()
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Give every targeted module what `fold` makes of it.
    pub(super) fn compile<Op: Into<DeltaOp>>(
        &self,
        compilation: &mut Compilation<'_>,
        mut fold: impl FnMut(&mut Compilation<'_>, &Module) -> Result<Option<Op>, DeltaError>,
    ) -> Result<(), DeltaError> {
        self.modules.compile(compilation, |compilation, module| {
            let op = fold(compilation, module)?;
            self.give(compilation, module, op)
        })
    }

    /// Give a module what was made of it; `None` is a module that the method leaves as it is.
    pub(super) fn give<Op: Into<DeltaOp>>(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        op: Option<Op>,
    ) -> Result<(), DeltaError> {
        let Some(op) = op.map(Into::into) else { return Ok(()) };
        if let Some(rank) = op.as_op().rank() {
            self.check_rank(module, rank)?;
        }
        if !compilation.tensors.has_no_numbers() {
            check_numbers(module.site, &op)?;
        }
        compilation.push(module.site, op);
        Ok(())
    }

    /// Whether a rank is served; asked before anything of that rank is allocated.
    pub(super) fn check_rank(&self, module: &Module, rank: usize) -> Result<(), DeltaError> {
        match (1..=self.max_rank).contains(&rank) {
            true => Ok(()),
            false => Err(DeltaError::Rank { module: module.path.clone(), rank, max: self.max_rank }),
        }
    }
}

/// Rank and alpha of a method that has tables of exceptions for both.
pub(super) struct RankAndAlpha {
    rank: usize,
    alpha: f64,
    rank_pattern: PatternTable,
    alpha_pattern: PatternTable,
}

impl RankAndAlpha {
    pub(super) fn read(fields: &Fields) -> Result<Self, DeltaError> {
        Ok(Self {
            rank: fields.usize("r")?.unwrap_or(8),
            alpha: fields.f64("alpha")?.unwrap_or(8.0),
            rank_pattern: PatternTable::read_whole(fields, "rank_pattern")?,
            alpha_pattern: PatternTable::read(fields, "alpha_pattern")?,
        })
    }

    /// Rank, and alpha divided by it.
    pub(super) fn of(&self, compilation: &Compilation<'_>, module: &Module) -> Result<(usize, f32), DeltaError> {
        let path = compilation.tensors.level().path(module).unwrap_or_default();
        let rank = self.rank_pattern.lookup(&path)?.map_or(self.rank, |rank| rank as usize);
        let alpha = self.alpha_pattern.lookup(&path)?.unwrap_or(self.alpha);
        Ok((rank, (alpha / rank.max(1) as f64) as f32))
    }
}

/// A matrix `[rows, cols]` of computed numbers; without numbers while those of the file have not come.
pub(super) fn matrix(
    compilation: &Compilation<'_>,
    rows: usize,
    cols: usize,
    number: impl Fn(usize, usize) -> f32,
) -> Result<HostTensor, DeltaError> {
    matrix_by_rows(compilation, rows, cols, |row, numbers| {
        numbers.iter_mut().enumerate().for_each(|(col, own)| *own = number(row, col));
    })
}

/// As [`matrix`], where a whole row is computed at once, from zeros.
pub(super) fn matrix_by_rows(
    compilation: &Compilation<'_>,
    rows: usize,
    cols: usize,
    mut compute: impl FnMut(usize, &mut [f32]),
) -> Result<HostTensor, DeltaError> {
    let mut data = Vec::new();
    if !compilation.tensors.has_no_numbers() {
        let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(4);
        let refused = |_| OpsError::OutOfMemory { what: "a matrix worked out from an adapter", bytes };
        data.try_reserve_exact(rows.saturating_mul(cols)).map_err(refused)?;
        data.resize(rows * cols, 0.0);
        data.chunks_exact_mut(cols.max(1)).enumerate().for_each(|(row, numbers)| compute(row, numbers));
    }
    Ok(HostTensor { shape: vec![rows, cols], data: TensorData::F32(data) })
}

/// What is computed from finite numbers may overflow, also as bf16.
fn check_numbers(site: Site, op: &DeltaOp) -> Result<(), DeltaError> {
    let not_finite = |index| DeltaError::NonFinite { tensor: format!("{} of {site}", op.class().as_str()), index };
    for matrix in op.as_op().matrices() {
        let HostData::F32(numbers) = matrix.data else { continue };
        if let Some(index) = numbers.iter().position(|number| !bf16::from_f32(*number).is_finite()) {
            return Err(not_finite(index));
        }
    }
    match op.as_op().scaling() {
        Some(scaling) if !scaling.is_finite() => Err(not_finite(0)),
        _ => Ok(()),
    }
}

/// As for an op, where an op has several matrices.
pub(super) fn check_matrix(name: &str, site: Site, matrix: &HostTensor) -> Result<(), DeltaError> {
    let TensorData::F32(numbers) = &matrix.data else { return Ok(()) };
    match numbers.iter().position(|number| !bf16::from_f32(*number).is_finite()) {
        Some(index) => Err(DeltaError::NonFinite { tensor: format!("{name} of {site}"), index }),
        None => Ok(()),
    }
}
