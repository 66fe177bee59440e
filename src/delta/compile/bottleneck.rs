//! Bottleneck adapters (Houlsby et al. 2019) as AdapterHub's library saves them: behind a block (`double_seq_bn`), behind it and its
//! residual connection (`seq_bn`, Pfeiffer et al. 2020; AdapterPlus, Steitz & Roth 2024), beside it (`par_bn`, He et al. 2022), with norms of
//! their own, and Compacter (Mahabadi et al. 2021), whose matrices are worked out (`phm`).

use super::compilation::{Compilation, CompileLimits};
use super::folds::{check_matrix, matrix};
use super::format::Format;
use super::layer_parameters::{LayerParameters, Projection};
use super::method::Method;
use super::phm::Phm;
use super::wiring::wiring;
use crate::delta::DeltaError;
use crate::delta::adapterhub::{self, keys};
use crate::delta::class::Bottleneck;
use crate::delta::layout::{BaseLayout, LayerSite, Site};
use crate::delta::peft::fields::Fields;
use crate::files::Json;
use crate::ops::{Activation, NonLinearity, Wiring};

/// Fields that train or initialise, or concern what no served base has, and never change what a trained adapter computes.
const IGNORED: [&str; 10] = [
    // No base here attends to an encoder.
    "config.cross_adapter",
    "config.dropout",
    "config.hypercomplex_nonlinearity",
    "config.init_weights",
    "config.init_weights_seed",
    "config.inv_adapter_reduction_factor",
    "config.learn_phm",
    "config.phm_c_init",
    "config.phm_init_range",
    "config.stochastic_depth",
];

/// What a leaky relu has below zero, to torch.
const LEAK: f32 = 0.01;

/// f of a config.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bend {
    Fixed(NonLinearity),
    /// A leaky relu whose slope is learned.
    Prelu,
}

/// s of a config.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scaling {
    Fixed(f32),
    Learned,
    /// One for each output.
    Channel,
}

/// Width of the hidden size over the width of a bottleneck.
enum Reduction {
    Same(f64),
    /// By layer, and of those that are not named.
    ByLayer(Vec<(String, f64)>),
}

pub(super) struct BottleneckConfig {
    /// Which of [`keys::PLACES`].
    places: [bool; 2],
    left_out: Vec<usize>,
    reduction: Reduction,
    max_rank: usize,
    bend: Bend,
    scaling: Scaling,
    wiring: Wiring,
    norm_before: bool,
    norm_after: bool,
    phm: Option<Phm>,
}

impl BottleneckConfig {
    pub(super) fn read(fields: &Fields, layout: &BaseLayout, limits: CompileLimits) -> Result<Self, DeltaError> {
        fields.ignore(&adapterhub::IGNORED);
        fields.ignore(&IGNORED);
        if fields.has(adapterhub::CONFIG) || !fields.any(|name| name.starts_with("config.")) {
            return Err(fields.bad(adapterhub::CONFIG, "an object, as the library saves it"));
        }
        refuse_other_methods(fields)?;
        check_base(fields, layout)?;
        let is_on = |field| fields.bool_or(field, false);
        let (norm_before, norm_after) = (is_on("config.ln_before")?, is_on("config.ln_after")?);
        Ok(Self {
            places: [required_bool(fields, "config.mh_adapter")?, required_bool(fields, "config.output_adapter")?],
            left_out: fields.indices("config.leave_out")?.unwrap_or_default(),
            reduction: Reduction::read(fields)?,
            max_rank: limits.max_rank,
            bend: Bend::read(fields)?,
            scaling: Scaling::read(fields)?,
            wiring: wiring(fields, layout, norm_after)?,
            norm_before,
            norm_after,
            phm: if is_on("config.phm_layer")? { Some(Phm::read(fields)?) } else { Phm::ignore(fields) },
        })
    }

    /// Width of the bottleneck of a layer.
    fn rank(&self, layout: &BaseLayout, layer: usize) -> Result<usize, DeltaError> {
        let factor = match &self.reduction {
            Reduction::Same(factor) => *factor,
            Reduction::ByLayer(factors) => {
                let find = |name: &str| factors.iter().find(|(of, _)| of == name).map(|(_, factor)| *factor);
                find(&layer.to_string()).or_else(|| find("default")).ok_or_else(|| DeltaError::BadField {
                    field: "config.reduction_factor".to_owned(),
                    found: format!("without layer {layer}"),
                    expected: "every layer, or a default",
                })?
            }
        };
        let rank = (floor_division(layout.hidden_size as f64, factor) as usize).max(1);
        match rank <= self.max_rank {
            true => Ok(rank),
            false => Err(DeltaError::Rank { module: format!("layers.{layer}"), rank, max: self.max_rank }),
        }
    }

