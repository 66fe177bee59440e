//! Deltas on a device. [`PreparedDelta`] is made on a loader thread (all bytes move there); install and remove touch
//! tables only, between steps.

use super::layout::{BaseLayout, LayerSite, Site};
use super::program::{DeltaOp, DeltaProgram, PrefixLayer};
use crate::ops::{Backend, ColumnVector, HostMatrix, LowRank, OpsError, SlotTable, SlotVectors};
use crate::types::AdapterSlot;

/// Deltas of one stacked linear site. Columns are those of the stack.
pub struct LinearDeltas<B: Backend> {
    /// x = g∘x, one table per segment of the stack; columns are `0..in`.
    pub input_scale: Vec<SlotVectors<B>>,
    /// y += s·B(Ax).
    pub low_rank: SlotTable<LowRank<B>>,
    /// y = g∘y, before the base's bias.
    pub scale_before_bias: SlotVectors<B>,
    /// y = g∘y, after it.
    pub scale_after_bias: SlotVectors<B>,
    /// y += b.
    pub bias: SlotVectors<B>,
}

impl<B: Backend> LinearDeltas<B> {
    fn new(segments: usize) -> Self {
        Self {
            input_scale: (0..segments).map(|_| SlotTable::default()).collect(),
            low_rank: SlotTable::default(),
            scale_before_bias: SlotTable::default(),
            scale_after_bias: SlotTable::default(),
            bias: SlotTable::default(),
        }
    }

    fn take(&mut self, slot: AdapterSlot, removed: &mut RemovedDelta<B>) {
        removed.low_rank.extend(self.low_rank.take(slot));
        let vectors = [&mut self.scale_before_bias, &mut self.scale_after_bias, &mut self.bias];
        for table in self.input_scale.iter_mut().chain(vectors) {
            removed.vectors.extend(table.take(slot));
        }
    }
}

/// Deltas of one decoder layer.
pub struct LayerDeltas<B: Backend> {
    /// q, k, v stacked.
    pub qkv: LinearDeltas<B>,
    /// Output projection.
    pub o: LinearDeltas<B>,
    /// gate, up stacked.
    pub gate_up: LinearDeltas<B>,
    /// Down projection.
    pub down: LinearDeltas<B>,
    /// Norm before attention.
    pub attention_norm: SlotVectors<B>,
    /// Per-head norm of q.
    pub q_norm: SlotVectors<B>,
    /// Per-head norm of k.
    pub k_norm: SlotVectors<B>,
    /// Norm of attention's output.
    pub attention_out_norm: SlotVectors<B>,
    /// Norm before the MLP.
    pub mlp_norm: SlotVectors<B>,
    /// Norm of the MLP's output.
    pub mlp_out_norm: SlotVectors<B>,
}

/// What an adapter puts at the head of every sequence. Prompt embeddings and saved K/V stay on the host: they are read
/// once per version, when its pages are filled.
#[derive(Clone, Debug, PartialEq)]
pub enum VirtualRows {
    /// Saved K and V, one entry per layer.
    Prefix(Vec<PrefixLayer>),
    /// `[virtual tokens, hidden]`.
    Embeds(Vec<f32>),
}

/// Deltas of all installed adapters.
pub struct DeltaTable<B: Backend> {
    /// One entry per layer.
    pub layers: Vec<LayerDeltas<B>>,
    /// e += s·B·A[:, id].
    pub embed: SlotTable<LowRank<B>>,
    /// e = g∘e (DoRA on the embedding).
    pub embed_scale: SlotVectors<B>,
    /// The head.
    pub lm_head: LinearDeltas<B>,
    /// Norm before the head.
    pub final_norm: SlotVectors<B>,
    /// Virtual tokens.
    pub virtual_rows: SlotTable<VirtualRows>,
}

/// What a slot held, with its memory. Freeing that may take longer than a step.
pub struct RemovedDelta<B: Backend> {
    low_rank: Vec<LowRank<B>>,
    vectors: Vec<ColumnVector<B>>,
    virtual_rows: Vec<VirtualRows>,
}

/// A stacked linear site of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Qkv(u32),
    O(u32),
    GateUp(u32),
    Down(u32),
    LmHead,
}

/// An op with its memory on the device and its place in the tables.
enum Resident<B: Backend> {
    LowRank(Stack, LowRank<B>),
    InputScale(Stack, std::ops::Range<usize>, Vec<ColumnVector<B>>),
    OutputScale { stack: Stack, after_bias: bool, g: ColumnVector<B> },
    Bias(Stack, ColumnVector<B>),
    Gain(Site, ColumnVector<B>),
    EmbedLowRank(LowRank<B>),
    EmbedScale(ColumnVector<B>),
    VirtualRows(VirtualRows),
}

/// A compiled adapter with its memory on the device, not yet in any table.
pub struct PreparedDelta<B: Backend> {
    ops: Vec<Resident<B>>,
}

