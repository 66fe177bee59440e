//! From ops to launches: arguments and grids. Kernels say in their own files what grids they take.

use super::abi::{
    Address, AttentionArgs, BlendArgs, CopyRowsArgs, DenseArgs, EmbedArgs, EmbedLowRankArgs, GemmArgs, GemmShrinkArgs,
    KeptRowsArgs, LowRankArgs, MatrixView, NormArgs, PoolArgs, ReplaceColumnsArgs, RopeArgs, RotateArgs, RowsArgs,
    RowsView, SampleArgs, SiteView, SparseArgs, VectorArgs,
};
use super::activations::number_of;
use super::backend::{CudaBackend, Scratch};
use super::driver::{Grid, Kernel};
use super::library_gemm::LibraryGemms;
use super::memory::{Buffer, KvCache, Rope, Weight, stride};
use super::sizes::{
    ATTENTION_PAIRS, ATTENTION_PART, ATTENTION_WARP_SHARED, ATTENTION_WARPS, EXPAND_COLUMNS, EXPAND_SHARED,
    EXPAND_SHARED_F32, NORM_SHARED, PLANE_INPUTS, PREFILL_HEAD_DIM, PREFILL_NUMBER_SHARED, PREFILL_PAIRS,
    ROTATE_SHARED, SAMPLE_BLOCK, SAMPLE_BLOCK_SHARED, SAMPLE_SHARED, SHRINK_RANKS, SHRINK_SHARED, SHRINK_SHARED_F32,
    SPLIT_PLACES,
};
use super::step::{Set, Step};
use crate::ops::{
    Activation, AttentionSpec, ComputeDtype, DeltaMemory, HeadColumns, Norm, OpsError, OwnVocabularies, Rows, SiteTable,
};

/// Blocks of low-rank pairs for every processor: each reads the list of groups, and two fit.
const LOW_RANK_BLOCKS_EACH: usize = 2;
/// Threads of a block that walks over KV, where they are its kernel's most.
const THREADS_OF_WALK: u32 = 256;
/// Warps of every processor that walk over KV at once and leave it nothing to wait for: each has some pieces on their way.
const WALKING_WARPS: usize = 16;
/// Most bytes of what splits of attention leave for those that come behind them.
const MOST_PARTIAL: usize = 128 << 20;

/// Products of A and of B.
struct LowRankLaunches {
    arguments: LowRankArgs,
    shrink: Grid,
    expand: Grid,
}

impl CudaBackend {
    pub(super) fn launch_embed(&self, step: &Step, table: &Weight, scale: f32, y: &Buffer) {
        let arguments = EmbedArgs { step: step.head(), table: table.view(), y: y.view(), scale, pad: 0 };
        self.launch(&self.kernels.embed, self.spread(step.set(Rows::All).count * y.cols()), &arguments);
    }

    /// A kernel between the rows of a step and what is kept of their places.
    pub(super) fn launch_kept_rows(&self, kernel: &Kernel<KeptRowsArgs>, step: &Step, x: &Buffer, y: &Buffer) {
        let arguments = KeptRowsArgs { step: step.head(), x: x.view(), y: y.view() };
        self.launch(kernel, self.spread(step.set(Rows::All).count * y.cols()), &arguments);
    }

    /// What is kept of the places of a block, to those of another one.
    pub(super) fn launch_copy_kept(&self, kv: &KvCache, source: u32, target: u32) {
        let Some(kept) = &kv.kept else { return };
        let (count, view) = (kv.shape.block_size as u32, kept.view());
        let (first, start) = (source * count, target * count);
        let arguments = CopyRowsArgs { x: view, y: view, first, start, count, pad: 0 };
        self.launch(&self.kernels.copy_rows, self.spread(count as usize * kept.cols()), &arguments);
    }

    /// A kernel that changes embeddings by what adapters have for their tokens.
    pub(super) fn launch_embed_deltas(
        &self,
        kernel: &Kernel<EmbedLowRankArgs>,
        step: &Step,
        deltas: SiteTable<'_, Self>,
        scale: f32,
        y: &Buffer,
    ) {
        let set = step.set(Rows::All);
        let (step, rows, deltas) = (step.head(), set.address, self.site(deltas));
        let arguments = EmbedLowRankArgs { step, rows, deltas, y: y.view(), scale, pad: 0 };
        self.launch(kernel, self.spread(set.count * y.cols()), &arguments);
    }

