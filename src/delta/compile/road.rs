//! RoAd (Liao & Monz 2024): outputs of a module, its bias included, turn in pairs, each by an angle θ and with a factor α.

use super::compilation::Compilation;
use super::method::Method;
use crate::delta::DeltaError;
use crate::delta::class::OutputRotate;
use crate::delta::layout::{BaseLayout, Module, ModuleKind};
use crate::delta::peft::defaults;
use crate::delta::peft::fields::Fields;
use crate::delta::peft::targets::Targets;

const KIND: &str = "RoAd";

/// Which numbers of the 2 x 2 matrix of a pair are learned apart.
#[derive(Clone, Copy)]
enum Variant {
    /// One θ and α for each pair.
    One,
    /// One for each output.
    Two,
    /// One for each number of the matrix.
    Four,
}

impl Variant {
    /// Numbers of θ, and of α, for each two outputs.
    fn numbers_of_pair(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Which of the numbers of a group, of `size` outputs, c1 and c2 of output `at` of it are made of.
    fn places(self, size: usize, at: usize) -> [usize; 2] {
        match self {
            Self::One => [at % (size / 2); 2],
            Self::Two => [at; 2],
            Self::Four => [at, size + at],
        }
    }
}

pub(super) struct RoadConfig {
    targets: Targets,
    variant: Variant,
    group: usize,
}

impl RoadConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let variant = match fields.str("variant")? {
            None | Some("road_1") => Variant::One,
            Some("road_2") => Variant::Two,
            Some("road_4") => Variant::Four,
            Some(_) => return Err(fields.unsupported("variant", "; served: road_1, road_2, road_4")),
        };
        let group = fields.usize("group_size")?.unwrap_or(64);
        if group == 0 || !group.is_multiple_of(2) {
            return Err(fields.bad("group_size", "an even number above 0"));
        }
        Ok(Self { targets: Targets::read(fields, defaults::lora_targets(layout.model_type))?, variant, group })
    }

    /// c1 = α cos θ and c2 = α sin θ of every output, each of the θ and α that are its own.
    fn rotation(&self, compilation: &mut Compilation<'_>, module: &Module) -> Result<OutputRotate, DeltaError> {
        let Self { variant, group, .. } = *self;
        if !module.output.is_multiple_of(group) {
            return Err(DeltaError::Group { module: module.path.clone(), outputs: module.output, group });
        }
        let shape = [module.output / 2 * variant.numbers_of_pair()];
        let theta = compilation.required(module, "road_theta", &shape)?.to_f32();
        let alpha = compilation.required(module, "road_alpha", &shape)?.to_f32();
        // Without any while numbers have not come.
        let of_group = group / 2 * variant.numbers_of_pair();
        let each = |which: usize, of_angle: fn(f32) -> f32| {
            let groups = theta.chunks_exact(of_group).zip(alpha.chunks_exact(of_group));
            groups.flat_map(move |(theta, alpha)| {
                (0..group).map(move |at| {
                    let place = variant.places(group, at)[which];
                    alpha[place] * of_angle(theta[place])
                })
            })
        };
        let c = each(0, f32::cos).chain(each(1, f32::sin)).collect();
        Ok(OutputRotate { c, group })
    }
}

impl Method for RoadConfig {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".road_")
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        for module in layout.modules() {
            if compilation.is_target_of_kind(&self.targets, module, ModuleKind::Linear)? {
                let rotation = self.rotation(compilation, module)?;
                compilation.push(module.site, rotation);
            }
        }
        Ok(())
    }
}
