//! The gate: limits, validation, permits, deadlines, adapter leases. Turns a request into an
//! [`EngineRequest`](crate::types::EngineRequest) or a refusal that names the field, and the engine's events into text.
//!
//! It knows no gRPC. Nothing here computes with weights; what takes long runs off the reactor.

mod engine;
mod error;
mod gate;
mod generation;
pub mod generation_defaults;
mod hall;
mod lease;
mod salt;
mod templates;
#[cfg(test)]
pub(crate) mod testing;
mod tokenizing;
mod turns;
pub mod validate;

pub use engine::{GenerationEngine, StatsFuture};
pub use error::AdmissionError;
pub use gate::{AdapterChoice, Arrival, Gate, GateParts, GenerateRequest};
pub use generation::{
    ChoiceDelta, Generation, GenerationError, GenerationEvent, GenerationInfo, OutputLogprob, OutputToken, StopMatch,
    Timings, TopToken,
};
pub use generation_defaults::{GenerationDefaults, GenerationDefaultsError};
pub use hall::{AdapterHall, ResidentFuture};
pub use salt::PrefixSalting;
pub use templates::AdapterTemplates;
pub use tokenizing::TokenizedPrompt;
pub use validate::{InvalidRequest, Limits};
