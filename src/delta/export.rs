//! An adapter as a plain LoRA, as PEFT saves one, where its ops are those that a LoRA has: a pair at a linear module or at
//! the embedding, and a bias at a linear module. For methods that are a product of two small matrices in another form, and
//! that fewer programs know.
//!
//! Nothing is rounded: A and B are written as they are, widened to f32; the scaling s of a pair of rank r is an alpha
//! that gives s again when PEFT divides it by r in f64; what `lora_bias` multiplies by s is a number that gives the bias back.

use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::class::DeltaOp;
use super::compile::{Base, CompileLimits, compile};
use super::convert::tensors::{OwnedTensor, Tensors};
use super::layout::{BaseLayout, Module, ModuleKind, Site};
use super::peft::keys::PREFIX;
use super::program::DeltaProgram;
use crate::ops::HostTensor;
use crate::types::OpClass;

/// Why an adapter is not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A LoRA has no such op.
    #[error("{} of {site} cannot be written into a LoRA: {reason}", class.as_str())]
    Op {
        /// Of the op.
        class: OpClass,
        /// Where it is.
        site: Site,
        /// Why.
        reason: &'static str,
    },
    /// A defect, found before anything was written.
    #[error("the LoRA does not compile to the adapter again: {0}")]
    Differs(String),
    /// The file cannot be put together.
    #[error("writing the tensors: {0}")]
    Tensors(#[from] safetensors::SafeTensorError),
}

/// The files of a LoRA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraFiles {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl LoraFiles {
    /// Compile the files and see that they are the program that they were written from, number by number.
    ///
    /// # Errors
    /// [`ExportError::Differs`].
    pub fn check(&self, program: &DeltaProgram, base: Base<'_>, limits: CompileLimits) -> Result<(), ExportError> {
        let again = compile(&self.config, &self.weights, base, limits);
        let again = again.map_err(|error| ExportError::Differs(error.to_string()))?;
        let (wanted, found) = (numbers(program), numbers(&again));
        match wanted.iter().zip(&found).find(|(wanted, found)| wanted != found) {
            Some(((site, class, ..), _)) => Err(ExportError::Differs(format!("{} of {site}", class.as_str()))),
            None if wanted.len() != found.len() => Err(ExportError::Differs("the number of ops".to_owned())),
            None if again.invocation_tokens != program.invocation_tokens => {
                Err(ExportError::Differs("what activates it".to_owned()))
            }
            None => Ok(()),
        }
    }
}

/// Site, class, s, A and B of an op.
type Numbers = (Site, OpClass, f32, Vec<f32>, Vec<f32>);

/// The ops that add something, with all their numbers.
fn numbers(program: &DeltaProgram) -> Vec<Numbers> {
    let of = |(site, op): &(Site, DeltaOp)| {
        let (scaling, a, b) = match op {
            DeltaOp::LowRank(op) => (op.scaling, op.a.to_f32(), op.b.to_f32()),
            DeltaOp::EmbeddingLowRank(op) => (op.scaling, op.a.to_f32(), op.b.to_f32()),
            DeltaOp::Bias(op) => (1.0, Vec::new(), op.b.clone()),
            _ => return None,
        };
        b.iter().any(|number| *number != 0.0).then(|| (*site, op.class(), scaling, a, b))
    };
    program.ops.iter().filter_map(of).collect()
}

/// What a LoRA has at a module.
struct Part<'a> {
    module: &'a Module,
    /// A, B and s.
    pair: Option<(&'a HostTensor, &'a HostTensor, f32)>,
    bias: Option<&'a [f32]>,
}

impl DeltaProgram {
    /// The program as a LoRA of the base that `trained_on` names.
    ///
    /// # Errors
    /// [`ExportError`], naming the first op that a LoRA does not have or cannot hold to the last bit.
    pub fn to_lora(&self, layout: &BaseLayout, trained_on: Option<&str>) -> Result<LoraFiles, ExportError> {
        let parts = parts(self, layout)?;
        let biased = parts.iter().any(|part| part.bias.is_some());
        let embedding = parts.iter().find(|part| biased && part.module.kind == ModuleKind::Embedding);
        if let Some(Part { module, .. }) = embedding {
            let (class, site) = (OpClass::EmbeddingLowRank, module.site);
            let reason = "the adapter has biases, and PEFT takes no lora_bias beside LoRA on the embedding";
            return Err(ExportError::Op { class, site, reason });
        }
        let mut tensors = Tensors::new();
        for part in &parts {
            part.write(biased, &mut tensors)?;
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let config = format!("{:#}\n", config(self, &parts, biased, trained_on)).into_bytes();
        Ok(LoraFiles { config, weights: safetensors::serialize(tensors.iter(), Some(metadata))? })
    }
}

/// By path.
fn parts<'a>(program: &'a DeltaProgram, layout: &'a BaseLayout) -> Result<Vec<Part<'a>>, ExportError> {
    let modules: HashMap<Site, &Module> = layout.modules().map(|module| (module.site, module)).collect();
    let mut parts: BTreeMap<&str, Part<'a>> = BTreeMap::new();
    for (site, op) in &program.ops {
        let refused = |reason| ExportError::Op { class: op.class(), site: *site, reason };
        if program.vocab_size.is_some() {
            return Err(refused("the adapter has a vocabulary of its own"));
        }
        let module = *modules.get(site).ok_or_else(|| refused("it is at no module"))?;
        let part = parts.entry(&module.path).or_insert(Part { module, pair: None, bias: None });
        let is_second = match op {
            DeltaOp::LowRank(op) => part.pair.replace((&op.a, &op.b, op.scaling)).is_some(),
            DeltaOp::EmbeddingLowRank(op) => part.pair.replace((&op.a, &op.b, op.scaling)).is_some(),
            DeltaOp::Bias(op) => part.bias.replace(&op.b).is_some(),
            _ => return Err(refused("it is neither a product of two matrices nor a bias")),
        };
        if is_second {
            return Err(refused("it is the second there"));
        }
    }
    Ok(parts.into_values().collect())
}

impl Part<'_> {
    /// A bias alone stands beside a pair of rank 1 that gives nothing.
    fn rank_and_scaling(&self) -> (usize, f32) {
        match (&self.module.kind, self.pair) {
            (_, None) => (1, 1.0),
            (ModuleKind::Embedding, Some((_, b, scaling))) => (b.cols(), scaling),
            (_, Some((a, _, scaling))) => (a.rows(), scaling),
        }
    }

