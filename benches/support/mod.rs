//! Random models, random adapters and steps of them, for all benches.

pub(crate) mod adapters;
pub(crate) mod model;
pub(crate) mod numbers;
pub(crate) mod step;

/// Whatever went wrong while setting up.
pub(crate) type Failure = Box<dyn std::error::Error>;
