//! Why a command failed, and the exit code it gives.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::gpu_error::GpuError;
use super::inspect::InspectError;
use super::listen::MetricsListenError;
use super::model_folder::NoModel;
use crate::adapters::{AdapterError, RepairError};
use crate::admission::{GenerationDefaultsError, IntakeError};
use crate::cli::{BringError, CliError, exit_of, exit_of_hub};
use crate::config::units::format_bytes;
use crate::config::{ConfigProblems, Exit};
use crate::delta::ExportError;
use crate::engine::{EngineError, InstallError};
use crate::files::FileRefusal;
use crate::hub::HubError;
use crate::model::ModelError;
use crate::ops::OpsError;
use crate::telemetry::{LoggingError, MetricsError};
use crate::text::{ChatError, TokenizerError};
use crate::types::AdapterName;
use crate::wire::InvalidHeaderName;

/// Everything that can end a command.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Flags and variables, all problems at once.
    #[error("{0}")]
    Config(#[from] ConfigProblems),
    /// The log.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The thread that writes the log.
    #[error("cannot start the thread of the log: {0}")]
    LogThread(io::Error),
    /// The asynchronous runtime.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The base model's folder.
    #[error("the base model: {0}")]
    Model(#[from] ModelError),
    /// A folder that is not a model's.
    #[error("--model {}: {reason}", path.display())]
    NoModel {
        /// The folder.
        path: PathBuf,
        /// What is in it instead, and what to do.
        reason: NoModel,
    },
    /// The base model's repository.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The settings its makers want.
    #[error("the base model: {0}")]
    GenerationDefaults(#[from] GenerationDefaultsError),
    /// Its tokenizer.
    #[error("the base model's tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template.
    #[error("the base model's chat template: {0}")]
    Chat(#[from] ChatError),
    /// The GPU that was asked for.
    #[error("--device: {0}; `polydelta doctor` says what is there")]
    Gpu(#[from] GpuError),
    /// A dtype that only GPUs have, and none that computes.
    #[error(
        "--dtype f16 needs a GPU, and --device auto has none: {reason}. The CPU computes in bf16 or f32; `polydelta doctor` \
         says what is there"
    )]
    F16NeedsGpu {
        /// Why there is none.
        reason: GpuError,
    },
    /// The kernels.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store.
    #[error("the adapter store: {0}")]
    Store(AdapterError),
    /// The store that a verb is to look after.
    #[error("the adapter store: {0}")]
    IdleStore(AdapterError),
    /// A wish of the operator.
    #[error("the adapter store: {0}")]
    Repair(#[from] RepairError),
    /// A store that is not in order; the output says why.
    #[error("the store has {problems} problems; `polydelta store repair` says what would mend it")]
    StoreProblems {
        /// How many.
        problems: usize,
    },
    /// An adapter named by a flag cannot be had.
    #[error("--adapter {name}: {source}")]
    Bring {
        /// Its name.
        name: AdapterName,
        /// Why not.
        source: BringError,
    },
    /// An adapter named by a flag cannot be taken in.
    #[error("--adapter {name}: {source}")]
    Import {
        /// Its name.
        name: AdapterName,
        /// Why not.
        source: Box<IntakeError>,
    },
    /// A temporary folder.
    #[error("cannot make a temporary folder: {0}")]
    Temporary(io::Error),
    /// The gRPC address.
    #[error("cannot serve on {address}: {source}")]
    Listen {
        /// The address as it was written.
        address: String,
        /// The system's words.
        source: io::Error,
    },
    /// The metrics address.
    #[error(transparent)]
    MetricsListen(#[from] MetricsListenError),
    /// The recorder of metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] MetricsError),
    /// The header that names clients.
    #[error("--client-header: {0}")]
    ClientHeader(#[from] InvalidHeaderName),
    /// The descriptors in the program.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The KV cache that was asked for is too small to serve anything.
    #[error(
        "--kv-cache-bytes {given} holds {tokens} tokens; a sequence of {max_model_len} tokens needs {needed} bytes"
    )]
    KvCacheTooSmall {
        /// Bytes given.
        given: u64,
        /// Tokens they hold.
        tokens: u64,
        /// `--max-model-len`.
        max_model_len: u32,
        /// Bytes that one sequence of that length needs.
        needed: u64,
    },
    /// Sizes that were asked for and memory does not hold beside the base model.
    #[error(
        "memory: {} are available, but --kv-cache-bytes {}, --adapter-memory {}, --load-memory {} and the base model's {} \
         are {} together", format_bytes(*available), format_bytes(*kv_bytes), format_bytes(*adapter_bytes),
        format_bytes(*load_bytes), format_bytes(*weight_bytes),
        format_bytes([kv_bytes, adapter_bytes, load_bytes, weight_bytes].into_iter().fold(0, |a, b| a.saturating_add(*b)))
    )]
    MemoryTooSmall {
        /// `--kv-cache-bytes`; 0 where it was not given.
        kv_bytes: u64,
        /// `--adapter-memory`; 0 where it was not given.
        adapter_bytes: u64,
        /// `--load-memory`; 0 where it was not given.
        load_bytes: u64,
        /// The base model on the device.
        weight_bytes: u64,
        /// What this process may take.
        available: u64,
    },
    /// A GPU without room for what was asked of it.
    #[error(
        "the GPU's memory: {} may be taken, but the base model's {}, activations' {}, --kv-cache-bytes {} and \
         --adapter-memory {} are more together; --device cpu serves from the host's memory", format_bytes(*bytes),
        format_bytes(*weight_bytes), format_bytes(*workspace_bytes), format_bytes(*kv_bytes),
        format_bytes(*adapter_bytes)
    )]
    DeviceTooSmall {
        /// What may be taken.
        bytes: u64,
        /// The base model on the device.
        weight_bytes: u64,
        /// Activations and scratch.
        workspace_bytes: u64,
        /// `--kv-cache-bytes`; 0 where it was not given.
        kv_bytes: u64,
        /// `--adapter-memory`; 0 where it was not given.
        adapter_bytes: u64,
    },
    /// More context than the model was made for.
    #[error("--max-model-len is {given}, the model is made for {context_length} tokens")]
    ContextTooLong {
        /// Given.
        given: u32,
        /// Of the model.
        context_length: usize,
    },
    /// Behind the last layer there is nothing to share it with.
    #[error("--shared-layers is {given}, the model has {layers} layers and adapters change the last ones")]
    SharedLayers {
        /// Given.
        given: u32,
        /// Of the model.
        layers: usize,
    },
    /// The engine thread ended while the server ran.
    #[error("the engine has stopped: {reason}")]
    EngineStopped {
        /// Why.
        reason: String,
    },
    /// A step did not end.
    #[error("a step of {sequences} sequences and {rows} rows has not ended for {} s", waited.as_secs())]
    EngineStuck {
        /// Sequences in it.
        sequences: usize,
        /// Rows in it.
        rows: usize,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The model in the binary is not what the program expects.
    #[error("the bundled model: {reason}")]
    Bundled {
        /// What is wrong.
        reason: String,
    },
    /// A request of the demo failed.
    #[error("the request to {adapter} failed: {status}")]
    DemoRequest {
        /// Name of the adapter, or `base`.
        adapter: String,
        /// The server's answer.
        status: Box<tonic::Status>,
    },
    /// A prompt to compare an adapter with its base by.
    #[error("{path}, line {line}: {reason}")]
    Prompt {
        /// File.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An adapter that was inspected would be refused, or cannot be read.
    #[error("{0}")]
    Inspect(#[from] InspectError),
    /// An adapter that cannot be written as what was asked for.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A verb of the command line.
    #[error(transparent)]
    Cli(#[from] CliError),
}

impl AppError {
    /// The exit code. The same cause has the same code, whichever verb meets it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(problems) => problems.exit(),
            Self::Logging(_)
            | Self::KvCacheTooSmall { .. }
            | Self::MemoryTooSmall { .. }
            | Self::DeviceTooSmall { .. }
            | Self::ContextTooLong { .. }
            | Self::SharedLayers { .. }
            | Self::Prompt { .. } => Exit::Usage,
            Self::NoModel { reason, .. } => reason.exit(),
            Self::Model(error) => of_model(error),
            Self::Import { source, .. } => of_import(source),
            Self::Hub(error) => exit_of_hub(error),
            Self::Tokenizer(TokenizerError::Read { source, .. }) | Self::Chat(ChatError::Read { source, .. }) => {
                of_file(source)
            }
            Self::Bring { source, .. } => source.exit(),
            Self::GenerationDefaults(_) | Self::Tokenizer(_) | Self::Chat(_) => Exit::Rejected,
            Self::Engine(EngineError::Model(error)) => of_model(error),
            Self::DemoRequest { status, .. } => exit_of(status.code()),
            Self::Store(error) | Self::IdleStore(error) | Self::Repair(RepairError::Store(error)) => of_store(error),
            Self::Repair(
                RepairError::NotRemovable { .. } | RepairError::NotNameless { .. } | RepairError::NameTaken { .. },
            ) => Exit::Rejected,
            Self::StoreProblems { .. } => Exit::Problems,
            Self::Inspect(error) => error.exit(),
            Self::Export(ExportError::Op { .. }) => Exit::Rejected,
            Self::Cli(error) => error.exit(),
            Self::Export(ExportError::Differs(_) | ExportError::Tensors(_))
            | Self::LogThread(_)
            | Self::Runtime(_)
            | Self::Ops(_)
            | Self::Gpu(_)
            | Self::F16NeedsGpu { .. }
            | Self::Engine(_)
            | Self::Temporary(_)
            | Self::Listen { .. }
            | Self::MetricsListen(_)
            | Self::Metrics(_)
            | Self::ClientHeader(_)
            | Self::Reflection(_)
            | Self::EngineStopped { .. }
            | Self::EngineStuck { .. }
            | Self::Bundled { .. } => Exit::Failure,
        }
    }

    /// The reader of standard output has gone, as `head` does: no failure of ours.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Cli(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A model that is there and refused is as an adapter that is refused.
fn of_model(error: &ModelError) -> Exit {
    match error {
        ModelError::Read { source, .. } => of_file(source),
        ModelError::NoWeights { .. } => Exit::NotFound,
        ModelError::Ops(_) => Exit::Failure,
        _ => Exit::Rejected,
    }
}

fn of_store(error: &AdapterError) -> Exit {
    match error {
        AdapterError::StoreLocked { .. } => Exit::Unavailable,
        AdapterError::NotAFolder { .. } => Exit::NotFound,
        _ => Exit::Failure,
    }
}

fn of_import(error: &IntakeError) -> Exit {
    let adapter = match error {
        IntakeError::Adapter(error) => Some(error),
        IntakeError::Install(install) => match install.as_ref() {
            InstallError::Adapter(error) => Some(error),
            _ => None,
        },
        _ => None,
    };
    match adapter {
        Some(AdapterError::MissingFile { .. }) => Exit::NotFound,
        Some(AdapterError::Io { .. }) => Exit::Failure,
        _ => Exit::Rejected,
    }
}

/// A file that is no regular one, or too long, is refused as one with the wrong content.
fn of_file(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        _ if FileRefusal::of(error).is_some() => Exit::Rejected,
        _ => Exit::Failure,
    }
}