    fn at(&self, compilation: &mut Compilation<'_>, layer: usize, place: usize) -> Result<(), DeltaError> {
        let layout = compilation.base.layout;
        let (hidden, rank) = (layout.hidden_size, self.rank(layout, layer)?);
        let site = Site::Layer(layer as u32, [LayerSite::AfterAttention, LayerSite::AfterMlp][place]);
        let mut own = LayerParameters::new(compilation, layer, keys::PLACES[place]);
        let norm_before = self.norm_before.then(|| own.norm_before(hidden)).transpose()?;
        let norm_after = self.norm_after.then(|| own.norm_after(hidden)).transpose()?;
        let names = &NAMES[usize::from(self.norm_before)];
        let (down, mut up) = match &self.phm {
            None => (own.projection(names.down, [rank, hidden])?, own.projection(UP, [hidden, rank])?),
            Some(phm) => {
                let down = phm.take(&mut own, names.phm, "down", [rank, hidden])?;
                (down, phm.take(&mut own, "adapter_up", "up", [hidden, rank])?)
            }
        };
        let non_linearity = self.bend.take(&mut own, names.bend)?;
        let scaling = self.scaling.take(&mut own, &mut up)?;
        for (name, matrix) in [("the down projection", &down.matrix), ("the up projection", &up.matrix)] {
            check_matrix(name, site, matrix)?;
        }
        let op = Bottleneck {
            wiring: self.wiring,
            norm_before,
            down: down.matrix,
            down_bias: down.bias,
            non_linearity,
            up: up.matrix,
            up_bias: up.bias,
            scaling,
            norm_after,
        };
        compilation.push(site, op);
        Ok(())
    }
}

impl Method for BottleneckConfig {
    fn kind(&self) -> &'static str {
        if self.phm.is_some() { "Compacter" } else { "bottleneck" }
    }

    fn format(&self) -> Format {
        Format::AdapterHub
    }

    fn own_key(&self) -> Option<&'static str> {
        Some(".adapters.")
    }

    fn works_out_numbers(&self) -> bool {
        self.phm.is_some() || self.scaling == Scaling::Channel
    }

    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError> {
        for layer in (0..compilation.base.layout.layers).filter(|layer| !self.left_out.contains(layer)) {
            for place in (0..keys::PLACES.len()).filter(|place| self.places[*place]) {
                self.at(compilation, layer, place)?;
            }
        }
        if let Some(phm) = &self.phm {
            phm.take_shared(compilation);
        }
        Ok(())
    }
}

/// What the library calls modules by their position.
struct Names {
    /// Weight and bias of the down projection.
    down: [&'static str; 2],
    /// The same module of Compacter.
    phm: &'static str,
    /// What a learned non-linearity has.
    bend: &'static str,
}

/// Without a norm before them, and behind one.
const NAMES: [Names; 2] = [
    Names {
        down: ["adapter_down.0.weight", "adapter_down.0.bias"],
        phm: "adapter_down.0",
        bend: "adapter_down.1.f.weight",
    },
    Names {
        down: ["adapter_down.1.weight", "adapter_down.1.bias"],
        phm: "adapter_down.1",
        bend: "adapter_down.2.f.weight",
    },
];
const UP: [&str; 2] = ["adapter_up.weight", "adapter_up.bias"];

/// Methods of the library that are no bottlenecks, and parts of bottlenecks that are not served.
fn refuse_other_methods(fields: &Fields) -> Result<(), DeltaError> {
    if fields.get("config.architecture").is_some() {
        let hint = ": of AdapterHub's library bottleneck adapters are served (seq_bn, double_seq_bn, par_bn, compacter and \
                    their like); train this method with peft";
        return Err(fields.unsupported("config.architecture", hint));
    }
    if fields.bool_or("config.use_gating", false)? {
        let hint = ": the gate is a mean over the whole text, which is not known while it is written; train without it";
        return Err(fields.unsupported("config.use_gating", hint));
    }
    for field in ["config.inv_adapter", "config.invertible_adapter"] {
        if fields.get(field).is_some() {
            let hint = ": an invertible adapter of the embedding is not served; train with seq_bn or double_seq_bn";
            return Err(fields.unsupported(field, hint));
        }
    }
    Ok(())
}

/// What the config says of the model it was trained on.
fn check_base(fields: &Fields, layout: &BaseLayout) -> Result<(), DeltaError> {
    if fields.str("model_type")?.is_some_and(|name| name != layout.model_type) {
        return Err(fields.bad("model_type", "that of the base model"));
    }
    if fields.usize("hidden_size")?.is_some_and(|size| size != layout.hidden_size) {
        return Err(fields.bad("hidden_size", "that of the base model"));
    }
    Ok(())
}

fn required_bool(fields: &Fields, field: &str) -> Result<bool, DeltaError> {
    match fields.get(field) {
        Some(Json::Bool(value)) => Ok(*value),
        _ => Err(fields.bad(field, "true or false")),
    }
}

impl Reduction {
    fn read(fields: &Fields) -> Result<Self, DeltaError> {
        const FIELD: &str = "config.reduction_factor";
        let reduction = match fields.get(FIELD) {
            Some(Json::Object(_)) => Self::ByLayer(fields.pattern(FIELD)?),
            Some(_) => Self::Same(fields.f64(FIELD)?.unwrap_or_default()),
            None => Self::Same(0.0),
        };
        let is_positive = match &reduction {
            Self::Same(factor) => *factor > 0.0,
            Self::ByLayer(factors) => factors.iter().all(|(_, factor)| *factor > 0.0),
        };
        if is_positive {
            Ok(reduction)
        } else {
            Err(fields.bad(FIELD, "a number above 0, or an object of such by layer"))
        }
    }
}

/// Python's `//` of two positive numbers.
fn floor_division(a: f64, b: f64) -> f64 {
    ((a - a % b) / b).round()
}

impl Scaling {
    /// s, multiplied into the bias; one for each output goes into the matrix too.
    fn take(self, own: &mut LayerParameters<'_, '_>, up: &mut Projection) -> Result<f32, DeltaError> {
        let (hidden, rank) = (up.matrix.rows(), up.matrix.cols());
        let scaling = match self {
            Self::Fixed(scaling) => scaling,
            Self::Learned => own.required("scaling", &[1])?.to_f32().first().copied().unwrap_or(1.0),
            Self::Channel => {
                let channels = own.required("scaling", &[hidden])?.to_f32();
                let numbers = up.matrix.to_f32();
                let scaled = |row: usize, col: usize| channels[row] * numbers[row * rank + col];
                up.matrix = matrix(own.compilation, hidden, rank, scaled)?;
                up.bias.iter_mut().zip(&channels).for_each(|(bias, channel)| *bias *= channel);
                1.0
            }
        };
        up.bias.iter_mut().for_each(|bias| *bias *= scaling);
        Ok(scaling)
    }