    /// A kernel over rows and columns of y.
    pub(super) fn launch_rows(&self, kernel: &Kernel<RowsArgs>, set: Set, x: RowsView, y: &Buffer, activation: u32) {
        let arguments = RowsArgs { rows: set.address, x, y: y.view(), activation, pad: 0 };
        self.launch(kernel, self.spread(set.count * y.cols()), &arguments);
    }

    pub(super) fn launch_pool_rows(&self, step: &Step, group: usize, x: &Buffer, y: &Buffer) {
        let set = step.set(Rows::Pooled(group));
        let arguments = PoolArgs { rows: set.address, x: x.view(), y: y.view(), spans: step.spans(group) };
        self.launch(&self.kernels.pool_rows, self.spread(set.count * y.cols()), &arguments);
    }

    /// A warp for every label of every row, as far as there are any.
    pub(super) fn launch_head_rows(&self, set: Set, deltas: SiteTable<'_, Self>, x: &Buffer, y: &Buffer) {
        let (vector, deltas) = (Address::NULL, self.site(deltas));
        let arguments = VectorArgs { rows: set.address, x: x.view(), y: y.view(), vector, deltas, number: 0.0, pad: 0 };
        self.launch(&self.kernels.head_rows, self.spread(set.count * y.cols() * 32), &arguments);
    }

    pub(super) fn launch_gated(&self, set: Set, activation: Activation, x: &Buffer, y: &Buffer) {
        self.launch_rows(&self.kernels.gated_activation, set, x.view(), y, number_of(activation));
    }

    pub(super) fn launch_norm(&self, set: Set, norm: &Norm<'_, Self>, x: &Buffer, y: &Buffer) {
        let arguments = self.norm_arguments(set, norm, x, y, HeadColumns { first: 0, heads: 0, head_dim: 0 });
        self.launch(&self.kernels.rms_norm, self.block_a_row(set.count).shared(NORM_SHARED), &arguments);
    }

    pub(super) fn launch_head_norm(&self, set: Set, norm: &Norm<'_, Self>, columns: HeadColumns, x: &Buffer) {
        let arguments = self.norm_arguments(set, norm, x, x, columns);
        self.launch(&self.kernels.rms_norm_heads, self.spread(set.count * columns.heads * 32), &arguments);
    }

    fn norm_arguments(&self, set: Set, norm: &Norm<'_, Self>, x: &Buffer, y: &Buffer, heads: HeadColumns) -> NormArgs {
        NormArgs {
            rows: set.address,
            x: x.view(),
            y: y.view(),
            weight: norm.weight.address(),
            gains: norm.gains.map_or(SiteView::NONE, |gains| self.site(gains)),
            eps: norm.eps,
            first: heads.first as u32,
            heads: heads.heads as u32,
            head_dim: heads.head_dim as u32,
        }
    }

    /// A kernel that changes rows by a vector, a number, or the vectors of their slots.
    pub(super) fn launch_vector(&self, kernel: &Kernel<VectorArgs>, set: Set, y: &Buffer, by: By<'_>) {
        let (x, vector, deltas, number) = match by {
            By::Vector(vector) => (y.view(), vector, SiteView::NONE, 0.0),
            By::Number(number) => (y.view(), Address::NULL, SiteView::NONE, number),
            By::Deltas(deltas) => (y.view(), Address::NULL, deltas, 0.0),
            By::DeltasOf(x, deltas) => (x.view(), Address::NULL, deltas, 0.0),
        };
        let arguments = VectorArgs { rows: set.address, x, y: y.view(), vector, deltas, number, pad: 0 };
        self.launch(kernel, self.spread(set.count * y.cols()), &arguments);
    }

    /// x to y, then one rotation of every slot after the other in y itself: as many launches as any adapter has rotations at
    /// a site.
    pub(super) fn launch_rotations(
        &self,
        set: Set,
        scales: Option<SiteTable<'_, Self>>,
        rotations: SiteTable<'_, Self>,
        x: &Buffer,
        y: &Buffer,
    ) {
        let mut from = x.view();
        if let Some(scales) = scales {
            self.launch_vector(&self.kernels.scale_input, set, y, By::DeltasOf(x, self.site(scales)));
            from = y.view();
        }
        for turn in 0..rotations.table.rotations.max(1) {
            let (turn, deltas) = (turn as u32, self.site(rotations));
            let arguments = RotateArgs { rows: set.address, x: from, y: y.view(), deltas, turn, pad: 0 };
            let grid = self.spread(set.count * y.cols()).shared(ROTATE_SHARED);
            self.launch(&self.kernels.rotate_input, grid, &arguments);
            from = y.view();
        }
    }

