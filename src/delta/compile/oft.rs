//! OFT (Qiu et al. 2023, 2025): y = W·Rx, where R turns a few neighbouring inputs at a time. The file has what stands above the
//! diagonal of each block's skew-symmetric Q.

use std::cmp::Ordering;

use super::cayley::Cayley;
use super::compilation::Compilation;
use super::modules::{Modules, OfModules};
use crate::delta::DeltaError;
use crate::delta::class::InputRotate;
use crate::delta::layout::{BaseLayout, Module};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;

/// Most terms of the series: what PEFT's users take is 5.
const MOST_TERMS: usize = 256;

/// How a module's inputs are cut into blocks. What does not divide them gives way to the nearest that does.
enum Cut {
    /// Inputs of a block.
    Size(usize),
    /// Blocks.
    Blocks(usize),
}

pub(super) struct OftConfig {
    modules: Modules,
    cut: Cut,
    form: Cayley,
    /// All blocks of a module are the same.
    is_shared: bool,
    /// COFT: the largest norm of all blocks' Q together.
    largest: Option<f64>,
}

impl OftConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        // PEFT turns fan_in_fan_out off for linear modules.
        fields.ignore(&["module_dropout", "fan_in_fan_out"]);
        // PEFT refuses configs without the field: before 0.14 the same name stood for another method.
        let Some(size) = fields.usize("oft_block_size")? else {
            return Err(fields.bad("oft_block_size", "the inputs of a block, or 0 beside `r`, as PEFT from 0.14 on"));
        };
        let cut = match (fields.usize("r")?.unwrap_or(0), size) {
            (0, size) if size > 0 => Cut::Size(size),
            (blocks, 0) if blocks > 0 => Cut::Blocks(blocks),
            _ => return Err(fields.bad("r", "0 where `oft_block_size` is given, and only then")),
        };
        let terms = fields.usize("num_cayley_neumann_terms")?.unwrap_or(5);
        let form = match fields.bool_or("use_cayley_neumann", true)? {
            false => Cayley::Exact,
            true if terms <= MOST_TERMS => Cayley::series(terms),
            true => return Err(fields.bad("num_cayley_neumann_terms", "at most 256")),
        };
        let largest = fields.f64("eps")?.unwrap_or(6e-5);
        if largest < 0.0 {
            return Err(fields.bad("eps", "a number that is not negative"));
        }
        Ok(Self {
            modules: Modules::read(fields, defaults::lora_targets(layout.model_type), "OFT", Some("oft_only"))?,
            cut,
            form,
            is_shared: fields.bool_or("block_share", false)?,
            largest: fields.bool_or("coft", false)?.then_some(largest),
        })
    }

    /// By what COFT makes a block's Q smaller, where its norm is more than its share of what there may be.
    fn factor(&self, blocks: usize, above: &[f32]) -> f64 {
        let Some(largest) = self.largest else { return 1.0 };
        let share = largest / (blocks as f64).sqrt();
        let norm = (2.0 * above.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>()).sqrt();
        if norm > share { share / norm } else { 1.0 }
    }
}

impl OfModules for OftConfig {
    const OWN_KEY: &'static str = ".oft_R";

    fn modules(&self) -> &Modules {
        &self.modules
    }

    fn give(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<(), DeltaError> {
        let size = match self.cut {
            Cut::Size(size) => nearest_divisor(module.input, size),
            Cut::Blocks(blocks) => module.input / nearest_divisor(module.input, blocks),
        };
        let blocks = if self.is_shared { 1 } else { module.input / size };
        let above = size * (size - 1) / 2;
        let given = compilation.required(module, "oft_R.weight", &[blocks, above])?.to_f32();
        let factors: Vec<f64> = given.chunks(above.max(1)).map(|given| self.factor(blocks, given)).collect();
        let number = |block: usize, row: usize, col: usize| {
            let at = row * (2 * size - row - 1) / 2 + col - row - 1;
            f64::from(given[block * above + at]) * factors[block]
        };
        let skew = |block: usize, row: usize, col: usize| match row.cmp(&col) {
            Ordering::Less => number(block, row, col),
            Ordering::Equal => 0.0,
            Ordering::Greater => -number(block, col, row),
        };
        let stage = self.form.stage(compilation, module, [blocks, size, 1], skew)?;
        compilation.push(module.site, InputRotate { stages: vec![stage] });
        Ok(())
    }
}

/// The divisor of a width that is nearest to what is wanted, of two the smaller (PEFT's `adjust_oft_parameters`). Both are
/// at least 1.
fn nearest_divisor(width: usize, wanted: usize) -> usize {
    let wanted = wanted.min(width);
    let divides = |number: &usize| width.is_multiple_of(*number);
    let lower = (1..=wanted).rev().find(divides).unwrap_or(1);
    let higher = (wanted..=width).find(divides).unwrap_or(width);
    if wanted - lower <= higher - wanted { lower } else { higher }
}

#[cfg(test)]
mod tests {
    use super::nearest_divisor;

    #[test]
    fn a_block_that_does_not_fit_gives_way_to_the_nearest_that_does() {
        let nearest = |width: usize, wanted: [usize; 6]| wanted.map(|wanted| nearest_divisor(width, wanted));
        assert_eq!(nearest(72, [1, 5, 32, 33, 60, 80]), [1, 4, 36, 36, 72, 72]);
        assert_eq!(nearest(32, [3, 12, 20, 24, 31, 32]), [2, 8, 16, 16, 32, 32]);
    }
}
