//! SHiRA (Bhardwaj et al. 2024): a few numbers of each weight are trained, the others stay. The file has their changes and
//! where they stand: as many as a LoRA of rank r has.

use half::bf16;

use super::compilation::{Compilation, CompileLimits, key};
use super::method::Method;
use super::tensors::IndexDtypes;
use crate::delta::DeltaError;
use crate::delta::class::Sparse;
use crate::delta::layout::{BaseLayout, Module, ModuleKind};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;
use crate::ops::HostSparse;

const KIND: &str = "SHiRA";
const INDICES: &str = "shira_indices";

pub(super) struct ShiraConfig {
    targets: Targets,
    rank: usize,
    max_rank: usize,
}

impl ShiraConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        // How the places were chosen tells nothing where they are in the file. PEFT turns fan_in_fan_out off for linear
        // modules.
        fields.ignore(&["mask_type", "random_seed", "fan_in_fan_out"]);
        let targets = Targets::read(fields, defaults::lora_targets(layout.model_type))?;
        Ok(Self { targets, rank: fields.usize("r")?.unwrap_or(32), max_rank: limits.max_rank })
    }

    fn matrix(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<HostSparse, DeltaError> {
        let (rank, [rows, cols]) = (self.rank, [module.output, module.input]);
        let most = self.max_rank.min(rows * cols / (rows + cols));
        if !(1..=most).contains(&rank) {
            return Err(DeltaError::Rank { module: module.path.clone(), rank, max: most });
        }
        let count = rank * (rows + cols);
        let bounds = |row: usize| [rows, cols][row.min(1)];
        // PEFT saves them as f32 on Windows.
        let dtypes = IndexDtypes::IntegersOrF32;
        let indices = compilation.tensors.take_indices(&key(module, INDICES), &[2, count], dtypes, bounds)?;
        let Some(indices) = indices else {
            return Err(DeltaError::NotReproducible { module: module.path.clone(), missing: INDICES });
        };
        let values = compilation.required(module, "shira_weight", &[count])?.to_f32();
        // Rows of all places, then columns of all.
        let places = indices.iter().zip(indices.iter().skip(indices.len() / 2));
        let matrix = HostSparse::new([rows, cols], places, &values)?;
        // Each number is finite, also as bf16; what is added up of several at one place may not be.
        match matrix.entries.iter().position(|entry| !bf16::from_f32(entry.value).is_finite()) {
            Some(index) => Err(DeltaError::NonFinite { tensor: format!("S of {}", module.site), index }),
            None => Ok(matrix),
        }
    }
}

impl Method for ShiraConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".shira_")
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if compilation.is_target_of_kind(&self.targets, module, ModuleKind::Linear)? {
                let matrix = self.matrix(compilation, module)?;
                compilation.push(module.site, Sparse { matrix });
            }
        }
        Ok(())
    }
}
