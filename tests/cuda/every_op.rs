//! Every op of a backend, once, on the rows of a step.

use std::sync::Arc;

use polydelta::ops::{
    Activation, AttentionSpec, Backend, ColumnRotation, ColumnVector, DenseMatrix, HeadColumns, HostMatrix, KvShape,
    LowRankPair, Norm, ReplacedRows, RopeTable, RowPlan, Rows, SampledRows, SequencePlan, SiteId, SiteTable, SlotDelta,
    SlotEntries, SparseColumns, StepPlan,
};
use polydelta::types::AdapterSlot;

use crate::scene::{Turn, kept_and_recalled, numbers, plan_of, rows_of, sparse, step_of};

/// Rows of the embedding table.
const VOCAB: usize = 31;
/// Ids beyond it, some of which adapters have rows for.
const ADDED: usize = 6;
/// Outputs of a GEMM's segments, together no multiple of any tile.
const SEGMENTS: [usize; 2] = [40, 32];
const OUTPUTS: usize = SEGMENTS[0] + SEGMENTS[1];
const BLOCK_SIZE: usize = 16;
/// Most tokens before the rows of a sequence.
const MOST_BEFORE: usize = 40;

const PAIRS: SiteId = SiteId(0);
const EMBEDDING: SiteId = SiteId(1);
const COLUMNS: SiteId = SiteId(2);
const INPUTS: SiteId = SiteId(3);
const OUTPUT_ROTATIONS: SiteId = SiteId(4);
const SPARSE: SiteId = SiteId(5);
const REPLACED: SiteId = SiteId(6);
const FULL: SiteId = SiteId(7);
/// Where no op is asked for anything.
const ELSEWHERE: SiteId = SiteId(8);

/// What ops are to be done on.
pub(crate) struct Op<'a> {
    pub(crate) rank: usize,
    /// Of the hidden state.
    pub(crate) width: usize,
    /// Of every row.
    pub(crate) slots: &'a [Option<AdapterSlot>],
    /// Slots with entries.
    pub(crate) installed: &'a [AdapterSlot],
    /// Slots with entries where no op looks.
    pub(crate) elsewhere: &'a [AdapterSlot],
}

/// Numbers whose products with `inputs` others are about as large as those.
fn fitted(seed: u64, len: usize, inputs: usize) -> Vec<f32> {
    let factor = (inputs as f32).sqrt().recip();
    numbers(seed, len).iter().map(|number| number * factor).collect()
}

