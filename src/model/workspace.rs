//! The activations of a pass: one list of buffers, from which both what is allocated and how many bytes it takes follow.

use super::spec::DecoderSpec;
use crate::ops::{Backend, OpsError, SampledRows, SiteSet};
use crate::types::{MAX_ADDED_TOKENS, MAX_LABELS};

/// A buffer that is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Planned {
    rows: usize,
    cols: usize,
    /// A GEMM reads it, so its rounded form lies beside it.
    is_input: bool,
}

impl Planned {
    fn allocate<B: Backend>(self, backend: &B) -> Result<B::Buffer, OpsError> {
        match self.is_input {
            true => backend.input_buffer(self.rows, self.cols),
            false => backend.buffer(self.rows, self.cols),
        }
    }

    /// At the most: f32 numbers, and a rounded form that is no larger.
    fn bytes(self) -> u64 {
        let of_one = if self.is_input { 2 * size_of::<f32>() } else { size_of::<f32>() };
        (self.rows * self.cols * of_one) as u64
    }
}

/// Declares the buffers: `name: plain|input [rows, columns]`.
macro_rules! workspace {
    (|$spec:ident, $rows:ident, $sampled:ident| $($name:ident: $kind:ident [$lines:expr, $cols:expr],)*) => {
        /// Activations of one pass, allocated once.
        pub(super) struct Workspace<B: Backend> {
            $(pub(super) $name: B::Buffer,)*
            pub(super) experts: B::ExpertsWork,
            pub(super) step: B::Step,
            /// Where any adapter of the step has entries.
            pub(super) held: SiteSet,
            /// Vocabularies of the sampled rows of a group; empty where all have the base's.
            pub(super) vocab_sizes: Vec<usize>,
        }

        fn plan($spec: &DecoderSpec, $rows: usize) -> [Planned; [$(stringify!($name)),*].len()] {
            let $sampled = SampledRows::MOST.min($rows);
            [$(workspace!(@$kind $lines, $cols)),*]
        }

        impl<B: Backend> Workspace<B> {
            /// For steps of so many rows.
            ///
            /// # Errors
            /// [`OpsError::OutOfMemory`].
            pub(super) fn new(backend: &B, spec: &DecoderSpec, rows: usize) -> Result<Self, OpsError> {
                let [$($name),*] = plan(spec, rows);
                Ok(Self {
                    $($name: $name.allocate(backend)?,)*
                    experts: backend.experts_work(rows, spec.hidden_size, spec.experts().as_ref())?,
                    step: backend.step(),
                    held: SiteSet::default(),
                    vocab_sizes: Vec::new(),
                })
            }
        }
    };
    (@plain $rows:expr, $cols:expr) => { Planned { rows: $rows, cols: $cols, is_input: false } };
    (@input $rows:expr, $cols:expr) => { Planned { rows: $rows, cols: $cols, is_input: true } };
}

workspace! { |spec, rows, sampled|
    residual: plain [rows, spec.hidden_size],
    normed: input [rows, spec.hidden_size],
    qkv: plain [rows, spec.q_dim() + 2 * spec.kv_dim()],
    attention: input [rows, spec.q_dim()],
    gate_up: plain [rows, 2 * spec.dense_size()],
    activated: input [rows, spec.dense_size()],
    router_logits: plain [rows, spec.experts().map_or(0, |experts| experts.experts)],
    projected: plain [rows, spec.hidden_size],
    scaled_hidden: input [rows, spec.hidden_size],
    scaled_attention: input [rows, spec.q_dim()],
    scaled_inner: input [rows, spec.dense_size()],
    last: input [sampled, spec.hidden_size],
    last_normed: input [sampled, spec.hidden_size],
    logits: plain [sampled, spec.vocab_size],
    added_logits: plain [sampled, MAX_ADDED_TOKENS],
    head_logits: plain [sampled, MAX_LABELS],
}

/// Bytes that the buffers of a decoder take for steps of so many rows, at the most. What a backend keeps for experts and
/// for ops on their way is not among them.
#[must_use]
pub fn workspace_bytes(spec: &DecoderSpec, rows: usize) -> u64 {
    plan(spec, rows).into_iter().map(Planned::bytes).sum()
}
