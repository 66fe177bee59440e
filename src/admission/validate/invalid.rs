//! Why a request cannot be meant.

use std::fmt;
use std::ops::Bound;

/// Characters of a token that an error shows.
const MAX_SHOWN_CHARS: usize = 64;

/// A field out of its range. Fields are named by their path in a generate request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRequest {
    /// NaN or an infinity.
    #[error("{field} is {value}, expected a finite number")]
    NotFinite {
        /// Path.
        field: &'static str,
        /// As given.
        value: f32,
    },
    /// A number outside its interval.
    #[error("{field} is {value}, expected {interval}")]
    OutOfRange {
        /// Path.
        field: &'static str,
        /// As given.
        value: f32,
        /// What is allowed.
        interval: Interval,
    },
    /// A count above the server's limit.
    #[error("{field} is {value}, the limit is {max}")]
    TooLarge {
        /// Path.
        field: &'static str,
        /// As given.
        value: u32,
        /// Limit.
        max: u32,
    },
    /// A priority that no request may have.
    #[error("priority is {priority}, expected {lowest} to {max}", lowest = -i64::from(*.max))]
    Priority {
        /// As given.
        priority: i32,
        /// `--max-priority`: the largest, and its negative the smallest.
        max: u32,
    },
    /// 0 where nothing would be done.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// Path.
        field: &'static str,
    },
    /// A list with too many entries.
    #[error("{field} has {count} entries, the limit is {max}")]
    TooMany {
        /// Path.
        field: &'static str,
        /// As given.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// A mix of too few or too many adapters.
    #[error("mix has {count} entries, expected {min} to {max}")]
    MixParts {
        /// As given.
        count: usize,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// A text with too many bytes.
    #[error("{field} has {bytes} bytes, the limit is {max}")]
    TooLong {
        /// Path.
        field: String,
        /// As given.
        bytes: u64,
        /// Limit.
        max: u64,
    },
    /// A variable that the server itself gives to every template.
    #[error("{field} is the server's own")]
    Reserved {
        /// Path.
        field: String,
    },
    /// A value with too many levels inside each other.
    #[error("{field} has {depth} levels inside each other, the limit is {max}")]
    TooDeep {
        /// Path.
        field: String,
        /// As given.
        depth: usize,
        /// Limit.
        max: usize,
    },
    /// A text or list that must hold something.
    #[error("{field} is empty")]
    Empty {
        /// Path.
        field: String,
    },
    /// A token id that the model has no row for.
    #[error("{field}: token id {id}{} is not below the vocabulary size {vocab_size}", Named(.token))]
    NotInVocabulary {
        /// Path of the id, or of the text that holds its token.
        field: String,
        /// As given, or as the tokenizer has it.
        id: u32,
        /// The token as the tokenizer writes it; tokens may have been added to it that the model was never given rows
        /// for. `None` where the tokenizer does not know the id either.
        token: Option<String>,
        /// Rows of the model's embedding, and width of its logits.
        vocab_size: u32,
    },
    /// A token id that may stand once and stands more often.
    #[error("{field}: token id {id} is given more than once")]
    Repeated {
        /// Path.
        field: &'static str,
        /// The id.
        id: u32,
    },
    /// More tokens wanted at least than at most.
    #[error("stopping.min_tokens is {min_tokens}, more than the {max_tokens} that max_tokens allows")]
    MinTokens {
        /// As given.
        min_tokens: u32,
        /// As given, or what the server puts in its place.
        max_tokens: u32,
    },
    /// Every token would be masked until `min_tokens` is reached.
    #[error(
        "stopping.stop_token_ids: with min_tokens, at least one of the {vocab_size} token ids must not be a stop id"
    )]
    NothingToSample {
        /// Width of the model's logits.
        vocab_size: u32,
    },
    /// The prompt leaves no room for a single token, or is longer than the context where none is wanted.
    #[error(
        "{field} has {prompt_tokens} tokens{}; the context of {context_length} has no room for one more",
        Virtual(.virtual_tokens)
    )]
    PromptTooLong {
        /// Path of the form in which the prompt came.
        field: &'static str,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Virtual tokens of the adapter.
        virtual_tokens: u32,
        /// Most tokens of a sequence.
        context_length: u32,
    },
    /// A text that is far too long: so far, that its tokens were not counted to the end.
    #[error("{field} has {bytes} bytes and more than {more_than} tokens; the context has {context_length}")]
    TextTooLong {
        /// Path of the form in which the prompt came.
        field: &'static str,
        /// Bytes of the text; of a chat, as the template renders it.
        bytes: u64,
        /// Tokens it has at least, and one more.
        more_than: usize,
        /// Most tokens of a sequence.
        context_length: u32,
    },
    /// More output asked for than fits behind the prompt.
    #[error(
        "stopping.max_tokens is {max_tokens}; behind a prompt of {} tokens{} that exceeds the context of {context_length}",
        Prompt(.prompt_tokens),
        Virtual(.virtual_tokens)
    )]
    MaxTokens {
        /// As given.
        max_tokens: u32,
        /// Tokens of the prompt; `None` where it did not come to counting them.
        prompt_tokens: Option<usize>,
        /// Virtual tokens of the adapter.
        virtual_tokens: u32,
        /// Most tokens of a sequence.
        context_length: u32,
    },
    /// More is to be said of a prompt than an answer holds that is given as a whole.
    #[error(
        "options.prompt_logprobs: {logprobs} log-probabilities are more than a message of {max_bytes} bytes holds; ask for \
         fewer of each token, or have them streamed"
    )]
    AnswerTooLarge {
        /// Of the prompt's tokens and the most likely ones beside them.
        logprobs: u64,
        /// Limit of the protocol.
        max_bytes: u64,
    },
    /// More tokens of all inputs than a request may have.
    #[error("inputs have {tokens} tokens together, the limit is {max}")]
    InputTokens {
        /// Of all of them.
        tokens: u64,
        /// Limit.
        max: u64,
    },
    /// More numbers than an answer holds.
    #[error("inputs: {numbers} numbers are more than a message of {max_bytes} bytes holds; send fewer at a time")]
    AnswerNumbers {
        /// That would be answered.
        numbers: u64,
        /// Limit of the protocol.
        max_bytes: u64,
    },
    /// More output asked for over all choices than a request may have.
    #[error("stopping.max_tokens is {max_tokens} for each of {choices} choices, {max} together is the limit")]
    TotalTokens {
        /// As given.
        max_tokens: u32,
        /// Number of choices.
        choices: u32,
        /// Limit.
        max: u64,
    },
    /// More tokens than a receipt lists.
    #[error("options.receipt: prompt and choices may come to {tokens} tokens, a receipt lists {max}; ask for fewer")]
    ReceiptTokens {
        /// Of the prompt, and `max_tokens` of every choice.
        tokens: u64,
        /// Limit.
        max: u64,
    },
}