impl Op<'_> {
    fn rows(&self) -> usize {
        self.slots.len()
    }

    fn x(&self, seed: u64) -> Vec<f32> {
        numbers(seed, self.rows() * self.width)
    }

    fn pair<B: Backend>(
        &self,
        backend: &B,
        seed: u64,
        inputs: usize,
        columns: std::ops::Range<usize>,
    ) -> LowRankPair<B> {
        let (rank, len) = (self.rank, columns.len());
        let (a, b) = (fitted(seed, rank * inputs, inputs), fitted(seed + 1, len * rank, rank));
        let matrices = [HostMatrix::f32(rank, inputs, &a), HostMatrix::f32(len, rank, &b)];
        let [a, b] = <[B::Weight; 2]>::try_from(backend.weight_group(&matrices).unwrap()).ok().unwrap();
        LowRankPair { a, b, rank, scaling: 0.5, columns }
    }

    fn column_rotation<B: Backend>(
        &self,
        backend: &B,
        seed: u64,
        columns: std::ops::Range<usize>,
        group: usize,
    ) -> ColumnRotation<B> {
        ColumnRotation { c: backend.vector(&numbers(seed, 2 * columns.len())).unwrap(), group, columns }
    }

    /// With about as many numbers in a row as there are ranks.
    fn sparse_matrix<B: Backend>(&self, backend: &B, seed: u64, columns: std::ops::Range<usize>) -> SparseColumns<B> {
        let mut matrix = sparse(seed, [columns.len(), self.width], self.rank);
        let factor = (self.rank as f32).sqrt().recip();
        matrix.entries.iter_mut().for_each(|entry| entry.value *= factor);
        SparseColumns { matrix: backend.sparse_matrix(&matrix).unwrap(), columns }
    }

    fn full<B: Backend>(
        &self,
        backend: &B,
        seed: u64,
        columns: std::ops::Range<usize>,
        replaces: bool,
    ) -> DenseMatrix<B> {
        let numbers = fitted(seed, columns.len() * self.width, self.width);
        let weight = backend.weight(&[HostMatrix::f32(columns.len(), self.width, &numbers)]).unwrap();
        DenseMatrix { weight, scaling: 0.5, columns, replaces }
    }

    fn entries<B: Backend>(&self, backend: &B, slot: AdapterSlot) -> SlotEntries<B> {
        let seed = 100 * (u64::from(slot.0) + 1);
        let (rank, width) = (self.rank, self.width);
        // A of an embedding lies transposed.
        let (a, b) = (numbers(seed, VOCAB * rank), fitted(seed + 1, width * rank, rank));
        let (a, b) = (HostMatrix::f32(VOCAB, rank, &a), HostMatrix::f32(width, rank, &b));
        let (a, b) = (backend.weight(&[a]).unwrap(), backend.weight(&[b]).unwrap());
        let embedding = LowRankPair { a, b, rank, scaling: 0.5, columns: 0..width };
        let vector = |seed, columns: std::ops::Range<usize>| ColumnVector {
            values: backend.vector(&numbers(seed, columns.len())).unwrap(),
            columns,
        };
        // Of the embedding, and the first columns of products.
        let ids: Vec<u32> = (0..(VOCAB + ADDED) as u32).filter(|id| id % 3 != 1).collect();
        let rows = backend.weight(&[HostMatrix::f32(ids.len(), width, &fitted(seed + 8, ids.len() * width, width))]);
        let replaced = Arc::new(ReplacedRows { ids, rows: rows.unwrap() });
        SlotEntries {
            low_rank: vec![
                (PAIRS, self.pair(backend, seed + 2, width, 0..OUTPUTS)),
                (PAIRS, self.pair(backend, seed + 4, width, SEGMENTS[0]..OUTPUTS)),
                (EMBEDDING, embedding),
            ],
            vectors: vec![(COLUMNS, vector(seed + 6, width / 3..width)), (INPUTS, vector(seed + 7, 0..width))],
            column_rotations: vec![
                (OUTPUT_ROTATIONS, self.column_rotation(backend, seed + 8, 0..SEGMENTS[0], 20)),
                (OUTPUT_ROTATIONS, self.column_rotation(backend, seed + 9, SEGMENTS[0]..OUTPUTS, 8)),
            ],
            sparse: vec![
                (SPARSE, self.sparse_matrix(backend, seed + 10, 0..OUTPUTS)),
                (SPARSE, self.sparse_matrix(backend, seed + 12, 9..SEGMENTS[0])),
            ],
            replaced: vec![(REPLACED, replaced)],
            rotations: self.turns(slot).iter().map(|turn| (INPUTS, turn.install(backend, width))).collect(),
            bottlenecks: Vec::new(),
            expert_pairs: Vec::new(),
            vocab_size: None,
            dense: vec![
                (FULL, self.full(backend, seed + 14, 0..SEGMENTS[0], true)),
                (FULL, self.full(backend, seed + 15, SEGMENTS[0]..OUTPUTS, false)),
            ],
        }
    }

    /// Every other slot has two rotations, where inputs are few one of blocks that reach all of them.
    fn turns(&self, slot: AdapterSlot) -> Vec<Turn> {
        let (width, slot) = (self.width, slot.0);
        let turn =
            |size, interleaved, is_shared| Turn { slot, size, interleaved, is_shared, seed: u64::from(slot) + 9 };
        let first = turn(8, 1, slot.is_multiple_of(3));
        let second = turn(if width > 128 { 64 } else { width / 2 }, 2, true);
        if slot.is_multiple_of(2) { vec![first] } else { vec![first, second] }
    }

    fn table<B: Backend>(&self, backend: &B) -> B::DeltaTable {
        let mut table = backend.delta_table(self.rows().max(16)).unwrap();
        for slot in self.installed {
            let delta = SlotDelta::new(backend, self.entries(backend, *slot)).unwrap();
            backend.set_slot(&mut table, *slot, delta);
        }
        for slot in self.elsewhere {
            let values = backend.vector(&numbers(8, self.width)).unwrap();
            let vectors = vec![(ELSEWHERE, ColumnVector { values, columns: 0..self.width })];
            let entries = SlotEntries { vectors, ..SlotEntries::default() };
            backend.set_slot(&mut table, *slot, SlotDelta::new(backend, entries).unwrap());
        }
        table
    }
}

