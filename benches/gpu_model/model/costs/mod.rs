//! What a launch moves and computes, by its arguments: one formula for every kernel, each with the reason.

mod attention;
mod lora;
mod matrices;
mod rows;

use super::abi::{Structs, View};
use crate::emulator::{Control, Launch};
use crate::support::Failure;

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    Weights,
    Adapters,
    Kv,
    Activations,
}

/// Something that a launch reads or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) class: Class,
    /// Its bytes, each counted once.
    pub(crate) bytes: f64,
    /// How often blocks ask for them.
    pub(crate) asked: f64,
    /// How often they come from memory, where they are more than the L2 cache keeps: blocks that run side by side share
    /// them, blocks that come one after the other do not.
    pub(crate) fetched: f64,
}

/// What a launch costs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) operands: Vec<Operand>,
    /// Products and sums, those of rows and ranks that only fill a tile included.
    pub(crate) flops: f64,
    /// Blocks that have something to do; all of the grid where it is not given.
    pub(crate) busy: Option<f64>,
}

impl Cost {
    /// Of a launch that does both.
    fn and(mut self, other: Self) -> Self {
        self.operands.extend(other.operands);
        let busy = self.busy.zip(other.busy).map(|(one, other)| one + other);
        Self { flops: self.flops + other.flops, busy, ..self }
    }

    /// Bytes that are touched once.
    fn once(self, class: Class, bytes: f64) -> Self {
        self.again(class, bytes, 1.0, 1.0)
    }

    /// Bytes that are asked for more than once.
    fn again(mut self, class: Class, bytes: f64, asked: f64, fetched: f64) -> Self {
        self.operands.push(Operand { class, bytes, asked, fetched });
        self
    }
}

/// A launch as formulas see it.
struct Seen<'a> {
    args: View<'a>,
    /// Kernel without its dtype.
    name: &'a str,
    grid: [f64; 3],
    /// Bytes of a number of the compute dtype.
    size: f64,
    processors: f64,
    structs: &'a Structs,
}

impl Seen<'_> {
    fn get(&self, path: &str) -> Result<f64, Failure> {
        Ok(self.args.get(path)? as f64)
    }

    /// Rows of the set.
    fn rows(&self) -> Result<f64, Failure> {
        Ok(self.args.follow("rows")?.get("count")? as f64)
    }

    /// Bytes of a row of a buffer whose producer writes every form of it that there is.
    fn both_forms(&self, buffer: &str) -> Result<f64, Failure> {
        let rounded = if self.get(&format!("{buffer}.input"))? == 0.0 { 0.0 } else { self.size };
        Ok(4.0 * self.get(&format!("{buffer}.cols"))? + rounded * self.get(&format!("{buffer}.input_stride"))?)
    }

    fn blocks(&self) -> f64 {
        self.grid.iter().product()
    }
}

type Formula = fn(&Seen<'_>) -> Result<Cost, Failure>;

/// Every kernel that a step launches, without its dtype, and the struct that it takes.
const FORMULAS: &[(&str, &str, Formula)] = &[
    ("embed", "EmbedArgs", rows::embed),
    ("embedding_low_rank", "EmbedLowRankArgs", lora::embedding_low_rank),
    ("replace_embeddings", "EmbedLowRankArgs", lora::replace_embeddings),
    ("copy_rows", "CopyRowsArgs", rows::copy_rows),
    ("gather_rows", "RowsArgs", rows::gather_rows),
    ("keep_rows", "KeptRowsArgs", rows::kept_rows),
    ("recall_rows", "KeptRowsArgs", rows::kept_rows),
    ("pool_rows", "PoolArgs", rows::pool_rows),
    ("add", "RowsArgs", rows::add),
    ("gated_activation", "RowsArgs", rows::gated_activation),
    ("round_rows", "RowsArgs", rows::round_rows),
    ("rms_norm", "NormArgs", rows::rms_norm),
    ("rms_norm_heads", "NormArgs", rows::rms_norm_heads),
    ("add_bias", "VectorArgs", rows::add_bias),
    ("softcap", "VectorArgs", rows::softcap),
    ("scale_rows", "VectorArgs", lora::vector_rows),
    ("bias_rows", "VectorArgs", lora::vector_rows),
    ("rotate_outputs", "VectorArgs", lora::rotate_outputs),
    ("head_rows", "VectorArgs", lora::head_rows),
    ("scale_input", "VectorArgs", rows::scale_input),
    ("rotate_input", "RotateArgs", lora::rotate_input),
    ("blend_rows", "BlendArgs", lora::blend_rows),
    ("layer_norm_rows", "VectorArgs", lora::layer_norm_rows),
    ("gemm_rows8", "GemmArgs", matrices::gemm_rows),
    ("gemm_rows16", "GemmArgs", matrices::gemm_rows),
    ("gemm_rows32", "GemmArgs", matrices::gemm_rows),
    ("gemm_rows64", "GemmArgs", matrices::gemm_rows),
    ("gemm", "GemmArgs", matrices::gemm_rows),
    ("gemm_tiles64", "GemmArgs", matrices::gemm_tiles),
    ("gemm_tiles", "GemmArgs", matrices::gemm_tiles),
    ("replace_columns", "ReplaceColumnsArgs", lora::replace_columns),
    ("dense", "DenseArgs", lora::dense),
    ("shrink", "LowRankArgs", lora::shrink),
    ("bend_shrunk", "LowRankArgs", lora::bend_shrunk),
    ("expand", "LowRankArgs", lora::expand),
    ("sparse", "SparseArgs", lora::sparse),
    ("rope_and_cache", "RopeArgs", attention::rope_and_cache),
    ("attention", "AttentionArgs", attention::attention),
    ("combine_attention", "AttentionArgs", attention::combine_attention),
    ("sample", "SampleArgs", rows::sample),
    ("sample_own", "SampleArgs", rows::sample_own),
];

/// The cost of a launch on a device of so many processors.
pub(crate) fn cost(structs: &Structs, device: &Control, launch: &Launch, processors: u32) -> Result<Cost, Failure> {
    let dtypes = [("_bf16", 2.0), ("_f16", 2.0), ("_f32", 4.0)];
    let typed = |(ending, size): (&str, f64)| launch.kernel.strip_suffix(ending).map(|name| (name, size));
    let (name, size) = dtypes.into_iter().find_map(typed).unwrap_or((launch.kernel.as_str(), 4.0));
    // The kernel for many rows is another way to the same.
    let name = if name == "attention_prefill" { "attention" } else { name };
    let of = |name: &str, args: View<'_>| {
        let (_, _, formula) = FORMULAS
            .iter()
            .find(|(known, ..)| *known == name)
            .ok_or_else(|| format!("nothing is known of what {} costs: benches/gpu_model/costs", launch.kernel))?;
        let grid = launch.grid.map(f64::from);
        formula(&Seen { args, name, grid, size, processors: f64::from(processors), structs })
    };
    if let Some(form) = name.strip_prefix("gemm_shrink_") {
        let both = structs.view(device, "GemmShrinkArgs", launch.args.clone())?;
        return Ok(of(&format!("gemm_{form}"), both.inner("gemm")?)?.and(of("shrink", both.inner("low_rank")?)?));
    }
    let args = FORMULAS.iter().find(|(known, ..)| *known == name).map_or("", |(_, args, _)| *args);
    of(name, structs.view(device, args, launch.args.clone())?)
}
