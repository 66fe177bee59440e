//! LoRA on the routers and experts of sparse layers, in both ways in which PEFT saves it.
//!
//! With `target_parameters` (PEFT 0.17 on, `ParamWrapper` of `tuners/lora/layer.py`) all experts of a layer share two tensors for
//! `gate_up_proj` and two for `down_proj`: A `[experts * rank, in]` holds one expert after the other, B `[out, rank * experts]`
//! all experts' first column, then all experts' second, and so on. Where both parameters have LoRA, the keys of the first
//! in the module lie below `base_layer`. Before transformers 5 every matrix of every expert was a linear module with a pair
//! of its own; PEFT reads such files by putting the pairs together.

use super::compilation::Compilation;
use super::ranks::Ranks;
use crate::delta::DeltaError;
use crate::delta::class::{ExpertLowRank, LowRank};
use crate::delta::layout::{LayerSite, Module, ModuleKind, Site, SparseBlock};
use crate::delta::peft::keys::PREFIX;
use crate::delta::peft::targets::{TargetParameters, Targets};
use crate::ops::{HostTensor, OpsError, TensorData};

/// Most paths of experts times expressions: a base may have tens of thousands of matrices, and each is held against each.
const MAX_MATCHES: usize = 1 << 17;

/// A pair's keys.
const PAIR: [&str; 2] = ["lora_A.weight", "lora_B.weight"];
/// Those of the parameter that PEFT wraps first.
const INNER_PAIR: [&str; 2] = ["base_layer.lora_A.weight", "base_layer.lora_B.weight"];

/// What a config says of experts and routers.
pub(super) struct OfExperts<'a> {
    pub(super) targets: &'a Targets,
    pub(super) parameters: &'a TargetParameters,
    pub(super) ranks: &'a Ranks,
    /// Of the adapter, where it is one that experts cannot carry.
    pub(super) refused_kind: Option<&'static str>,
}

/// Which forms that no parameter of the config announces are in the file.
#[derive(Clone, Copy)]
struct Apart {
    routers: bool,
    experts: bool,
}

