//! What a request wants of the hidden states of its prompt, where it wants no tokens: one vector of the whole prompt, or one
//! of every token ("pooling" in vLLM and TEI).

use std::ops::Range;
use std::sync::Arc;

use super::generate::PromptInput;

/// Most labels of an adapter's head: bounds the memory that their logits take in a step.
pub const MAX_LABELS: usize = 1024;

/// Numbers that rows of a prompt have become.
pub type PooledVector = Arc<[f32]>;

/// Which rows of a prompt are read, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolRows {
    /// The last token's.
    Last,
    /// The first token's.
    First,
    /// The sum of all tokens', in their order: in f32, from the first token's on, so that it has the same bits however the
    /// prompt is cut into steps. Who wants the mean divides it.
    Sum,
    /// Each token's own.
    Each,
}

impl PoolRows {
    /// The tokens of a prompt of so many that are read.
    #[must_use]
    pub fn of(self, prompt: usize) -> Range<usize> {
        match self {
            Self::Last => prompt.saturating_sub(1)..prompt,
            Self::First => 0..prompt.min(1),
            Self::Sum | Self::Each => 0..prompt,
        }
    }
}

/// What a request wants of its prompt's hidden states, as they are behind the final norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Of which tokens.
    pub rows: PoolRows,
    /// The logits of so many labels, by the head of the request's adapter; `None`: the hidden state itself.
    pub labels: Option<u32>,
}

/// How an embedding is made of the hidden states of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean of all tokens'.
    Mean,
    /// The first token's.
    First,
}

/// How embeddings are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Of which tokens.
    pub pooling: Pooling,
    /// Divided by their length (L2), once they are cut.
    pub normalize: bool,
    /// So many numbers of each, the first ones (Kusupati et al. 2022); `None`: all.
    pub dimensions: Option<u32>,
}

/// What is wanted of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolWanted {
    /// Logits of the adapter's head: of the text, or of each of its tokens, as its task is.
    Scores,
    /// Embeddings.
    Embeddings(EmbedOptions),
}

/// Texts to be read as a client states them, without its transport.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolInput {
    /// Each is read by itself.
    pub inputs: Vec<PromptInput>,
    /// What becomes of each.
    pub wanted: PoolWanted,
    /// A head start; larger is more.
    pub priority: i32,
    /// Requests that name the same share the prefix cache, whoever sends them; empty names none.
    pub cache_salt: String,
}