    // --- matrices -----------------------------------------------------------------------------------------------

    /// x with the form that GEMMs read: its own, or one made now. `None` where there is no memory for it.
    pub(super) fn input_of(&self, set: Set, x: &Buffer, scratch: &mut Scratch) -> Option<RowsView> {
        let view = x.view();
        if x.input.is_some() || self.numerics.compute == ComputeDtype::F32 {
            return Some(view);
        }
        let input_stride = stride(x.cols());
        let bytes = set.count * input_stride * self.numerics.compute.size();
        let input = self.grown(&mut scratch.input, "rounded inputs", bytes)?;
        let view = RowsView { input: Address::new(input), input_stride: input_stride as u32, ..view };
        let arguments = RowsArgs { rows: set.address, x: view, y: view, activation: 0, pad: 0 };
        self.launch(&self.kernels.round_rows, self.spread(set.count * input_stride), &arguments);
        Some(view)
    }

    pub(super) fn launch_gemm(&self, step: &Step, rows: Rows, x: &Buffer, w: &Weight, y: &Buffer) {
        let set = step.set(rows);
        let Some(x) = self.input_of(set, x, &mut self.scratch()) else { return };
        self.launch_product(step, set, x, w, y);
    }

    /// x has the form that GEMMs read.
    fn launch_product(&self, step: &Step, set: Set, x: RowsView, w: &Weight, y: &Buffer) {
        let w = w.view();
        if let Some(library) = self.library_for(step, set) {
            let launched = library.launch(self.numerics.compute, set.count, &x, &w, &y.view());
            match self.device.note(launched) {
                Some(false) => {}
                Some(true) | None => return,
            }
        }
        self.launch_own_product(set, x, w, y, 0);
    }

    /// By our own kernels, to the columns of y from `column` on.
    fn launch_own_product(&self, set: Set, x: RowsView, w: MatrixView, y: &Buffer, column: usize) {
        let arguments = GemmArgs { rows: set.address, x, w, y: y.view(), column: column as u32, pad: 0 };
        let outputs = w.rows as usize;
        let form = self.kernels.gemm.form(set.count, outputs, &self.device);
        let (rows, outputs) = (set.count.div_ceil(form.rows), outputs.div_ceil(form.outputs));
        let grid = if form.is_tile { Grid::plane(rows, outputs) } else { Grid::plane(outputs, rows) };
        self.launch(&form.kernel, grid.shared(form.shared_bytes), &arguments);
    }

    /// The library, where it computes products of this step. Steps in which every sequence has one row are not its own: they
    /// may be recorded, and made for more rows than there are.
    fn library_for(&self, step: &Step, set: Set) -> Option<&LibraryGemms> {
        let library = self.library_gemms.as_ref()?;
        (step.rows_of_item() > 1 && set.count >= library.from_rows).then_some(library)
    }

    /// The GEMM of one segment, which is never the library's.
    pub(super) fn launch_gemm_segment(&self, set: Set, x: &Buffer, w: &Weight, segment: usize, y: &Buffer) {
        let Some(x) = self.input_of(set, x, &mut self.scratch()) else { return };
        let columns = w.segment(segment);
        self.launch_own_product(set, x, w.rows_view(columns.clone()), y, columns.start);
    }

    /// How much there is to do is the adapters' own, so that a recorded launch serves any: blocks share what they find.
    pub(super) fn launch_replace_columns(&self, set: Set, deltas: SiteTable<'_, Self>, x: &Buffer, y: &Buffer) {
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let blocks = self.device.processors() as usize * LOW_RANK_BLOCKS_EACH;
        let grid = Grid::of(blocks).shared(self.kernels.gemm.smallest().shared_bytes);
        let arguments = ReplaceColumnsArgs { rows: set.address, deltas: self.site(deltas), x, y: y.view() };
        self.launch(&self.kernels.replace_columns, grid, &arguments);
    }