impl OfExperts<'_> {
    /// Attach the ops of all sparse layers; true where the config targets any of them.
    pub(super) fn compile(&self, compilation: &mut Compilation<'_>) -> Result<bool, DeltaError> {
        let layout = compilation.base.layout;
        let apart = self.apart_in(compilation)?;
        let mut matched = false;
        for block in layout.sparse_blocks() {
            matched |= self.router(compilation, block, apart)?;
            let together = self.together(compilation, block)?;
            // A parameter of the config has the word: matrices beside it are no targets.
            matched |= together || (apart.experts && self.matrices(compilation, block)?);
        }
        Ok(matched)
    }

    /// A list of modules may name matrices that are none where the adapter was trained, so files decide which of both they
    /// are.
    fn apart_in(&self, compilation: &Compilation<'_>) -> Result<Apart, DeltaError> {
        let (layout, tensors) = (compilation.base.layout, &compilation.tensors);
        let key = |path: &str, rest: &str| format!("{PREFIX}{path}.{rest}");
        let has_router = |block: &SparseBlock| PAIR.iter().any(|pair| tensors.has(&key(&block.router(), pair)));
        // Between them lie all numbers.
        let has_experts = |block: &SparseBlock| {
            let experts = format!("{}.experts", block.path_apart);
            tensors.has_between(&key(&experts, "0"), &key(&experts, ":"))
        };
        let apart =
            Apart { routers: layout.sparse_blocks().any(has_router), experts: layout.sparse_blocks().any(has_experts) };
        let matrices: usize = layout.sparse_blocks().map(|block| 3 * block.experts).sum();
        let expressions = self.targets.expressions() + self.ranks.expressions();
        if apart.experts && matrices.saturating_mul(expressions) > MAX_MATCHES {
            let reason = format!("{expressions} expressions are too many for the {matrices} matrices of experts");
            return Err(DeltaError::Regex { field: "target_modules".to_owned(), reason });
        }
        Ok(apart)
    }

    fn router(&self, compilation: &mut Compilation<'_>, block: &SparseBlock, apart: Apart) -> Result<bool, DeltaError> {
        let hidden = compilation.base.layout.hidden_size;
        let site = Site::Layer(block.layer, LayerSite::Router);
        let router = linear(block.router(), site, hidden, block.experts);
        let before = Module { path: format!("{}.gate", block.path_apart), ..router.clone() };
        let path = match self.targeted(compilation, &format!("{}.weight", router.path)) {
            Some(path) => path,
            None if apart.routers && compilation.is_target(self.targets, &before)? => trained(compilation, &before),
            None => return Ok(false),
        };
        let (a, b, scaling) = self.pair(compilation, &router, &path)?;
        compilation.push(site, LowRank { a, b, scaling });
        Ok(true)
    }

    /// All experts of a layer in the two parameters.
    fn together(&self, compilation: &mut Compilation<'_>, block: &SparseBlock) -> Result<bool, DeltaError> {
        let experts = block.all_experts();
        let targeted = |name: &str| self.targeted(compilation, &format!("{experts}.{name}"));
        let (gate_up, down) = (targeted("gate_up_proj"), targeted("down_proj"));
        let (hidden, inner) = (compilation.base.layout.hidden_size, block.intermediate_size);
        if let Some(path) = &gate_up {
            let keys = if down.is_some() { INNER_PAIR } else { PAIR };
            let module = linear(experts.clone(), block.site(LayerSite::ExpertsGateUp), hidden, 2 * inner);
            self.stack(compilation, block, &module, path, keys)?;
        }
        if let Some(path) = &down {
            let module = linear(experts.clone(), block.site(LayerSite::ExpertsDown), inner, hidden);
            self.stack(compilation, block, &module, path, PAIR)?;
        }
        Ok(gate_up.is_some() || down.is_some())
    }

    /// One of the two.
    fn stack(
        &self,
        compilation: &mut Compilation<'_>,
        block: &SparseBlock,
        module: &Module,
        path: &str,
        [a, b]: [&'static str; 2],
    ) -> Result<(), DeltaError> {
        self.check_kind(module)?;
        let (rank, scaling) = self.ranks.of(path, path)?;
        let ranks = block.experts.saturating_mul(rank);
        let a = compilation.required(module, a, &[ranks, module.input])?;
        let b = compilation.required(module, b, &[module.output, ranks])?;
        let op = match compilation.tensors.has_no_numbers() {
            true => without_numbers(block.experts, rank, module),
            false => of_stacks(block.experts, rank, &a, &b, scaling)?,
        };
        compilation.push(module.site, op);
        Ok(())
    }

    /// Every matrix by itself.
    fn matrices(&self, compilation: &mut Compilation<'_>, block: &SparseBlock) -> Result<bool, DeltaError> {
        let (hidden, inner) = (compilation.base.layout.hidden_size, block.intermediate_size);
        let parts = [
            (LayerSite::ExpertsGate, hidden, inner),
            (LayerSite::ExpertsUp, hidden, inner),
            (LayerSite::ExpertsDown, inner, hidden),
        ];
        let mut matched = false;
        for (matrix, (part, input, output)) in parts.into_iter().enumerate() {
            let mut op = ExpertLowRank::default();
            for expert in 0..block.experts as u32 {
                let module = linear(block.matrix(expert, matrix), block.site(part), input, output);
                if compilation.is_target(self.targets, &module)? {
                    let (a, b, scaling) = self.pair(compilation, &module, &trained(compilation, &module))?;
                    op.push(expert, a, b, scaling);
                }
            }
            if !op.experts.is_empty() {
                matched = true;
                compilation.push(block.site(part), op);
            }
        }
        Ok(matched)
    }

    /// A, B and the scaling of a linear module.
    fn pair(
        &self,
        compilation: &mut Compilation<'_>,
        module: &Module,
        path: &str,
    ) -> Result<(HostTensor, HostTensor, f32), DeltaError> {
        self.check_kind(module)?;
        let (rank, scaling) = self.ranks.of(&module.path, path)?;
        let a = compilation.required(module, PAIR[0], &[rank, module.input])?;
        let b = compilation.required(module, PAIR[1], &[module.output, rank])?;
        Ok((a, b, scaling))
    }

    fn check_kind(&self, module: &Module) -> Result<(), DeltaError> {
        match self.refused_kind {
            Some(kind) => Err(DeltaError::WrongModule { module: module.path.clone(), kind }),
            None => Ok(()),
        }
    }

    /// The path of a parameter in the model the adapter was trained on, where the config targets it.
    fn targeted(&self, compilation: &Compilation<'_>, parameter: &str) -> Option<String> {
        let path = compilation.tensors.level().path_of(parameter)?.into_owned();
        self.parameters.contain(&path).then_some(path)
    }
}

/// The path of a module in the model the adapter was trained on.
fn trained(compilation: &Compilation<'_>, module: &Module) -> String {
    compilation.tensors.level().path(module).unwrap_or_default().into_owned()
}

/// A matrix of a sparse block as the module that it is, or would be.
fn linear(path: String, site: Site, input: usize, output: usize) -> Module {
    Module { weight: format!("{path}.weight"), path, site, kind: ModuleKind::Linear, input, output, bias: false }
}

/// The pairs of all experts out of A `[experts * rank, in]` and B `[out, rank * experts]`.
fn of_stacks(
    experts: usize,
    rank: usize,
    a: &HostTensor,
    b: &HostTensor,
    scaling: f32,
) -> Result<ExpertLowRank, OpsError> {
    let (mut op, columns) = (ExpertLowRank::default(), b.transposed()?);
    for expert in 0..experts {
        let rows: Vec<usize> = (expert * rank..(expert + 1) * rank).collect();
        let strided: Vec<usize> = (0..rank).map(|rank| rank * experts + expert).collect();
        op.push(expert as u32, a.selected(&rows)?, columns.selected(&strided)?.transposed()?, scaling);
    }
    Ok(op)
}

/// The same in shape alone.
fn without_numbers(experts: usize, rank: usize, module: &Module) -> ExpertLowRank {
    let tensor = |shape: [usize; 2]| HostTensor { shape: shape.to_vec(), data: TensorData::F32(Vec::new()) };
    let mut op = ExpertLowRank::default();
    for expert in 0..experts as u32 {
        op.push(expert, tensor([rank, module.input]), tensor([module.output, rank]), 1.0);
    }
    op
}