impl<B: Backend> PreparedDelta<B> {
    /// Move a program's numbers to the device.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`]; nothing stays allocated then.
    pub fn new(backend: &B, layout: &BaseLayout, program: DeltaProgram) -> Result<Self, OpsError> {
        let turned = |(site, op)| Ok::<_, OpsError>((site, by_row_of_a(op)?));
        let ops: Vec<(Site, DeltaOp)> = program.ops.into_iter().map(turned).collect::<Result<_, _>>()?;
        let matrices: Vec<HostMatrix<'_>> = ops.iter().flat_map(|(_, op)| matrices(op)).collect();
        let mut weights = backend.weight_group(&matrices)?.into_iter();
        let prepare = |(site, op)| prepare(backend, layout, site, op, &mut weights);
        Ok(Self { ops: ops.into_iter().map(prepare).collect::<Result<_, _>>()? })
    }
}

/// A of an embedding is read by row: transposed.
fn by_row_of_a(op: DeltaOp) -> Result<DeltaOp, OpsError> {
    Ok(match op {
        DeltaOp::EmbeddingLowRank { a, b, scaling } => DeltaOp::EmbeddingLowRank { a: a.transposed()?, b, scaling },
        op => op,
    })
}

/// The matrices of an op, in the order in which [`prepare`] takes them.
fn matrices(op: &DeltaOp) -> Vec<HostMatrix<'_>> {
    match op {
        DeltaOp::LowRank { a, b, .. } | DeltaOp::EmbeddingLowRank { a, b, .. } => vec![a.matrix(), b.matrix()],
        _ => Vec::new(),
    }
}

/// The stack a logical site lies in, with its segments and columns there.
fn place(layout: &BaseLayout, site: Site) -> Option<(Stack, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let (q, kv, inner) = (layout.q_dim, layout.kv_dim, layout.intermediate_size);
    let Site::Layer(layer, part) = site else {
        return (site == Site::LmHead).then_some((Stack::LmHead, 0..1, 0..layout.vocab_size));
    };
    Some(match part {
        LayerSite::Q => (Stack::Qkv(layer), 0..1, 0..q),
        LayerSite::K => (Stack::Qkv(layer), 1..2, q..q + kv),
        LayerSite::V => (Stack::Qkv(layer), 2..3, q + kv..q + 2 * kv),
        LayerSite::Qkv => (Stack::Qkv(layer), 0..3, 0..q + 2 * kv),
        LayerSite::O => (Stack::O(layer), 0..1, 0..layout.hidden_size),
        LayerSite::Gate => (Stack::GateUp(layer), 0..1, 0..inner),
        LayerSite::Up => (Stack::GateUp(layer), 1..2, inner..2 * inner),
        LayerSite::GateUp => (Stack::GateUp(layer), 0..2, 0..2 * inner),
        LayerSite::Down => (Stack::Down(layer), 0..1, 0..layout.hidden_size),
        LayerSite::AttentionNorm
        | LayerSite::QNorm
        | LayerSite::KNorm
        | LayerSite::AttentionOutNorm
        | LayerSite::MlpNorm
        | LayerSite::MlpOutNorm => return None,
    })
}

fn prepare<B: Backend>(
    backend: &B,
    layout: &BaseLayout,
    site: Site,
    op: DeltaOp,
    weights: &mut impl Iterator<Item = B::Weight>,
) -> Result<Resident<B>, OpsError> {
    let vector = |values: &[f32], columns| Ok::<_, OpsError>(ColumnVector { values: backend.vector(values)?, columns });
    let mut pair = |rank, scaling, columns| match (weights.next(), weights.next()) {
        (Some(a), Some(b)) => LowRank { a, b, rank, scaling, columns },
        _ => unreachable!("`matrices` lists two for every low-rank op"),
    };
    let placed = place(layout, site);
    Ok(match (op, placed) {
        (DeltaOp::LowRank { a, scaling, .. }, Some((stack, _, columns))) => {
            Resident::LowRank(stack, pair(a.rows(), scaling, columns))
        }
        (DeltaOp::InputScale { g }, Some((stack, segments, _))) => {
            let copies = segments.clone().map(|_| vector(&g, 0..g.len())).collect::<Result<_, _>>()?;
            Resident::InputScale(stack, segments, copies)
        }
        (DeltaOp::OutputScale { g, after_bias }, Some((stack, _, columns))) => {
            Resident::OutputScale { stack, after_bias, g: vector(&g, columns)? }
        }
        (DeltaOp::Bias { b }, Some((stack, _, columns))) => Resident::Bias(stack, vector(&b, columns)?),
        (DeltaOp::EmbeddingLowRank { b, scaling, .. }, _) => {
            Resident::EmbedLowRank(pair(b.cols(), scaling, 0..layout.hidden_size))
        }
        (DeltaOp::Gain { g }, _) => Resident::Gain(site, vector(&g, 0..g.len())?),
        (DeltaOp::Prefix { layers, .. }, _) => Resident::VirtualRows(VirtualRows::Prefix(layers)),
        (DeltaOp::PromptEmbeds { embeds }, _) => Resident::VirtualRows(VirtualRows::Embeds(embeds.to_f32())),
        // The only scale outside a stack is DoRA's on the embedding; compilers give biases and inputs to stacks alone.
        (DeltaOp::OutputScale { g, .. } | DeltaOp::InputScale { g } | DeltaOp::Bias { b: g }, None) => {
            debug_assert_eq!(site, Site::Embed);
            Resident::EmbedScale(vector(&g, 0..g.len())?)
        }
        (DeltaOp::LowRank { .. }, None) => unreachable!("compilers attach LowRank to stacked sites only"),
    })
}