/// Rows that are no number, nor is what GEMMs read of them.
fn spoilt<B: Backend>(backend: &B, step: &B::Step, rows: usize, width: usize) -> B::Buffer {
    let table = backend.delta_table(256).unwrap();
    let mut y = backend.input_buffer(rows, width).unwrap();
    let x = not_numbers(backend, rows, width);
    backend.scale_input(step, Rows::All, SiteTable { table: &table, site: INPUTS }, &x, &mut y);
    y
}

fn not_numbers<B: Backend>(backend: &B, rows: usize, width: usize) -> B::Buffer {
    backend.buffer_of(width, &vec![f32::NAN; rows * width]).unwrap()
}

/// Leaves NaN in what a backend keeps between its kernels.
pub(crate) fn spoil<B: Backend>(backend: &B, width: usize, slots: &[Option<AdapterSlot>]) {
    let installed: Vec<AdapterSlot> = slots.iter().flatten().take(1).copied().collect();
    let op = Op { rank: 128, width, slots, installed: &installed, elsewhere: &[] };
    let (step, table) = (step_of(backend, slots.to_vec()), op.table(backend));
    let x = not_numbers(backend, op.rows(), width);
    let mut y = not_numbers(backend, op.rows(), OUTPUTS);
    backend.low_rank(&step, Rows::All, SiteTable { table: &table, site: PAIRS }, &x, &mut y);
    Attention::of(&op).attend(backend, f32::NAN);
}

/// What every op makes of the rows, by its name.
pub(crate) fn every_op<B: Backend>(backend: &B, op: &Op<'_>) -> Vec<(&'static str, Vec<f32>)> {
    let table = op.table(backend);
    let step = step_of(backend, op.slots.to_vec());
    let on = On { backend, op, table, step };
    let mut found = vec![
        ("embed", on.embed()),
        ("rms_norm_heads", on.head_norm()),
        ("gemm", on.gemm()),
        ("low_rank", on.low_rank()),
        ("gemm_segment", on.segment()),
        ("replace_columns", on.replaced()),
        ("gemm_scaled_segment", on.segment()),
        ("dense", on.dense()),
        ("vectors", on.vectors()),
        ("rotate_outputs", on.column_rotations()),
        ("sparse", on.sparse()),
        ("moves", on.moves()),
        ("attention", Attention::of(op).attend(backend, 1.0)),
    ];
    found.extend(on.norm());
    found.extend(on.gated());
    found.extend(on.turned());
    found
}

struct On<'a, B: Backend> {
    backend: &'a B,
    op: &'a Op<'a>,
    table: B::DeltaTable,
    step: B::Step,
}