    pub(super) fn launch_dense(&self, set: Set, deltas: SiteTable<'_, Self>, x: &Buffer, y: &Buffer) {
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let form = self.kernels.gemm.smallest();
        let grid = Grid::plane(y.cols().div_ceil(form.outputs), set.groups).shared(form.shared_bytes);
        let arguments = DenseArgs { rows: set.address, deltas: self.site(deltas), x, y: y.view() };
        self.launch(&self.kernels.dense, grid, &arguments);
    }

    pub(super) fn launch_low_rank(&self, set: Set, deltas: SiteTable<'_, Self>, x: &Buffer, y: &Buffer) {
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let Some(low_rank) = self.low_rank_launches(set, deltas, x, y, &mut scratch) else { return };
        self.launch(&self.kernels.shrink, low_rank.shrink, &low_rank.arguments);
        self.launch(&self.kernels.expand, low_rank.expand, &low_rank.arguments);
    }

    /// A warp for every output of every group, as far as they run at once.
    pub(super) fn launch_sparse(&self, set: Set, deltas: SiteTable<'_, Self>, x: &Buffer, y: &Buffer) {
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let arguments = SparseArgs { rows: set.address, deltas: self.site(deltas), x, y: y.view() };
        self.launch(&self.kernels.sparse, self.spread(set.groups * y.cols() * 32), &arguments);
    }

    pub(super) fn launch_blend(&self, set: Set, deltas: SiteTable<'_, Self>, [x, h, v]: [&Buffer; 3]) {
        let deltas = self.site(deltas);
        let arguments = BlendArgs { rows: set.address, deltas, x: x.view(), h: h.view(), v: v.view() };
        self.launch(&self.kernels.blend_rows, self.spread(set.count * v.cols()), &arguments);
    }

    pub(super) fn launch_layer_norm(&self, set: Set, deltas: SiteTable<'_, Self>, eps: f32, y: &Buffer) {
        let (vector, deltas, view) = (Address::NULL, self.site(deltas), y.view());
        let arguments = VectorArgs { rows: set.address, x: view, y: view, vector, deltas, number: eps, pad: 0 };
        self.launch(&self.kernels.layer_norm_rows, self.block_a_row(set.count).shared(NORM_SHARED), &arguments);
    }

    /// As a low-rank pair, with what is between its matrices.
    pub(super) fn launch_bottleneck(&self, set: Set, deltas: SiteTable<'_, Self>, v: &Buffer, h: &Buffer) {
        let mut scratch = self.scratch();
        let Some(v) = self.input_of(set, v, &mut scratch) else { return };
        let Some(low_rank) = self.low_rank_launches(set, deltas, v, h, &mut scratch) else { return };
        self.launch(&self.kernels.shrink, low_rank.shrink, &low_rank.arguments);
        self.launch(&self.kernels.bend_shrunk, self.block_a_row(set.count), &low_rank.arguments);
        self.launch(&self.kernels.expand, low_rank.expand, &LowRankArgs { planes: 1, ..low_rank.arguments });
    }

    /// Both of the same x. Where one block takes all rows, A is read by blocks of the same launch: next to the weights it is
    /// little, and what it takes to begin and to end a launch is hidden.
    pub(super) fn launch_gemm_low_rank(
        &self,
        step: &Step,
        rows: Rows,
        deltas: SiteTable<'_, Self>,
        x: &Buffer,
        w: &Weight,
        y: &Buffer,
    ) {
        let set = step.set(rows);
        let mut scratch = self.scratch();
        let Some(x) = self.input_of(set, x, &mut scratch) else { return };
        let Some(low_rank) = self.low_rank_launches(set, deltas, x, y, &mut scratch) else { return };
        let form = self.kernels.gemm.form(set.count, w.view().rows as usize, &self.device);
        match form.with_shrink.as_ref().filter(|_| set.count <= form.rows && self.library_for(step, set).is_none()) {
            Some(kernel) => {
                let outputs = w.view().rows.div_ceil(form.outputs as u32);
                let gemm = GemmArgs { rows: set.address, x, w: w.view(), y: y.view(), column: 0, pad: 0 };
                // More of them would be more that find nothing to do: groups are fewer than a recorded step has room for.
                let shrinks = low_rank.shrink.blocks[0].min(self.device.processors());
                let arguments = GemmShrinkArgs { gemm, low_rank: low_rank.arguments, shrinks, pad: 0 };
                let grid = Grid::of((outputs + shrinks) as usize).shared(form.shared_bytes.max(SHRINK_SHARED));
                self.launch(kernel, grid, &arguments);
            }
            None => {
                self.launch_product(step, set, x, w, y);
                self.launch(&self.kernels.shrink, low_rank.shrink, &low_rank.arguments);
            }
        }
        self.launch(&self.kernels.expand, low_rank.expand, &low_rank.arguments);
    }

