//! Where a checkpoint keeps the router and the experts of a layer: each expert's three matrices by themselves, as all
//! published files have them and as transformers saves them again, or all experts of a layer in two tensors, as
//! transformers 5 holds them.

use super::ModelError;
use super::checkpoint::Checkpoint;
use super::spec::{DecoderSpec, Family, LayerSpec, Mlp};
use crate::delta::SparseBlock;
use crate::ops::{ExpertsSpec, HostMatrix, HostTensor};

/// The names of transformers 5 within a sparse layer.
const BLOCK: &str = "mlp";
/// The names of the files within a sparse layer of Mixtral.
const MIXTRAL_BLOCK: &str = "block_sparse_moe";

/// The tensors of a sparse layer's router and experts.
pub(super) struct ExpertTensors {
    /// Path of the block.
    block: String,
    /// gate, up and down of an expert; without them all experts lie together.
    names: Option<[&'static str; 3]>,
    hidden: usize,
    spec: ExpertsSpec,
}

/// The weights of one expert, as stored.
pub(super) struct HostExpert {
    /// gate and up, in one tensor or two.
    gate_up: Vec<HostTensor>,
    pub(super) down: HostTensor,
    width: usize,
}

impl HostExpert {
    /// gate, then up.
    pub(super) fn gate_up(&self) -> Vec<HostMatrix<'_>> {
        let halves = |tensor: &HostTensor| (0..tensor.rows()).step_by(self.width);
        let matrices = |tensor| halves(tensor).map(move |first| tensor.rows_of(first..first + self.width));
        self.gate_up.iter().flat_map(matrices).collect()
    }
}

impl ExpertTensors {
    /// Those of a layer with these experts.
    pub(super) fn of(spec: &DecoderSpec, layer: u32, experts: ExpertsSpec, checkpoint: &Checkpoint) -> Self {
        let path = |block: &str| format!("model.layers.{layer}.{block}");
        let here = |block, names| Self { block: path(block), names, hidden: spec.hidden_size, spec: experts };
        let together = here(BLOCK, None);
        if checkpoint.shape(&together.gate_up()).is_some() {
            return together;
        }
        let (block, names) = apart(spec.family);
        here(block, Some(names))
    }

    /// The router's name and shape.
    pub(super) fn router(&self) -> (String, [usize; 2]) {
        (format!("{}.gate.weight", self.block), [self.spec.experts, self.hidden])
    }

    /// Every tensor with its shape.
    pub(super) fn all(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, width, count) = (self.hidden, self.spec.intermediate_size, self.spec.experts);
        let (router, shape) = self.router();
        let mut all = vec![(router, shape.to_vec())];
        match self.names {
            Some([gate, up, down]) => all.extend((0..count).flat_map(|expert| {
                let shapes = [(gate, [width, hidden]), (up, [width, hidden]), (down, [hidden, width])];
                shapes.map(|(name, shape)| (self.of_expert(expert, name), shape.to_vec()))
            })),
            None => {
                all.push((self.gate_up(), vec![count, 2 * width, hidden]));
                all.push((self.down(), vec![count, hidden, width]));
            }
        }
        all
    }

    /// Read one expert.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(super) fn read(&self, checkpoint: &Checkpoint, expert: usize) -> Result<HostExpert, ModelError> {
        let (hidden, width) = (self.hidden, self.spec.intermediate_size);
        let (gate_up, down) = match self.names {
            Some([gate, up, down]) => {
                let read = |name, shape: [usize; 2]| checkpoint.tensor(&self.of_expert(expert, name), &shape);
                (vec![read(gate, [width, hidden])?, read(up, [width, hidden])?], read(down, [hidden, width])?)
            }
            None => {
                let count = self.spec.experts;
                let gate_up = checkpoint.slice(&self.gate_up(), [count, 2 * width, hidden], expert)?;
                (vec![gate_up], checkpoint.slice(&self.down(), [count, hidden, width], expert)?)
            }
        };
        Ok(HostExpert { gate_up, down, width })
    }

    fn of_expert(&self, expert: usize, name: &str) -> String {
        format!("{}.experts.{expert}.{name}.weight", self.block)
    }

    fn gate_up(&self) -> String {
        format!("{}.experts.gate_up_proj", self.block)
    }

    fn down(&self) -> String {
        format!("{}.experts.down_proj", self.block)
    }
}

/// Sparse layers and their experts.
pub(super) fn sparse_layers(spec: &DecoderSpec) -> impl Iterator<Item = (u32, ExpertsSpec)> {
    let experts = |(layer, of_layer): (usize, &LayerSpec)| match of_layer.mlp {
        Mlp::Experts(experts) => Some((layer as u32, experts)),
        Mlp::Dense(_) => None,
    };
    spec.layers.iter().enumerate().filter_map(experts)
}

/// The blocks of sparse layers, by the names of the files and by those of transformers 5.
pub(super) fn sparse_blocks(spec: &DecoderSpec) -> Vec<SparseBlock> {
    let (block_apart, names_apart) = apart(spec.family);
    let block = |(layer, experts): (u32, ExpertsSpec)| SparseBlock {
        layer,
        path: format!("model.layers.{layer}.{BLOCK}"),
        path_apart: format!("model.layers.{layer}.{block_apart}"),
        names_apart,
        experts: experts.experts,
        intermediate_size: experts.intermediate_size,
    };
    sparse_layers(spec).map(block).collect()
}

/// The block of a layer, and gate, up and down of an expert, where each matrix is by itself.
fn apart(family: Family) -> (&'static str, [&'static str; 3]) {
    match family {
        Family::Mixtral => (MIXTRAL_BLOCK, ["w1", "w3", "w2"]),
        _ => (BLOCK, ["gate_proj", "up_proj", "down_proj"]),
    }
}