impl<B: Backend> On<'_, B> {
    fn at(&self, site: SiteId) -> SiteTable<'_, B> {
        SiteTable { table: &self.table, site }
    }

    fn rows_of(&self, y: &B::Buffer) -> Vec<f32> {
        rows_of(self.backend, y, self.op.rows())
    }

    /// Numbers that were given, as a buffer that GEMMs read without a form of its own.
    fn buffer(&self, seed: u64) -> B::Buffer {
        self.backend.buffer_of(self.op.width, &self.op.x(seed)).unwrap()
    }

    fn spoilt(&self, width: usize) -> B::Buffer {
        spoilt(self.backend, &self.step, self.op.rows(), width)
    }

    /// What a GEMM reads of some columns: their products with one.
    fn read(&self, y: &B::Buffer) -> Vec<f32> {
        const COLUMNS: usize = 16;
        let width = self.op.width;
        let column = |out: usize| if out < COLUMNS / 2 { out } else { width - COLUMNS + out };
        let one = |at: usize| f32::from(u8::from(at % width == column(at / width)));
        let picks: Vec<f32> = (0..COLUMNS * width).map(one).collect();
        let picks = self.backend.weight(&[HostMatrix::f32(COLUMNS, width, &picks)]).unwrap();
        let mut read = not_numbers(self.backend, self.op.rows(), COLUMNS);
        self.backend.gemm(&self.step, Rows::All, y, &picks, &mut read);
        self.rows_of(&read)
    }

    fn embed(&self) -> Vec<f32> {
        let Self { backend, op, .. } = self;
        let table = backend.weight(&[HostMatrix::f32(VOCAB, op.width, &numbers(7, VOCAB * op.width))]).unwrap();
        let mut plan = plan_of(op.slots.to_vec());
        plan.ids = (0..op.rows()).map(|row| (row % 4 != 2).then_some((row * 5 % (VOCAB + ADDED)) as u32)).collect();
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        let mut y = self.spoilt(op.width);
        backend.embed(&step, &table, 1.5, &mut y);
        backend.replace_embeddings(&step, self.at(REPLACED), 1.5, &mut y);
        backend.embedding_low_rank(&step, self.at(EMBEDDING), 1.5, &mut y);
        self.rows_of(&y)
    }

    fn norm(&self) -> [(&'static str, Vec<f32>); 2] {
        let (weight, mut y) = (self.backend.vector(&numbers(5, self.op.width)).unwrap(), self.spoilt(self.op.width));
        let norm = Norm { weight: &weight, gains: Some(self.at(INPUTS)), eps: 1e-5 };
        self.backend.rms_norm(&self.step, Rows::All, norm, &self.buffer(1), &mut y);
        [("rms_norm", self.rows_of(&y)), ("rms_norm, read", self.read(&y))]
    }

    fn head_norm(&self) -> Vec<f32> {
        let columns = HeadColumns { first: 8, heads: (self.op.width - 8) / 8, head_dim: 8 };
        let (weight, mut x) = (self.backend.vector(&numbers(5, 8)).unwrap(), self.buffer(1));
        let norm = Norm { weight: &weight, gains: None, eps: 1e-5 };
        self.backend.rms_norm_heads(&self.step, Rows::All, norm, columns, &mut x);
        self.rows_of(&x)
    }

    fn weight(&self) -> B::Weight {
        let weights = SEGMENTS.map(|out| fitted(out as u64, out * self.op.width, self.op.width));
        let segments = [0, 1].map(|part| HostMatrix::f32(SEGMENTS[part], self.op.width, &weights[part]));
        self.backend.weight(&segments).unwrap()
    }

    fn gemm(&self) -> Vec<f32> {
        let mut y = not_numbers(self.backend, self.op.rows(), OUTPUTS);
        self.backend.gemm(&self.step, Rows::All, &self.buffer(1), &self.weight(), &mut y);
        self.rows_of(&y)
    }

    fn low_rank(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.low_rank(&self.step, Rows::All, self.at(PAIRS), &self.buffer(1), &mut y);
        self.rows_of(&y)
    }

    fn replaced(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.replace_columns(&self.step, Rows::All, self.at(REPLACED), &self.buffer(1), &mut y);
        self.rows_of(&y)
    }

    fn segment(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.gemm_segment(&self.step, Rows::All, &self.buffer(1), &self.weight(), 1, &mut y);
        self.rows_of(&y)
    }

    fn turned(&self) -> [(&'static str, Vec<f32>); 2] {
        let (x, mut y, at) = (self.buffer(1), self.spoilt(self.op.width), self.at(INPUTS));
        self.backend.rotate_input(&self.step, Rows::All, None, at, &x, &mut y);
        [("rotate_input", self.rows_of(&y)), ("rotate_input, read", self.read(&y))]
    }

    fn dense(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.dense(&self.step, Rows::All, self.at(FULL), &self.buffer(1), &mut y);
        self.rows_of(&y)
    }

    fn vectors(&self) -> Vec<f32> {
        let Self { backend, step, .. } = self;
        let (mut x, mut y) = (self.buffer(1), self.spoilt(self.op.width));
        backend.scale_rows(step, Rows::All, self.at(COLUMNS), &mut x);
        backend.bias_rows(step, Rows::All, self.at(COLUMNS), &mut x);
        backend.add_bias(step, Rows::All, &backend.vector(&numbers(5, self.op.width)).unwrap(), &mut x);
        backend.softcap(step, Rows::All, 0.7, &mut x);
        backend.scale_input(step, Rows::All, self.at(INPUTS), &x, &mut y);
        [self.rows_of(&x), self.rows_of(&y)].concat()
    }

    fn column_rotations(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.rotate_outputs(&self.step, Rows::All, self.at(OUTPUT_ROTATIONS), &mut y);
        self.rows_of(&y)
    }

    fn sparse(&self) -> Vec<f32> {
        let mut y = self.backend.buffer_of(OUTPUTS, &numbers(2, self.op.rows() * OUTPUTS)).unwrap();
        self.backend.sparse(&self.step, Rows::All, self.at(SPARSE), &self.buffer(1), &mut y);
        self.rows_of(&y)
    }

    fn moves(&self) -> Vec<f32> {
        let Self { backend, op, .. } = self;
        let last: Vec<u32> = (0..op.rows() as u32).step_by(3).collect();
        let sampled = SampledRows::groups(&RowPlan::new(op.slots.to_vec()), &last);
        let mut step = backend.step();
        backend.upload(&StepPlan { sampled, ..plan_of(op.slots.to_vec()) }, &mut step).unwrap();
        let (mut x, y) = (self.buffer(1), self.buffer(2));
        backend.add(&step, Rows::All, &mut x, &y);
        backend.copy_rows(&y, op.rows() / 2, 0..op.rows().div_ceil(2), &mut x);
        let of_first = last.len().min(SampledRows::MOST);
        let mut gathered = not_numbers(*backend, of_first, op.width);
        backend.gather_rows(&step, Rows::Sampled(0), &x, &mut gathered);
        let kept = kept_and_recalled(*backend, op.rows(), op.width);
        [self.rows_of(&x), rows_of(*backend, &gathered, of_first), kept].concat()
    }

    fn gated(&self) -> [(&'static str, Vec<f32>); 2] {
        let x: Vec<f32> = numbers(1, 2 * self.op.rows() * self.op.width).iter().map(|x| 4.0 * x).collect();
        let (x, mut y) = (self.backend.buffer_of(2 * self.op.width, &x).unwrap(), self.spoilt(self.op.width));
        self.backend.gated_activation(&self.step, Rows::All, Activation::Silu, &x, &mut y);
        [("gated_activation", self.rows_of(&y)), ("gated_activation, read", self.read(&y))]
    }
}

/// The rows as tokens of sequences, one for every adapter.
struct Attention {
    spec: AttentionSpec,
    /// Tokens before the step, and in it.
    sequences: Vec<(usize, usize)>,
}

impl Attention {
    fn of(op: &Op<'_>) -> Self {
        let (heads, kv_heads, head_dim) = match op.width {
            64 => (4, 2, 16),
            2048 => (16, 4, 128),
            width => (width / 8, 1, 8),
        };
        let scale = (head_dim as f32).sqrt().recip();
        let mut slots = op.slots.to_vec();
        slots.sort_unstable();
        let lengths = slots.chunk_by(|one, next| one == next).map(<[_]>::len);
        let sequences = lengths.enumerate().map(|(at, len)| (at * 7 % MOST_BEFORE, len)).collect();
        Self { spec: AttentionSpec { heads, kv_heads, head_dim, scale, softcap: None, window: None }, sequences }
    }

    fn blocks_of(&self, at: usize) -> Vec<u32> {
        let (before, len) = self.sequences[at];
        let most = self.sequences.iter().map(|(_, len)| (MOST_BEFORE + len).div_ceil(BLOCK_SIZE)).max().unwrap();
        (0..(before + len).div_ceil(BLOCK_SIZE)).map(|block| (at * most + block) as u32).rev().collect()
    }

    fn plan(&self) -> StepPlan {
        let mut plan = plan_of(vec![None; self.sequences.iter().map(|(_, len)| len).sum()]);
        let mut row = 0;
        for (at, (before, len)) in self.sequences.iter().enumerate() {
            let blocks = self.blocks_of(at);
            for token in 0..*len {
                let place = before + token;
                plan.positions[row + token] = place as u32;
                plan.kv_slots[row + token] =
                    blocks[place / BLOCK_SIZE] * BLOCK_SIZE as u32 + (place % BLOCK_SIZE) as u32;
            }
            plan.sequences.push(SequencePlan { rows: row..row + len, start: *before as u32, blocks: blocks.into() });
            row += len;
        }
        plan
    }

    /// All of it over a cache whose other places are no numbers, q, k and v times a factor.
    fn attend<B: Backend>(&self, backend: &B, factor: f32) -> Vec<f32> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let (kv_dim, columns) = (kv_heads * head_dim, (heads + 2 * kv_heads) * head_dim);
        let plan = self.plan();
        let (rows, blocks) = (plan.positions.len(), (0..self.sequences.len()).flat_map(|at| self.blocks_of(at)).max());
        let blocks = blocks.map_or(0, |block| block as usize + 1);
        let shape = KvShape { layers: 1, blocks, block_size: BLOCK_SIZE, kv_heads, head_dim, kept: 0 };
        let mut kv = backend.kv_cache(shape).unwrap();
        let (all, places) = ((0..blocks as u32).collect::<Vec<_>>(), blocks * BLOCK_SIZE);
        let stale = || not_numbers(backend, places, kv_dim);
        backend.write_pages(&mut kv, &all, places, &[(stale(), stale())]);
        for (at, (before, _)) in self.sequences.iter().enumerate().filter(|(_, (before, _))| *before > 0) {
            let seed = 10 + 2 * at as u64;
            let [k, v] = [0, 1].map(|part| backend.buffer_of(kv_dim, &numbers(seed + part, before * kv_dim)).unwrap());
            backend.write_pages(&mut kv, &self.blocks_of(at), *before, &[(k, v)]);
        }
        let mut step = backend.step();
        backend.upload(&plan, &mut step).unwrap();
        let qkv: Vec<f32> = numbers(1, rows * columns).iter().map(|number| number * factor).collect();
        let mut qkv = backend.buffer_of(columns, &qkv).unwrap();
        let longest = plan.positions.iter().max().map_or(0, |position| *position as usize + 1);
        let (cos, sin) = numbers(3, longest * head_dim / 2).iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let rope = backend.rope(&RopeTable { rotary_dim: head_dim, cos, sin }).unwrap();
        backend.rope_and_cache(&step, &self.spec, &rope, 0, &mut qkv, &mut kv);
        let mut y = spoilt(backend, &step, rows, heads * head_dim);
        backend.attention(&step, &self.spec, 0, &qkv, &kv, &mut y);
        rows_of(backend, &y, rows)
    }
}
