//! BOFT (Liu et al. 2024): y = s∘(W·R₁⋯R_m x). Each R turns a few inputs at a time, in the later ones halves of such few from
//! further and further apart, as a butterfly does, so that few numbers reach all inputs.

use super::cayley::Cayley;
use super::compilation::{Compilation, key};
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::{InputRotate, OutputScale};
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;

/// Most factors: two halves of every input of the widest model are reached by fewer.
const MOST_FACTORS: usize = 32;

/// How a module's inputs are cut into blocks.
enum Cut {
    /// Inputs of a block.
    Size(usize),
    /// Blocks.
    Blocks(usize),
}

pub(super) struct BoftConfig {
    modules: Modules,
    cut: Cut,
    factors: usize,
}

impl BoftConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        // PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["boft_dropout", "fan_in_fan_out"]);
        let size = fields.usize("boft_block_size")?.unwrap_or(4);
        let cut = match (size, fields.usize("boft_block_num")?.unwrap_or(0)) {
            (size, 0) if size > 0 => Cut::Size(size),
            (0, blocks) if blocks > 0 => Cut::Blocks(blocks),
            _ => return Err(fields.bad("boft_block_num", "0 where `boft_block_size` is given, and only then")),
        };
        let factors = fields.usize("boft_n_butterfly_factor")?.unwrap_or(1);
        if !(1..=MOST_FACTORS).contains(&factors) {
            return Err(fields.bad("boft_n_butterfly_factor", "a whole number from 1 to 32"));
        }
        let modules = Modules::read(fields, defaults::lora_targets(layout.model_type), "BOFT", Some("boft_only"))?;
        Ok(Self { modules, cut, factors })
    }

    /// Blocks, and inputs of each. The halves of the last factor's blocks come from groups of 2^(factors - 1) blocks.
    fn blocks_of(&self, module: &Module, factors: usize) -> Result<(usize, usize), DeltaError> {
        let (Cut::Size(part) | Cut::Blocks(part)) = self.cut;
        if !module.input.is_multiple_of(part) {
            return Err(self.modules.wrong(module));
        }
        let other = module.input / part;
        let (blocks, size) = match self.cut {
            Cut::Size(size) => (other, size),
            Cut::Blocks(blocks) => (blocks, other),
        };
        let fits = factors == 1 || (size.is_multiple_of(2) && blocks.is_multiple_of(1 << (factors - 1)));
        if fits { Ok((blocks, size)) } else { Err(self.modules.wrong(module)) }
    }
}

impl OfModules for BoftConfig {
    const OWN_KEY: &'static str = ".boft_";

    fn modules(&self) -> &Modules {
        &self.modules
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        // Without its CUDA extension PEFT makes and reads one factor, whatever the config says.
        let found = compilation.tensors.shape(&key(module, "boft_R")).and_then(|shape| shape.first());
        let factors = if found == Some(&1) { 1 } else { self.factors };
        let (blocks, size) = self.blocks_of(module, factors)?;
        let r = compilation.required(module, "boft_R", &[factors, blocks, size, size])?.to_f32();
        let s = compilation.required(module, "boft_s", &[module.output, 1])?.to_f32();
        let stage = |factor: usize| {
            let number = |block: usize, row: usize, col: usize| {
                let block = (factor * blocks + block) * size;
                f64::from(r[(block + row) * size + col])
            };
            let skew = |block: usize, row: usize, col: usize| (number(block, row, col) - number(block, col, row)) / 2.0;
            Cayley::Exact.stage(compilation, module, [blocks, size, 1 << factor], skew)
        };
        // PEFT multiplies the factors from the last to the first, and a row by their product.
        let stages = (0..factors).rev().map(stage).collect::<Result<_, _>>()?;
        compilation.push(module.site, InputRotate { stages });
        compilation.push(module.site, OutputScale { g: s, after_bias: false });
        Ok(())
    }
}