    fn read(fields: &Fields) -> Result<Self, DeltaError> {
        const FIELD: &str = "config.scaling";
        let refused = || fields.bad(FIELD, "a finite number, learned or channel");
        match fields.get(FIELD) {
            None => Ok(Self::Fixed(1.0)),
            Some(Json::String(name)) if name == "learned" => Ok(Self::Learned),
            Some(Json::String(name)) if name == "channel" => Ok(Self::Channel),
            Some(value) => {
                let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
                number.map(Self::Fixed).ok_or_else(refused)
            }
        }
    }
}

impl Bend {
    fn take(self, own: &mut LayerParameters<'_, '_>, learned: &'static str) -> Result<NonLinearity, DeltaError> {
        match self {
            Self::Fixed(non_linearity) => Ok(non_linearity),
            Self::Prelu => {
                let slope = own.either(learned, "non_linearity.f.weight", &[1])?.to_f32();
                Ok(NonLinearity::LeakyRelu { slope: slope.first().copied().unwrap_or(LEAK) })
            }
        }
    }

    /// The library lowers the name, and looks it up in transformers' table.
    fn read(fields: &Fields) -> Result<Self, DeltaError> {
        const FIELD: &str = "config.non_linearity";
        let Some(name) = fields.str(FIELD)? else {
            return Err(fields.bad(FIELD, "the name of a non-linearity"));
        };
        let name = name.to_lowercase();
        // Configs without a version are of a time when these two had other names.
        let name = match name.as_str() {
            "gelu" if !fields.has("version") => "gelu_new",
            "gelu_orig" if !fields.has("version") => "gelu",
            name => name,
        };
        Ok(Self::Fixed(match name {
            "silu" | "swish" => NonLinearity::Gate(Activation::Silu),
            "gelu" | "gelu_python" => NonLinearity::Gate(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                NonLinearity::Gate(Activation::GeluTanh)
            }
            "linear" => NonLinearity::Identity,
            "relu" => NonLinearity::Relu,
            "relu6" => NonLinearity::Relu6,
            "relu2" => NonLinearity::SquaredRelu,
            "leakyrelu" | "leaky_relu" => NonLinearity::LeakyRelu { slope: LEAK },
            "prelu" => return Ok(Self::Prelu),
            "sigmoid" => NonLinearity::Sigmoid,
            "tanh" => NonLinearity::Tanh,
            "mish" => NonLinearity::Mish,
            "quick_gelu" => NonLinearity::QuickGelu,
            "gelu_10" => NonLinearity::ClippedGelu,
            "laplace" => NonLinearity::Laplace,
            _ => {
                return Err(fields.unsupported(
                    FIELD,
                    ": relu, its kin, swish, the gelus, tanh, sigmoid, mish and \
                                                       laplace are",
                ));
            }
        }))
    }
}
