//! The kernels of `kernels/*.cu`, as PTX that travels in the binary, loaded for one device and one choice of numerics.

use std::sync::Arc;

use super::abi::{
    AttentionArgs, BlendArgs, CopyBlockArgs, CopyRowsArgs, DenseArgs, EmbedArgs, EmbedLowRankArgs, ExpertDeltasArgs,
    ExpertsArgs, GemmArgs, GemmShrinkArgs, KeptRowsArgs, LowRankArgs, NormArgs, Plain, PoolArgs, ReplaceColumnsArgs,
    RopeArgs, RotateArgs, RowsArgs, SampleArgs, SparseArgs, VectorArgs, WritePagesArgs,
};
use super::driver::{Device, Kernel, Module};
use super::kernel_cache::KernelCache;
use super::sizes::{
    EXPERTS_ROWS, GEMM_F32, GEMM_ROWS8, GEMM_ROWS16, GEMM_ROWS32, GEMM_ROWS64, GEMM_TILES, GEMM_TILES64, GemmBlock,
};
use crate::ops::{ComputeDtype, OpsError};

/// Texts of all modules.
macro_rules! texts {
    ($($name:literal),* $(,)?) => {
        [$(include_str!(concat!("../../../kernels/ptx/", $name, ".ptx"))),*]
    };
}

const TEXTS: [&str; 13] = texts![
    "attention",
    "attention_f32",
    "attention_prefill",
    "cache",
    "embedding",
    "expert_deltas",
    "experts",
    "gemm",
    "gemm_shrink",
    "lora",
    "norm",
    "rows",
    "sample"
];

/// Declares the kernels: those whose names end in a dtype, and those that have one form.
macro_rules! kernels {
    (by_dtype { $($typed:ident: $typed_args:ty,)* } one_form { $($plain:ident: $plain_args:ty,)* }) => {
        /// All of them.
        pub(super) struct Kernels {
            $(pub(super) $typed: Kernel<$typed_args>,)*
            $(pub(super) $plain: Kernel<$plain_args>,)*
            pub(super) gemm: Gemms,
            pub(super) expert_gemms: ExpertGemms,
            /// The same as `attention`, for many rows of a sequence; none in f32.
            pub(super) attention_prefill: Option<Kernel<AttentionArgs>>,
            /// Kernels belong to their modules.
            _modules: Vec<Module>,
        }

        impl Kernels {
            /// Have the driver assemble them, or take what it made of them at an earlier start.
            ///
            /// # Errors
            /// [`OpsError::Driver`] and [`OpsError::Kernel`].
            pub(super) fn load(
                device: &Arc<Device>,
                dtype: ComputeDtype,
                cache: Option<&mut KernelCache>,
            ) -> Result<Self, OpsError> {
                let modules = modules(device, cache)?;
                let loader = Loader { modules: &modules, dtype };
                Ok(Self {
                    $($typed: loader.typed(stringify!($typed))?,)*
                    $($plain: loader.kernel(stringify!($plain))?,)*
                    gemm: Gemms::load(&loader)?,
                    expert_gemms: ExpertGemms::load(&loader)?,
                    attention_prefill: match dtype {
                        ComputeDtype::F32 => None,
                        ComputeDtype::Bf16 | ComputeDtype::F16 => Some(loader.typed("attention_prefill")?),
                    },
                    _modules: modules,
                })
            }
        }
    };
}

