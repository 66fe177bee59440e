//! The gRPC server over real connections: with the real engine on a tiny model, and with an engine that does as the
//! test says.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test; clippy sees only functions marked as tests.

mod activated;
mod adapters;
mod chat_templates;
mod clock;
mod disk;
mod exports;
mod fakes;
mod files;
mod generation;
mod golden;
mod harness;
mod inline;
mod lifecycle;
mod mixes;
mod own_tokens;
mod plain;
mod pooling;
mod raw;
mod receipts;
mod refusals;
mod requests;
mod scores;
mod shares;
mod spelling;
mod transport;
mod uploads;
mod vocabulary;
