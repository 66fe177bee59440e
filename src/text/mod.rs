//! Text at the gate: tokenizer, incremental detokenizer, stop strings, chat template.
//!
//! Everything here is pure computation on the caller's thread. Encoding a long prompt takes milliseconds, so callers
//! keep it off the reactor threads, and check the prompt's length in bytes first. This room must not know of
//! requests, tensors or gRPC.

pub mod chat;
pub mod choice;
pub mod detokenizer;
pub mod jinja;
pub mod settings;
pub mod stop;
pub mod tokenizer;

mod bound;
mod clock;
mod control;
mod decoder_kind;
mod error;
#[cfg(test)]
pub(crate) mod fixtures;
mod gguf;
mod knowing;
mod own_tokens;
mod own_tokens_error;
mod problem;
mod saved_tokens;
mod tokenizer_class;

pub use chat::{ChatError, ChatTemplate, RenderedChat};
pub use choice::{ChoiceText, TextDelta};
pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use gguf::GgufTokenizerError;
pub use own_tokens::OwnTokens;
pub use own_tokens_error::OwnTokensError;
pub use saved_tokens::SavedTokens;
pub use settings::TokenizerSettings;
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;