    fn alpha(&self) -> f64 {
        let (rank, scaling) = self.rank_and_scaling();
        alpha(rank, scaling)
    }

    fn write(&self, biased: bool, tensors: &mut Tensors) -> Result<(), ExportError> {
        let Module { path, kind, input, output, .. } = self.module;
        let names = match kind {
            ModuleKind::Embedding => ["lora_embedding_A", "lora_embedding_B"],
            _ => ["lora_A.weight", "lora_B.weight"],
        };
        let (rank, scaling) = self.rank_and_scaling();
        let [a, b] = match self.pair {
            Some((a, b, _)) => [a.to_f32(), b.to_f32()],
            None => [vec![0.0; rank * input], vec![0.0; output * rank]],
        };
        let mut put = |name: &str, shape: &[usize], numbers: &[f32]| {
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let tensor = OwnedTensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes };
            tensors.insert(format!("{PREFIX}{path}.{name}"), tensor);
        };
        put(names[0], &[rank, *input], &a);
        put(names[1], &[*output, rank], &b);
        if biased {
            let bias = self.bias.map_or_else(|| Some(vec![0.0; *output]), |bias| unscaled(bias, scaling));
            let reason = "no f32 times the scaling of the module gives it";
            let (class, site) = (OpClass::Bias, self.module.site);
            put("lora_B.bias", &[*output], &bias.ok_or(ExportError::Op { class, site, reason })?);
        }
        Ok(())
    }
}

/// Numbers that times `scaling` are `bias`, to the last bit.
fn unscaled(bias: &[f32], scaling: f32) -> Option<Vec<f32>> {
    let number = |b: &f32| {
        let near = b / scaling;
        [near, near.next_up(), near.next_down()].into_iter().find(|x| x.is_finite() && scaling * x == *b)
    };
    bias.iter().map(number).collect()
}

/// What PEFT divides by the rank to have the scaling: a whole number where one gives it, as it was most likely given.
fn alpha(rank: usize, scaling: f32) -> f64 {
    let exact = f64::from(scaling) * rank as f64;
    let whole = exact.round();
    if (whole / rank as f64) as f32 == scaling { whole } else { exact }
}

/// A whole number as one: most tools expect that of ranks and alphas.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn config(program: &DeltaProgram, parts: &[Part<'_>], biased: bool, trained_on: Option<&str>) -> Value {
    let activated_by = Some(&program.invocation_tokens).filter(|tokens| !tokens.is_empty());
    let mut common: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    for part in parts {
        let (rank, scaling) = part.rank_and_scaling();
        *common.entry((rank, scaling.to_bits())).or_default() += 1;
    }
    let most = common.into_iter().max_by_key(|(_, count)| *count);
    let (rank, scaling) = most.map_or((1, 1.0), |((rank, bits), _)| (rank, f32::from_bits(bits)));
    let alpha = alpha(rank, scaling);
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    for part in parts {
        if part.rank_and_scaling().0 != rank {
            ranks.insert(part.module.path.clone(), json!(part.rank_and_scaling().0));
        }
        if part.alpha() != alpha {
            alphas.insert(part.module.path.clone(), number(part.alpha()));
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": trained_on,
        "inference_mode": true,
        "target_modules": parts.iter().map(|part| part.module.path.as_str()).collect::<Vec<_>>(),
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "use_rslora": false,
        "use_dora": false,
        "fan_in_fan_out": false,
        "bias": "none",
        "lora_bias": biased,
        "alora_invocation_tokens": activated_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lora_bias_multiplies_gives_the_bias_back() {
        for scaling in [1.0_f32, 0.25, 7.0 / 3.0, 6.0 / 6.0_f32.sqrt(), -0.3] {
            let saved: Vec<f32> = (0..2000).map(|i| (i as f32 * 0.37).sin()).collect();
            let bias: Vec<f32> = saved.iter().map(|b| scaling * b).collect();
            let found = unscaled(&bias, scaling).unwrap();
            assert!(found.iter().zip(&bias).all(|(x, b)| (scaling * x).to_bits() == b.to_bits()));
        }
        assert_eq!(unscaled(&[1.0], 0.0), None);
        let odd: Vec<f32> = (0..2000).map(|i| (i as f32 * 0.37).sin()).collect();
        assert_eq!(unscaled(&odd, 1.9), None, "some numbers are no multiple of 1.9 in f32");
    }
}
