//! Random adapters on all seven linear modules of every layer.

use polydelta::delta::{BaseLayout, DeltaOp, DeltaProgram, LayerSite, LowRank, Module, Site};
use polydelta::ops::{HostTensor, TensorData};
use polydelta::types::AdapterTask;

use super::numbers::weights;

/// Every linear module of a layer.
const LINEARS: [LayerSite; 7] =
    [LayerSite::Q, LayerSite::K, LayerSite::V, LayerSite::O, LayerSite::Gate, LayerSite::Up, LayerSite::Down];

pub(crate) fn matrix(seed: u64, rows: usize, cols: usize) -> HostTensor {
    HostTensor { shape: vec![rows, cols], data: TensorData::Bf16(weights(seed, rows * cols, 0.035)) }
}

/// A LoRA of `rank` as its compiler would leave it.
pub(crate) fn lora(layout: &BaseLayout, rank: usize, seed: u64) -> DeltaProgram {
    let mut next = seed << 32;
    on_linears(layout, |module| {
        next += 1;
        let a = matrix(next, rank, module.input);
        let b = matrix(next | 1 << 31, module.output, rank);
        LowRank { a, b, scaling: 2.0 }.into()
    })
}

/// An op on each of those modules.
pub(crate) fn on_linears(layout: &BaseLayout, mut op: impl FnMut(&Module) -> DeltaOp) -> DeltaProgram {
    let linear = |module: &&Module| matches!(module.site, Site::Layer(_, part) if LINEARS.contains(&part));
    program(layout.modules().filter(linear).map(|module| (module.site, op(module))).collect())
}

/// A program of ops in site order.
pub(crate) fn program(ops: Vec<(Site, DeltaOp)>) -> DeltaProgram {
    DeltaProgram {
        kind: "LoRA".to_owned(),
        task: AdapterTask::Generation,
        ops,
        invocation_tokens: Vec::new(),
        keeps_base_kv: false,
        base_layers: 0,
        vocab_size: None,
        unknown_fields: Vec::new(),
    }
}
