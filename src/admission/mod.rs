//! The way in, for requests and for adapters.
//!
//! The [`Gate`]: limits, validation, permits, deadlines, adapter leases. Turns a request into an
//! [`EngineRequest`](crate::types::EngineRequest) or a refusal that names the field, and the engine's events into text.
//! The [`Intake`]: what an adapter goes through before it is one.
//!
//! It knows no protocol. Nothing here computes with weights; what takes long runs off the reactor.

mod arrival;
mod background;
mod delta;
mod error;
mod gate;
mod generation;
pub mod generation_defaults;
mod intake;
mod kept;
mod lease;
mod pooling;
mod problem;
mod receipt;
mod salt;
mod template_variables;
#[cfg(test)]
pub(crate) mod testing;
mod texts;
mod tokenizing;
mod turns;
pub mod validate;

pub use arrival::Arrival;
pub use background::Lost;
pub(crate) use background::off_reactor;
pub use delta::{AdapterChoice, DeltaChoice, MAX_MIX_PARTS, MIN_MIX_PARTS, PartChoice, ServingDelta, ServingPart};
pub use error::{AdmissionError, Wanted};
pub use gate::{AdmissionRequest, Gate, GateParts, PoolRequest};
pub use generation::{
    ChoiceDelta, Generation, GenerationError, GenerationEvent, GenerationInfo, OutputLogprob, OutputToken, StopMatch,
    Timings, TopToken,
};
pub use generation_defaults::{GenerationDefaults, GenerationDefaultsError};
pub use intake::{Early, Intake, IntakeError, OpenUpload, Taken, UploadArrival, UploadBegun, ValidUpload};
pub use pooling::{PoolAnswer, PooledText, Reading, probabilities};
pub use salt::PrefixSalting;
pub use template_variables::{BadTemplateVariables, template_variables};
pub use texts::AdapterTexts;
pub use tokenizing::TokenizedPrompt;
pub use validate::{InvalidRequest, Limits, ModelSizes};
