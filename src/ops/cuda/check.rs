//! Does the device compute what the definition says? Asked once, at start, with a few small ops of every kind: kernels that
//! a driver has assembled into something else must not serve anybody.

use std::ops::Range;

use super::backend::CudaBackend;
use crate::ops::reference::ReferenceBackend;
use crate::ops::{
    Activation, AttentionSpec, Backend, Blend, Bottleneck, ColumnVector, DenseMatrix, Expert, ExpertDeltas, ExpertPair,
    ExpertsSpec, HostMatrix, KvShape, LowRankPair, NonLinearity, Norm, OpsError, PooledRows, PooledSpan, RopeTable,
    Rotation, RowPlan, Rows, SampledRows, SequencePlan, SiteId, SiteTable, SlotDelta, SlotEntries, StepPlan, Wiring,
};
use crate::types::{AdapterSlot, Output, SampleSpec, SamplingParams};

/// Rows, more than any decode kernel takes at once; their width, and the width of what they become.
const ROWS: usize = 70;
const WIDTH: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
/// Of an expert.
const INNER: usize = 40;
/// Of a head.
const LABELS: usize = 5;
const OUTPUTS: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
/// Largest relative difference: what rounding to 16 bits leaves of sums in another order.
const TOLERANCE: f32 = 2e-2;

impl CudaBackend {
    /// Compare with the definition.
    ///
    /// # Errors
    /// [`OpsError::Disagrees`] with the first op that differs, and what the driver reports.
    pub(super) fn check(&self) -> Result<(), OpsError> {
        let (got, want) = (Results::of(self)?, Results::of(&ReferenceBackend::new(self.numerics()))?);
        let close = |got: &f32, want: &f32| (got - want).abs() <= TOLERANCE * (1.0 + want.abs());
        for ((op, got), (_, want)) in got.numbers.iter().zip(&want.numbers) {
            if let Some(at) = got.iter().zip(want).position(|(got, want)| !close(got, want)) {
                return Err(OpsError::Disagrees { op, got: got[at], want: want[at] });
            }
        }
        Ok(())
    }
}