impl<B: Backend> DeltaTable<B> {
    /// Empty tables for a base.
    #[must_use]
    pub fn new(layout: &BaseLayout) -> Self {
        let layer = |_| LayerDeltas {
            qkv: LinearDeltas::new(3),
            o: LinearDeltas::new(1),
            gate_up: LinearDeltas::new(2),
            down: LinearDeltas::new(1),
            attention_norm: SlotTable::default(),
            q_norm: SlotTable::default(),
            k_norm: SlotTable::default(),
            attention_out_norm: SlotTable::default(),
            mlp_norm: SlotTable::default(),
            mlp_out_norm: SlotTable::default(),
        };
        Self {
            layers: (0..layout.layers).map(layer).collect(),
            embed: SlotTable::default(),
            embed_scale: SlotTable::default(),
            lm_head: LinearDeltas::new(1),
            final_norm: SlotTable::default(),
            virtual_rows: SlotTable::default(),
        }
    }

    /// Put a prepared adapter into an empty slot.
    pub fn install(&mut self, slot: AdapterSlot, delta: PreparedDelta<B>) {
        for op in delta.ops {
            match op {
                Resident::LowRank(stack, pair) => self.stack(stack).low_rank.push(slot, pair),
                Resident::InputScale(stack, segments, copies) => {
                    let tables = &mut self.stack(stack).input_scale[segments];
                    tables.iter_mut().zip(copies).for_each(|(table, g)| table.push(slot, g));
                }
                Resident::OutputScale { stack, after_bias: false, g } => {
                    self.stack(stack).scale_before_bias.push(slot, g);
                }
                Resident::OutputScale { stack, after_bias: true, g } => {
                    self.stack(stack).scale_after_bias.push(slot, g);
                }
                Resident::Bias(stack, b) => self.stack(stack).bias.push(slot, b),
                Resident::Gain(site, g) => self.gains(site).push(slot, g),
                Resident::EmbedLowRank(pair) => self.embed.push(slot, pair),
                Resident::EmbedScale(g) => self.embed_scale.push(slot, g),
                Resident::VirtualRows(rows) => self.virtual_rows.push(slot, rows),
            }
        }
    }

    /// Empty a slot. Nothing is freed here.
    pub fn remove(&mut self, slot: AdapterSlot) -> RemovedDelta<B> {
        let mut removed = RemovedDelta { low_rank: Vec::new(), vectors: Vec::new(), virtual_rows: Vec::new() };
        for layer in &mut self.layers {
            for stack in [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down] {
                stack.take(slot, &mut removed);
            }
            let (first, second) = (&mut layer.attention_norm, &mut layer.mlp_norm);
            let (attention_out, mlp_out) = (&mut layer.attention_out_norm, &mut layer.mlp_out_norm);
            for gains in [first, second, attention_out, mlp_out, &mut layer.q_norm, &mut layer.k_norm] {
                removed.vectors.extend(gains.take(slot));
            }
        }
        self.lm_head.take(slot, &mut removed);
        removed.low_rank.extend(self.embed.take(slot));
        removed.vectors.extend(self.embed_scale.take(slot));
        removed.vectors.extend(self.final_norm.take(slot));
        removed.virtual_rows.extend(self.virtual_rows.take(slot));
        removed
    }

    fn stack(&mut self, stack: Stack) -> &mut LinearDeltas<B> {
        match stack {
            Stack::Qkv(layer) => &mut self.layers[layer as usize].qkv,
            Stack::O(layer) => &mut self.layers[layer as usize].o,
            Stack::GateUp(layer) => &mut self.layers[layer as usize].gate_up,
            Stack::Down(layer) => &mut self.layers[layer as usize].down,
            Stack::LmHead => &mut self.lm_head,
        }
    }

    fn gains(&mut self, site: Site) -> &mut SlotVectors<B> {
        let Site::Layer(layer, part) = site else { return &mut self.final_norm };
        let layer = &mut self.layers[layer as usize];
        match part {
            LayerSite::AttentionNorm => &mut layer.attention_norm,
            LayerSite::QNorm => &mut layer.q_norm,
            LayerSite::KNorm => &mut layer.k_norm,
            LayerSite::AttentionOutNorm => &mut layer.attention_out_norm,
            LayerSite::MlpNorm => &mut layer.mlp_norm,
            LayerSite::MlpOutNorm => &mut layer.mlp_out_norm,
            LayerSite::Q
            | LayerSite::K
            | LayerSite::V
            | LayerSite::Qkv
            | LayerSite::O
            | LayerSite::Gate
            | LayerSite::Up
            | LayerSite::GateUp
            | LayerSite::Down => unreachable!("compilers attach Gain to norms only"),
        }
    }
}