    /// x has the form that GEMMs read. `None` where there is no memory for the products of A.
    fn low_rank_launches(
        &self,
        set: Set,
        deltas: SiteTable<'_, Self>,
        x: RowsView,
        y: &Buffer,
        scratch: &mut Scratch,
    ) -> Option<LowRankLaunches> {
        let (ranks, planes) = (deltas.table.ranks.max(1).next_multiple_of(8), (x.cols as usize).div_ceil(PLANE_INPUTS));
        let bytes = planes * set.count * ranks * size_of::<f32>();
        let v = self.grown(&mut scratch.shrunk, "products of A", bytes)?;
        let [shrink_shared, expand_shared] = match self.numerics.compute {
            ComputeDtype::F32 => [SHRINK_SHARED_F32, EXPAND_SHARED_F32],
            ComputeDtype::Bf16 | ComputeDtype::F16 => [SHRINK_SHARED, EXPAND_SHARED],
        };
        let arguments = LowRankArgs {
            rows: set.address,
            deltas: self.site(deltas),
            x,
            v: Address::new(v),
            v_stride: ranks as u32,
            v_rows: set.count as u32,
            y: y.view(),
            shared: expand_shared as u32,
            planes: planes as u32,
        };
        let most = self.device.processors() as usize * LOW_RANK_BLOCKS_EACH;
        let shrinks = set.groups * ranks.div_ceil(SHRINK_RANKS) * planes;
        let expands = set.groups * y.cols().div_ceil(EXPAND_COLUMNS);
        Some(LowRankLaunches {
            arguments,
            shrink: Grid::of(shrinks.min(most)).shared(shrink_shared),
            expand: Grid::of(expands.min(most)).shared(expand_shared),
        })
    }

    // --- attention ----------------------------------------------------------------------------------------------

    pub(super) fn launch_rope(
        &self,
        step: &Step,
        spec: &AttentionSpec,
        rope: &Rope,
        qkv: &Buffer,
        (kv, layer): (&KvCache, usize),
    ) {
        let (cos, sin) = rope.tables();
        let arguments = RopeArgs {
            step: step.head(),
            qkv: qkv.view(),
            kv: kv.layer(layer),
            cos,
            sin,
            heads: spec.heads as u32,
            half: rope.half as u32,
        };
        let warps = step.set(Rows::All).count * (spec.heads + 2 * spec.kv_heads);
        self.launch(&self.kernels.rope_and_cache, self.spread(warps * 32), &arguments);
    }

    pub(super) fn launch_attention(
        &self,
        step: &Step,
        spec: &AttentionSpec,
        qkv: &Buffer,
        (kv, layer): (&KvCache, usize),
        y: &Buffer,
    ) {
        let set = step.set(Rows::All);
        let many = self.attention_for_many(step, spec);
        let grid = self.walk_grid(step, spec, many.is_some());
        let of_split = set.count * spec.heads * (2 + spec.head_dim) * size_of::<f32>();
        let splits = self.splits(&grid, of_split, step.last_position());
        let mut scratch = self.scratch();
        let partial = match splits {
            1 => Some(0),
            _ => self.grown(&mut scratch.partial, "parts of attention", splits * of_split),
        };
        let Some(partial) = partial else { return };
        let arguments = AttentionArgs {
            step: step.head(),
            qkv: qkv.view(),
            kv: kv.layer(layer),
            y: y.view(),
            heads: spec.heads as u32,
            window: spec.window.unwrap_or(0),
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            partial: Address::new(partial),
            splits: splits as u32,
            pad: 0,
        };
        let kernel = many.unwrap_or(&self.kernels.attention);
        self.launch(kernel, grid.deep(splits), &arguments);
        if splits > 1 {
            self.launch(&self.kernels.combine_attention, self.spread(set.count * spec.heads * 32), &arguments);
        }
    }