kernels! {
    by_dtype {
        embed: EmbedArgs,
        embedding_low_rank: EmbedLowRankArgs,
        replace_embeddings: EmbedLowRankArgs,
        rms_norm: NormArgs,
        gated_activation: RowsArgs,
        round_rows: RowsArgs,
        blend_rows: BlendArgs,
        layer_norm_rows: VectorArgs,
        scale_input: VectorArgs,
        rotate_input: RotateArgs,
        replace_columns: ReplaceColumnsArgs,
        dense: DenseArgs,
        shrink: LowRankArgs,
        expand: LowRankArgs,
        shrink_experts: ExpertDeltasArgs,
        sparse: SparseArgs,
        rope_and_cache: RopeArgs,
        attention: AttentionArgs,
        combine_attention: AttentionArgs,
        write_pages: WritePagesArgs,
    }
    one_form {
        copy_rows: CopyRowsArgs,
        gather_rows: RowsArgs,
        keep_rows: KeptRowsArgs,
        recall_rows: KeptRowsArgs,
        pool_rows: PoolArgs,
        add: RowsArgs,
        bend_shrunk: LowRankArgs,
        rms_norm_heads: NormArgs,
        add_bias: VectorArgs,
        softcap: VectorArgs,
        scale_rows: VectorArgs,
        bias_rows: VectorArgs,
        rotate_outputs: VectorArgs,
        head_rows: VectorArgs,
        copy_block: CopyBlockArgs,
        route_experts: ExpertsArgs,
        group_experts: ExpertsArgs,
        group_expert_deltas: ExpertDeltasArgs,
        combine_experts: ExpertsArgs,
        sample: SampleArgs,
        sample_own: SampleArgs,
    }
}

/// One form of the GEMM.
pub(super) struct GemmForm {
    pub(super) kernel: Kernel<GemmArgs>,
    /// The same with products of A beside it, in forms for few rows.
    pub(super) with_shrink: Option<Kernel<GemmShrinkArgs>>,
    /// Rows and outputs of a block.
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) shared_bytes: usize,
    /// Rows lie along x of the grid, and outputs along y.
    pub(super) is_tile: bool,
}

/// The GEMM, in forms for different numbers of rows that give the same bits.
pub(super) struct Gemms {
    /// By rows, ascending: those that read weights once for all rows of a step. The last serves any number.
    few: Vec<GemmForm>,
    /// Tiles, ascending, which share what they read between many rows; none in f32.
    many: Vec<GemmForm>,
}

impl Gemms {
    fn load(loader: &Loader<'_>) -> Result<Self, OpsError> {
        let form = |name: &str, block, with_shrink, is_tile| {
            let GemmBlock { rows, outs: outputs, shared: shared_bytes } = block;
            Ok(GemmForm { kernel: loader.typed(name)?, with_shrink, rows, outputs, shared_bytes, is_tile })
        };
        let with_shrink = |of: &str| loader.typed(&format!("gemm_shrink_{of}")).map(Some);
        let few = |of: &str, block| form(&format!("gemm_{of}"), block, with_shrink(of)?, false);
        Ok(match loader.dtype {
            ComputeDtype::F32 => Self { few: vec![form("gemm", GEMM_F32, None, false)?], many: Vec::new() },
            ComputeDtype::Bf16 | ComputeDtype::F16 => Self {
                few: vec![
                    few("rows8", GEMM_ROWS8)?,
                    few("rows16", GEMM_ROWS16)?,
                    few("rows32", GEMM_ROWS32)?,
                    few("rows64", GEMM_ROWS64)?,
                ],
                many: vec![
                    form("gemm_tiles64", GEMM_TILES64, with_shrink("tiles64")?, true)?,
                    form("gemm_tiles", GEMM_TILES, None, true)?,
                ],
            },
        })
    }

    /// The form for so many rows and outputs: the smallest that takes all rows at once, or twice where no larger one's
    /// blocks fit the device; else the largest tile of which every processor has one. Rows that are nearly a tile are one
    /// where there are outputs enough: it reads them once for many outputs, and those forms for few.
    pub(super) fn form(&self, rows: usize, outputs: usize, device: &Device) -> &GemmForm {
        let fits = |form: &&GemmForm| form.shared_bytes <= device.shared_bytes() as usize;
        let takes = |form: &&GemmForm| rows <= form.rows;
        let busy = |form: &&GemmForm| {
            rows.div_ceil(form.rows) * outputs.div_ceil(form.outputs) >= device.processors() as usize
        };
        let largest = self.few.iter().rev().find(fits).unwrap_or(&self.few[0]);
        let few = || self.few.iter().filter(fits).find(takes).or_else(|| takes_in_two(rows, largest));
        let many = || self.many.iter().rev().find(busy).or(self.many.first());
        let nearly_tile = || self.many.first().filter(|tile| takes(tile) && 2 * rows > tile.rows && busy(tile));
        nearly_tile().or_else(few).or_else(many).unwrap_or(largest)
    }