/// What a backend makes of the same inputs, op by op.
struct Results {
    numbers: Vec<(&'static str, Vec<f32>)>,
}

impl Results {
    fn of<B: Backend>(backend: &B) -> Result<Self, OpsError> {
        let mut step = backend.step();
        backend.upload(&plan(), &mut step)?;
        let mut numbers = Vec::new();
        let mut keep = |op, buffer: &B::Buffer, rows: usize| {
            let read = (0..rows).flat_map(|row| backend.read_row(buffer, row).into_owned()).collect();
            numbers.push((op, read));
        };
        let x = backend.buffer_of(WIDTH, &spread(1, ROWS * WIDTH))?;
        let gain = backend.vector(&spread(2, WIDTH))?;
        let mut normed = backend.input_buffer(ROWS, WIDTH)?;
        backend.rms_norm(&step, Rows::All, Norm { weight: &gain, gains: None, eps: 1e-5 }, &x, &mut normed);
        keep("rms_norm", &normed, ROWS);

        let table = deltas(backend)?;
        let deltas = SiteTable { table: &table, site: SITE };
        let mut turned = backend.input_buffer(ROWS, WIDTH)?;
        backend.rotate_input(&step, Rows::All, None, deltas, &x, &mut turned);
        keep("rotate_input", &turned, ROWS);

        let w = spread(3, OUTPUTS * WIDTH);
        let w = backend.weight(&[HostMatrix::f32(OUTPUTS, WIDTH, &w)])?;
        let mut y = backend.buffer(ROWS, OUTPUTS)?;
        backend.gemm_low_rank(&step, Rows::All, deltas, &normed, &w, &mut y);
        keep("gemm_low_rank", &y, ROWS);
        let mut full = backend.buffer(ROWS, OUTPUTS)?;
        backend.dense(&step, Rows::All, SiteTable { table: &table, site: FULL }, &normed, &mut full);
        keep("dense", &full, ROWS);

        keep("bottleneck", &run_bottleneck(backend, &step)?, ROWS);

        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let spec =
            AttentionSpec { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM, scale, softcap: None, window: None };
        let (cos, sin) = spread(4, ROWS * HEAD_DIM / 2).iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let rope = backend.rope(&RopeTable { rotary_dim: HEAD_DIM, cos, sin })?;
        let shape =
            KvShape { layers: 1, blocks: 8, block_size: 16, kv_heads: KV_HEADS, head_dim: HEAD_DIM, kept: WIDTH };
        let mut kv = backend.kv_cache(shape)?;
        backend.rope_and_cache(&step, &spec, &rope, 0, &mut y, &mut kv);
        let mut attended = backend.input_buffer(ROWS, HEADS * HEAD_DIM)?;
        backend.attention(&step, &spec, 0, &y, &kv, &mut attended);
        keep("attention", &attended, ROWS);
        let mut recalled = backend.buffer(ROWS, WIDTH)?;
        backend.keep_rows(&step, &normed, &mut kv);
        backend.recall_rows(&step, &kv, &mut recalled);
        keep("recall_rows", &recalled, ROWS);

        for (op, experts) in [("experts", 8), ("experts of many rows", 2)] {
            keep(op, &run_experts(backend, &step, experts, ExpertDeltas::NONE, &normed)?, ROWS);
        }
        let table = deltas_of_experts(backend)?;
        let at = |site| Some(SiteTable { table: &table, site });
        let added = ExpertDeltas { gate_up: at(SITE), down: at(FULL) };
        for (op, experts) in [("deltas of experts", 8), ("deltas of experts of many rows", 2)] {
            keep(op, &run_experts(backend, &step, experts, added, &normed)?, ROWS);
        }

        let (mut pooled, mut logits) = (backend.buffer(1, WIDTH)?, backend.buffer(1, LABELS)?);
        backend.pool_rows(&step, 0, &normed, &mut pooled);
        keep("pool_rows", &pooled, 1);
        backend.head_rows(&step, Rows::Pooled(0), deltas, &pooled, &mut logits);
        keep("head_rows", &logits, 1);

        // One token is far ahead of all others, so that no rounding chooses another.
        let mut logits = spread(5, OUTPUTS);
        logits[OUTPUTS / 3] = 9.0;
        backend.sample(&mut step, 0, &backend.buffer_of(OUTPUTS, &logits)?, None);
        let sampled = backend
            .finish(&mut step)?
            .sampled
            .into_iter()
            .map(|outcome| outcome.map_or(f32::NAN, |one| one.token as f32));
        numbers.push(("sample", sampled.collect()));
        Ok(Self { numbers })
    }
}

const SITE: SiteId = SiteId(0);
const NORM: SiteId = SiteId(1);
const FULL: SiteId = SiteId(1);

/// One sequence of which every third row has an adapter; the last is sampled, and some are summed.
fn plan() -> StepPlan {
    let rows = RowPlan::new((0..ROWS).map(|row| (row % 3 == 0).then_some(AdapterSlot(1))).collect());
    let greedy = SampleSpec {
        params: SamplingParams::greedy().into(),
        choice: 0,
        output_position: 0,
        banned: Vec::new(),
        counts: None,
    };
    StepPlan {
        ids: vec![None; ROWS],
        positions: (0..ROWS as u32).collect(),
        kv_slots: (0..ROWS as u32).collect(),
        sequences: vec![SequencePlan { rows: 0..ROWS, start: 0, blocks: (0..8).collect::<Vec<u32>>().into() }],
        sampled: SampledRows::groups(&rows, &[ROWS as u32 - 1]),
        pooled: PooledRows::groups(&rows, &mut vec![PooledSpan { rows: 3..9, onto: None, labels: None }]),
        outputs: vec![Output::Sample(greedy)],
        rows,
        ..StepPlan::default()
    }
}

/// What so many experts make of all rows, of which each chooses two.
fn run_experts<B: Backend>(
    backend: &B,
    step: &B::Step,
    experts: usize,
    deltas: ExpertDeltas<'_, B>,
    x: &B::Buffer,
) -> Result<B::Buffer, OpsError> {
    let spec = ExpertsSpec {
        experts,
        experts_per_token: 2,
        intermediate_size: INNER,
        activation: Activation::Silu,
        renormalise: true,
    };
    let expert = |index: usize| {
        let [gate, up, down] = [0, 1, 2].map(|part| spread(8 + 3 * index + part, INNER * WIDTH));
        let gate_up = [&gate, &up].map(|half| HostMatrix::f32(INNER, WIDTH, half));
        let down = [HostMatrix::f32(WIDTH, INNER, &down)];
        Ok(Expert { gate_up: backend.weight(&gate_up)?, down: backend.weight(&down)? })
    };
    let table = backend.expert_table((0..experts).map(expert).collect::<Result<_, OpsError>>()?)?;
    let logits = backend.buffer_of(experts, &spread(7 + experts, ROWS * experts))?;
    let mut work = backend.experts_work(ROWS, WIDTH, Some(&spec))?;
    let mut y = backend.buffer(ROWS, WIDTH)?;
    backend.experts(step, Rows::All, &spec, &logits, &table, deltas, x, &mut work, &mut y);
    Ok(y)
}

/// Pairs of two experts: of gate and up at one site, of down at the other.
fn deltas_of_experts<B: Backend>(backend: &B) -> Result<B::DeltaTable, OpsError> {
    const RANK: usize = 12;
    let pair = |expert: u32, site: SiteId, inputs: usize, outputs: usize| {
        let seed = 40 + 2 * (2 * expert as usize + site.index());
        let (a, b) = (spread(seed, RANK * inputs), spread(seed + 1, outputs * RANK));
        let a = backend.weight(&[HostMatrix::f32(RANK, inputs, &a)])?;
        let b = backend.weight(&[HostMatrix::f32(outputs, RANK, &b)])?;
        let pair = LowRankPair { a, b, rank: RANK, scaling: 0.5, columns: 0..outputs };
        Ok::<_, OpsError>((site, ExpertPair { expert, pair }))
    };
    let of_expert = |expert| [pair(expert, SITE, WIDTH, 2 * INNER), pair(expert, FULL, INNER, WIDTH)];
    let expert_pairs = (0..2).flat_map(of_expert).collect::<Result<_, OpsError>>()?;
    let mut table = backend.delta_table(2)?;
    let entries = SlotEntries { expert_pairs, ..SlotEntries::default() };
    backend.set_slot(&mut table, AdapterSlot(1), SlotDelta::new(backend, entries)?);
    Ok(table)
}

/// What bottlenecks behind the residual connection, normed, make of all rows.
fn run_bottleneck<B: Backend>(backend: &B, step: &B::Step) -> Result<B::Buffer, OpsError> {
    const RANK: usize = 12;
    let (a, b) = (spread(30, RANK * WIDTH), spread(31, WIDTH * RANK));
    let pair = LowRankPair {
        a: backend.weight(&[HostMatrix::f32(RANK, WIDTH, &a)])?,
        b: backend.weight(&[HostMatrix::f32(WIDTH, RANK, &b)])?,
        rank: RANK,
        scaling: 0.5,
        columns: 0..WIDTH,
    };
    let vector = |seed, len| backend.vector(&spread(seed, len));
    let entry = Bottleneck {
        wiring: Wiring { reads: Blend::BOTH, stream: Blend::X, branch: Blend::H },
        non_linearity: NonLinearity::Gate(Activation::Silu),
        down_bias: vector(32, RANK)?,
        up_bias: vector(33, WIDTH)?,
    };
    let norm =
        [34, 35].into_iter().map(|seed| Ok((NORM, ColumnVector { values: vector(seed, WIDTH)?, columns: 0..WIDTH })));
    let entries = SlotEntries {
        low_rank: vec![(SITE, pair)],
        vectors: norm.collect::<Result<_, OpsError>>()?,
        bottlenecks: vec![(SITE, entry)],
        ..SlotEntries::default()
    };
    let mut table = backend.delta_table(2)?;
    backend.set_slot(&mut table, AdapterSlot(1), SlotDelta::new(backend, entries)?);
    let at = |site| SiteTable { table: &table, site };
    let mut x = backend.buffer_of(WIDTH, &spread(36, ROWS * WIDTH))?;
    let mut h = backend.buffer_of(WIDTH, &spread(37, ROWS * WIDTH))?;
    let mut v = backend.input_buffer(ROWS, WIDTH)?;
    backend.blend_rows(step, Rows::All, at(SITE), &mut x, &mut h, &mut v);
    backend.bottleneck(step, Rows::All, at(SITE), &v, &mut h);
    backend.layer_norm_rows(step, Rows::All, at(NORM), 1e-5, &mut h);
    Ok(h)
}

fn deltas<B: Backend>(backend: &B) -> Result<B::DeltaTable, OpsError> {
    const RANK: usize = 12;
    /// Inputs of a block of the rotation.
    const BLOCK: usize = 8;
    let (a, b) = (spread(6, RANK * WIDTH), spread(7, OUTPUTS * RANK));
    let pair = LowRankPair {
        a: backend.weight(&[HostMatrix::f32(RANK, WIDTH, &a)])?,
        b: backend.weight(&[HostMatrix::f32(OUTPUTS, RANK, &b)])?,
        rank: RANK,
        scaling: 0.5,
        columns: 0..OUTPUTS,
    };
    let blocks = backend.vector(&spread(8, WIDTH * BLOCK))?;
    let rotation = Rotation { blocks, is_shared: false, size: BLOCK, interleaved: 2 };
    let head = ColumnVector { values: backend.vector(&spread(8, LABELS * WIDTH))?, columns: 0..LABELS };
    let full = |seed, columns: Range<usize>, replaces| {
        let d = spread(seed, columns.len() * WIDTH);
        let weight = backend.weight(&[HostMatrix::f32(columns.len(), WIDTH, &d)])?;
        Ok::<_, OpsError>((FULL, DenseMatrix { weight, scaling: 0.5, columns, replaces }))
    };
    let dense = vec![full(8, 0..OUTPUTS / 2, true)?, full(9, OUTPUTS / 2..OUTPUTS, false)?];
    let (low_rank, rotations, vectors) = (vec![(SITE, pair)], vec![(SITE, rotation)], vec![(SITE, head)]);
    let entries = SlotEntries { low_rank, rotations, vectors, dense, ..SlotEntries::default() };
    let mut table = backend.delta_table(2)?;
    backend.set_slot(&mut table, AdapterSlot(1), SlotDelta::new(backend, entries)?);
    Ok(table)
}

/// Numbers in (-0.5, 0.5) without a pattern that an op could fall in with: multiples of the golden ratio.
fn spread(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 37 + seed * 101) as f64 * 0.618_033_988_749_895).fract() as f32 - 0.5).collect()
}
