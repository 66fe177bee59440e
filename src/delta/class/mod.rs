//! The closed set of op classes, one file each: what an op is on the host, what it says of itself, what it becomes on a
//! device, the sites it may have, and how a step applies it.
//!
//! The files share one contract ([`ClassOp`]); this one is the list. A step runs one class at a time for all rows at
//! once, in the order of `delta::apply` and the decoder, and knows op classes, never a method's name. Kernels are the
//! backends': nothing here computes.

pub(crate) mod added_tokens;
pub(crate) mod bias;
pub(crate) mod bottleneck;
pub(crate) mod dense;
pub(crate) mod embedding_low_rank;
pub(crate) mod embedding_rows;
pub(crate) mod expert_low_rank;
pub(crate) mod gain;
pub(crate) mod head;
pub(crate) mod input;
mod loading;
pub(crate) mod low_rank;
mod op;
pub(crate) mod output_rotate;
pub(crate) mod prefix;
pub(crate) mod prompt_embeds;
mod rotate;
pub(crate) mod scale;
pub(crate) mod sparse;

pub use added_tokens::AddedTokens;
pub use bias::Bias;
pub use bottleneck::{Bottleneck, LayerNorm};
pub use dense::Dense;
pub use embedding_low_rank::EmbeddingLowRank;
pub use embedding_rows::EmbeddingRows;
pub use expert_low_rank::ExpertLowRank;
pub use gain::Gain;
pub use head::Head;
pub use low_rank::LowRank;
pub use output_rotate::OutputRotate;
pub use prefix::{Prefix, PrefixLayer};
pub use prompt_embeds::PromptEmbeds;
pub use rotate::{InputRotate, RotateStage};
pub use scale::{InputScale, OutputScale};
pub use sparse::Sparse;

pub(super) use loading::Loading;
pub(crate) use op::ClassOp;

use super::layout::Site;
use crate::ops::{Backend, OpsError};
use crate::types::OpClass;

/// Makes the enum of all classes, and the places that every class passes through.
macro_rules! classes {
    ($($(#[$doc:meta])* $class:ident),* $(,)?) => {
        /// One operation. Numbers are on the host, as the file has them; shapes are checked by the compiler that made it.
        #[derive(Clone, Debug, PartialEq)]
        pub enum DeltaOp {
            $($(#[$doc])* $class($class),)*
        }

        impl DeltaOp {
            /// Its class.
            #[must_use]
            pub fn class(&self) -> OpClass {
                match self {
                    $(Self::$class(_) => OpClass::$class,)*
                }
            }

            /// What it says of itself.
            #[must_use]
            pub(crate) fn as_op(&self) -> &dyn ClassOp {
                match self {
                    $(Self::$class(op) => op,)*
                }
            }

            /// `weight` times it, or why there is no such thing; see [`ClassOp::weighting`].
            pub(super) fn weighted(self, weight: f32) -> Result<Self, &'static str> {
                match self {
                    $(Self::$class(op) => $class::weighting().map(|times| Self::$class(times(op, weight))),)*
                }
            }

            /// See [`ClassOp::laid_out`].
            pub(super) fn laid_out(self) -> Result<Self, OpsError> {
                match self {
                    $(Self::$class(op) => op.laid_out().map(Self::$class),)*
                }
            }

            /// See [`ClassOp::load`].
            pub(super) fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError> {
                match self {
                    $(Self::$class(op) => op.load(site, loading),)*
                }
            }
        }

        /// Why an adapter with an op of a class cannot be part of a mix, as the end of a sentence about the class; `None`
        /// where it can.
        #[must_use]
        pub fn refused_in_mix(class: OpClass) -> Option<&'static str> {
            match class {
                $(OpClass::$class => $class::weighting().err(),)*
            }
        }

        $(impl From<$class> for DeltaOp {
            fn from(op: $class) -> Self {
                Self::$class(op)
            }
        })*
    };
}

classes! {
    /// y += s·B(Ax).
    LowRank,
    /// y += Sx, S sparse.
    Sparse,
    /// e += s·B·A[:, id].
    EmbeddingLowRank,
    /// y += s·B(Ax) within an expert, for the rows that chose it.
    ExpertLowRank,
    /// Rows of embedding and head in place of the base's.
    EmbeddingRows,
    /// y = g∘y.
    OutputScale,
    /// y = c1∘y + c2∘rot(y).
    OutputRotate,
    /// x = g∘x.
    InputScale,
    /// x = x R₁ ⋯ R_n.
    InputRotate,
    /// y += b, after everything else.
    Bias,
    /// h += s·(U·f(D·v + b1) + b2), behind a block.
    Bottleneck,
    /// The norm's weight for this row.
    Gain,
    /// Saved K and V at the head of the block table.
    Prefix,
    /// Learned embeddings at the head of the prompt.
    PromptEmbeds,
    /// Logits of labels from a hidden state.
    Head,
    /// y += s·Dx, or y = Dx in place of the base's.
    Dense,
    /// Logits of tokens that the base does not have.
    AddedTokens,
}
