//! Flags, environment and defaults, resolved once at start into plain data.
//!
//! This is the only room that reads the environment. Every flag has a `POLYDELTA_*` variable of its own
//! ([`variables`]); flags win. [`Args`] is what clap reads; [`parse()`] reads to the end and checks the whole
//! ([`ServeConfig::resolve`]), and reports every problem at once, each by its flag. Nothing here opens a socket, reads a model or writes a file.

pub mod args;
mod checks;
pub mod client;
pub mod doctor;
pub mod environment;
pub mod exit;
pub mod fair_share;
pub mod gpu;
pub mod listen;
pub mod memory;
pub mod model_source;
pub mod parse;
pub mod pooling;
pub mod problem;
pub mod serve;
pub mod serve_args;
pub mod source;
pub mod store;
pub mod terminal;
pub mod units;
pub mod variables;

#[cfg(test)]
mod tests;

pub use args::{Args, Command, LogArgs, LogFormat};
pub use client::{
    AdapterCommand, ClientArgs, DriftArgs, ExportArgs, ExportMethod, GenerateArgs, InspectArgs, ReplayArgs, UploadArgs,
};
pub use doctor::DoctorArgs;
pub use environment::{CudaEnvironment, Environment, HubEnvironment};
pub use exit::Exit;
pub use fair_share::{FairShareArgs, FairShareConfig};
pub use gpu::{CudaGemm, GpuArgs, KernelCacheArgs, KernelCacheLocation};
pub use listen::ListenAddress;
pub use memory::available_memory;
pub use model_source::ModelSource;
pub use parse::{Refused, parse};
pub use pooling::{EmbedArgs, PoolingChoice, ScoreArgs};
pub use problem::{ConfigProblem, ConfigProblems};
pub use serve::{
    AdapterLimits, CacheConfig, DeviceChoice, MetricsListen, RequestLimits, ServeConfig, StepLimits, StoreLocation,
    TransportConfig, WatchdogConfig,
};
pub use serve_args::{DemoArgs, DtypeChoice, Kernels, PrefixCache, ServeArgs, StoreErrors};
pub use source::{AdapterSource, HubRepository};
pub use store::{StoreArgs, StoreCommand, StoreRepairArgs};
pub use terminal::Terminal;
pub use variables::{UnknownVariable, unknown_variables};