impl InvalidRequest {
    /// Name the token of an id that the model has no row for, as `text` writes it.
    #[must_use]
    pub fn name_token(mut self, text: impl FnOnce(u32) -> Option<String>) -> Self {
        if let Self::NotInVocabulary { id, token, .. } = &mut self {
            *token = text(*id).map(|text| text.chars().take(MAX_SHOWN_CHARS).collect());
        }
        self
    }

    /// Path of the field in a generate request.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::NotFinite { field, .. }
            | Self::OutOfRange { field, .. }
            | Self::TooLarge { field, .. }
            | Self::Zero { field }
            | Self::TooMany { field, .. }
            | Self::Repeated { field, .. }
            | Self::TextTooLong { field, .. }
            | Self::PromptTooLong { field, .. } => field,
            Self::TooLong { field, .. }
            | Self::Empty { field }
            | Self::NotInVocabulary { field, .. }
            | Self::Reserved { field }
            | Self::TooDeep { field, .. } => field,
            Self::MixParts { .. } => "mix",
            Self::Priority { .. } => "priority",
            Self::MinTokens { .. } => "stopping.min_tokens",
            Self::NothingToSample { .. } => "stopping.stop_token_ids",
            Self::MaxTokens { .. } | Self::TotalTokens { .. } => "stopping.max_tokens",
            Self::AnswerTooLarge { .. } => "options.prompt_logprobs",
            Self::ReceiptTokens { .. } => "options.receipt",
            Self::InputTokens { .. } | Self::AnswerNumbers { .. } => "inputs",
        }
    }
}

/// An interval of real numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub min: Bound<f32>,
    /// Upper end.
    pub max: Bound<f32>,
}

impl Interval {
    pub(super) const fn at_least(min: f32) -> Self {
        Self { min: Bound::Included(min), max: Bound::Unbounded }
    }

    pub(super) const fn above(min: f32) -> Self {
        Self { min: Bound::Excluded(min), max: Bound::Unbounded }
    }

    pub(super) const fn and_at_most(self, max: f32) -> Self {
        Self { max: Bound::Included(max), ..self }
    }

    /// A number that was left out is anywhere.
    pub(super) fn check(self, field: &'static str, value: Option<f32>) -> Result<(), InvalidRequest> {
        match value {
            // First of all: a NaN passes every comparison that is written the wrong way round.
            Some(value) if !value.is_finite() => Err(InvalidRequest::NotFinite { field, value }),
            Some(value) if !self.contains(value) => Err(InvalidRequest::OutOfRange { field, value, interval: self }),
            _ => Ok(()),
        }
    }

    fn contains(self, value: f32) -> bool {
        use std::ops::RangeBounds;
        (self.min, self.max).contains(&value)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min {
            Bound::Included(min) => write!(f, "at least {min}")?,
            Bound::Excluded(min) => write!(f, "more than {min}")?,
            Bound::Unbounded => f.write_str("any number")?,
        }
        match self.max {
            Bound::Included(max) => write!(f, " and at most {max}"),
            Bound::Excluded(max) => write!(f, " and less than {max}"),
            Bound::Unbounded => Ok(()),
        }
    }
}

/// ` and … virtual ones of its adapter`, or nothing.
struct Virtual<'a>(&'a u32);

impl fmt::Display for Virtual<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == 0 { Ok(()) } else { write!(f, " and {} virtual ones of its adapter", self.0) }
    }
}

/// ` ("…")`, or nothing.
struct Named<'a>(&'a Option<String>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |token| write!(f, " ({token:?})"))
    }
}

struct Prompt<'a>(&'a Option<usize>);

impl fmt::Display for Prompt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(tokens) => write!(f, "{tokens}"),
            None => f.write_str("any number of"),
        }
    }
}
