//! Random models, random adapters and steps of them, for all benches.
#![allow(dead_code)] // Each bench uses a part of it.

pub(crate) mod adapters;
pub(crate) mod large;
pub(crate) mod model;
pub(crate) mod numbers;
pub(crate) mod step;

/// Whatever went wrong while setting up.
pub(crate) type Failure = Box<dyn std::error::Error>;
