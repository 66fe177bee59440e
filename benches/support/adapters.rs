//! Random LoRA adapters on all seven linear modules of every layer.

use polydelta::delta::{BaseLayout, DeltaProgram, LayerSite, LowRank};
use polydelta::ops::{HostTensor, TensorData};
use polydelta::types::AdapterTask;

use super::numbers::weights;

/// Every linear module of a layer.
const LINEARS: [LayerSite; 7] =
    [LayerSite::Q, LayerSite::K, LayerSite::V, LayerSite::O, LayerSite::Gate, LayerSite::Up, LayerSite::Down];

fn matrix(seed: u64, rows: usize, cols: usize) -> HostTensor {
    HostTensor { shape: vec![rows, cols], data: TensorData::Bf16(weights(seed, rows * cols, 0.035)) }
}

/// A LoRA of `rank` as its compiler would leave it.
pub(crate) fn lora(layout: &BaseLayout, rank: usize, seed: u64) -> DeltaProgram {
    let mut ops = Vec::new();
    for module in layout.modules() {
        if let polydelta::delta::Site::Layer(_, part) = module.site
            && LINEARS.contains(&part)
        {
            let seed = seed << 32 | ops.len() as u64;
            let a = matrix(seed, rank, module.input);
            let b = matrix(seed | 1 << 31, module.output, rank);
            ops.push((module.site, LowRank { a, b, scaling: 2.0 }.into()));
        }
    }
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