    /// The form whose blocks a product of single groups has.
    pub(super) fn smallest(&self) -> &GemmForm {
        &self.few[0]
    }
}

/// The form, where its blocks for twice as many rows as it takes at once are all there are.
fn takes_in_two(rows: usize, form: &GemmForm) -> Option<&GemmForm> {
    (rows <= 2 * form.rows && rows <= 64).then_some(form)
}

/// One form of the products of experts.
pub(super) struct ExpertForm {
    pub(super) gate_up: Kernel<ExpertsArgs>,
    pub(super) down: Kernel<ExpertsArgs>,
    /// The same with what adapters add.
    pub(super) gate_up_deltas: Kernel<ExpertDeltasArgs>,
    pub(super) down_deltas: Kernel<ExpertDeltasArgs>,
    /// Most rows of a group.
    pub(super) rows: usize,
    /// Outputs of a block: of gate and as many of up, and of down.
    pub(super) inner: usize,
    pub(super) outputs: usize,
    pub(super) shared_bytes: usize,
}

/// The products of experts, in forms for different numbers of rows that give the same bits.
pub(super) struct ExpertGemms {
    /// By rows of a group, ascending. Any of them serves any number.
    forms: Vec<ExpertForm>,
}

impl ExpertGemms {
    fn load(loader: &Loader<'_>) -> Result<Self, OpsError> {
        let form = |name: &str, rows, [inner, outputs]: [usize; 2], shared_bytes| {
            Ok(ExpertForm {
                gate_up: loader.typed(&format!("gemm_gate_up{name}"))?,
                down: loader.typed(&format!("gemm_down{name}"))?,
                gate_up_deltas: loader.typed(&format!("gemm_gate_up{name}_deltas"))?,
                down_deltas: loader.typed(&format!("gemm_down{name}_deltas"))?,
                rows,
                inner,
                outputs,
                shared_bytes,
            })
        };
        let forms = match loader.dtype {
            ComputeDtype::F32 => vec![form("", 64, [64, 64], GEMM_F32.shared)?],
            ComputeDtype::Bf16 | ComputeDtype::F16 => vec![
                form("_rows", EXPERTS_ROWS.rows, [16, EXPERTS_ROWS.outs], EXPERTS_ROWS.shared)?,
                form("_tiles64", 64, [64, 128], GEMM_TILES64.shared)?,
                form("_tiles", 128, [64, 128], GEMM_TILES.shared)?,
            ],
        };
        Ok(Self { forms })
    }

    /// The form for so many rows of all experts together: the smallest whose groups hold those of an expert that is chosen
    /// as often as the others.
    pub(super) fn form(&self, pairs: usize, experts: usize) -> &ExpertForm {
        let takes = |form: &&ExpertForm| pairs <= form.rows * experts;
        self.forms.iter().find(takes).unwrap_or(&self.forms[self.forms.len() - 1])
    }

    /// Most rows of a group, in the form that has the smallest.
    pub(super) fn least_group(&self) -> usize {
        self.forms[0].rows
    }
}

fn modules(device: &Arc<Device>, cache: Option<&mut KernelCache>) -> Result<Vec<Module>, OpsError> {
    match cache {
        Some(cache) => TEXTS.iter().map(|text| cache.module(device, text)).collect(),
        None => TEXTS.iter().map(|text| Module::new(device, text)).collect(),
    }
}

struct Loader<'a> {
    modules: &'a [Module],
    dtype: ComputeDtype,
}

impl Loader<'_> {
    fn typed<A: Plain>(&self, name: &str) -> Result<Kernel<A>, OpsError> {
        self.kernel(&format!("{name}_{}", self.dtype.as_str()))
    }

    fn kernel<A: Plain>(&self, name: &str) -> Result<Kernel<A>, OpsError> {
        let absent = || OpsError::Kernel { name: name.to_owned(), reason: "no module has it".to_owned() };
        self.modules.iter().find_map(|module| module.kernel(name)).ok_or_else(absent)?
    }
}