    /// The kernel for many rows of a sequence, where this step has such.
    fn attention_for_many(&self, step: &Step, spec: &AttentionSpec) -> Option<&Kernel<AttentionArgs>> {
        let pairs = step.rows_of_item() * spec.heads / spec.kv_heads;
        let many = pairs >= PREFILL_PAIRS / 2 && spec.head_dim <= PREFILL_HEAD_DIM;
        self.kernels.attention_prefill.as_ref().filter(|_| many)
    }

    /// Blocks for one split of all walks.
    fn walk_grid(&self, step: &Step, spec: &AttentionSpec, many: bool) -> Grid {
        let (items, rows) = (step.items(), step.rows_of_item());
        if many {
            let pairs = rows * spec.heads / spec.kv_heads;
            let shared = PREFILL_NUMBER_SHARED * spec.head_dim;
            return Grid::plane(items * spec.kv_heads, pairs.div_ceil(PREFILL_PAIRS)).shared(shared);
        }
        if self.numerics.compute == ComputeDtype::F32 {
            return Grid::plane(items * spec.heads, rows.div_ceil(ATTENTION_WARPS));
        }
        let parts = spec.head_dim.div_ceil(ATTENTION_PART);
        let tiles = (rows * spec.heads / spec.kv_heads).div_ceil(ATTENTION_PAIRS);
        let at_once = tiles.clamp(1, ATTENTION_WARPS / parts);
        let warps = parts * at_once;
        let shared = if parts > 1 { warps * ATTENTION_WARP_SHARED } else { 0 };
        Grid::plane(items * spec.kv_heads, tiles.div_ceil(at_once)).threads(32 * warps).shared(shared)
    }

    /// In how many parts each row's KV is walked side by side. Parts are folded one by one in their order, all that come before
    /// the last of them by one walk: with fewer splits than parts that one is as long as the rest together. So there are as
    /// many as there are parts, as far as there is room for what `of_split` bytes are of, or none where walks keep every
    /// processor busy as it is.
    fn splits(&self, grid: &Grid, of_split: usize, last_position: usize) -> usize {
        let threads = grid.threads.unwrap_or(THREADS_OF_WALK) as usize;
        let warps = grid.blocks.iter().product::<u32>() as usize * threads / 32;
        if warps >= WALKING_WARPS * self.device.processors() as usize {
            return 1;
        }
        (last_position + 1).div_ceil(SPLIT_PLACES).min(MOST_PARTIAL / of_split.max(1)).max(1)
    }

    // --- sampling -----------------------------------------------------------------------------------------------

    pub(super) fn launch_sample(
        &self,
        step: &mut Step,
        group: usize,
        logits: &Buffer,
        own: Option<OwnVocabularies<'_, Buffer, <Self as DeltaMemory>::DeltaTable>>,
    ) -> Result<(), OpsError> {
        let set = step.set(Rows::Sampled(group));
        let first = (0..group).map(|before| step.set(Rows::Sampled(before)).count).sum();
        let (sampled, alternatives) = step.results.at(&self.device, &step.outputs, first)?;
        let mut scratch = self.scratch();
        let (kernel, added, slots) = match own {
            Some(OwnVocabularies { added, table, .. }) => {
                (&self.kernels.sample_own, added.view(), table.slots_on_device())
            }
            None => (&self.kernels.sample, RowsView::NONE, Address::NULL),
        };
        let widest = logits.cols() + added.cols as usize;
        let bytes = set.count * 2 * widest * size_of::<f32>();
        let Some(memory) = self.grown(&mut scratch.sampling, "scores", bytes) else { return Ok(()) };
        let arguments = SampleArgs {
            rows: set.address,
            logits: logits.view(),
            added,
            slots,
            lists: step.lists(),
            scratch: Address::new(memory),
            sampled,
            alternatives,
            most: step.outputs.most as u32,
            vocab: logits.cols() as u32,
            widest: widest as u32,
            first: first as u32,
        };
        let shared = SAMPLE_SHARED + SAMPLE_BLOCK_SHARED * widest.div_ceil(SAMPLE_BLOCK);
        self.launch(kernel, Grid::of(set.count).shared(shared), &arguments);
        Ok(())
    }
}

/// What changes rows.
pub(super) enum By<'a> {
    Vector(Address<f32>),
    Number(f32),
    Deltas(SiteView),
    /// Rows of another buffer, on their way.
    DeltasOf(&'a Buffer, SiteView),
}
