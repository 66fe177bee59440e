//! Receipts: what an answer was computed from and what came of it, as a text that can be kept, and what another answer has
//! in common with it.
//!
//! | part | job |
//! |---|---|
//! | `document` | what a receipt says |
//! | `text` | its one spelling, with a digest of itself, and the way back |
//! | `logprobs` | a digest of log-probabilities |
//! | `compare` | a receipt held against another one |
//!
//! It knows no protocol and no engine: the gate fills a [`Receipt`] in, a door hands on its text.

mod compare;
mod document;
mod error;
mod logprobs;
mod text;

#[cfg(test)]
mod tests;

pub use compare::{Finding, Verdict, compare_origins};
pub use document::{
    ChoiceRecord, DeltaRecord, FORMAT, FinishRecord, NumericsClass, Origin, PartRecord, Receipt, SamplingRecord,
    StopRecord, StoppingRecord,
};
pub use error::ReceiptError;
pub use logprobs::LogprobHasher;
