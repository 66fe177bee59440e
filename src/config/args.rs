//! The command line.

use clap::{Parser, Subcommand, ValueEnum};

use super::client::{AdapterCommand, GenerateArgs};
use super::listen::ListenAddress;
use super::serve_args::{DtypeChoice, Kernels, ServeArgs};

/// One base language model, many small deltas of it, mixed in one batch, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "polydelta", version, about, propagate_version = true, after_help = EXAMPLES)]
pub struct Args {
    /// Logging, for every command.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  polydelta demo
  polydelta serve --model ./Qwen2.5-0.5B --adapter sql=./adapters/sql
  polydelta adapter upload sql ./adapters/sql
  polydelta generate --adapter sql \"How many orders came in today?\"

Every flag can also be given as an environment variable: --max-num-seqs is POLYDELTA_MAX_NUM_SEQS.
Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 unavailable, 5 rejected.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model and its adapters over gRPC
    Serve(Box<ServeArgs>),
    /// Serve the bundled model with its adapters, run one mixed batch and show what came out
    Demo(DemoArgs),
    /// Generate text on a running server
    Generate(Box<GenerateArgs>),
    /// Upload, list, inspect and remove adapters
    #[command(subcommand)]
    Adapter(AdapterCommand),
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace), or levels by module as in `info,polydelta::engine=debug`
    #[arg(long, global = true, env = "POLYDELTA_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How to write the log, which goes to standard error
    #[arg(long, global = true, env = "POLYDELTA_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// `polydelta demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Exit after the table instead of serving on
    #[arg(long, env = "POLYDELTA_ONCE", value_parser = clap::builder::BoolishValueParser::new())]
    pub once: bool,
    /// Print the table as JSON
    #[arg(long, env = "POLYDELTA_JSON", value_parser = clap::builder::BoolishValueParser::new())]
    pub json: bool,
    /// Where to serve; port 0 takes a free one
    #[arg(long, env = "POLYDELTA_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: ListenAddress,
    /// Compute threads; all cores where it is not given
    #[arg(long, env = "POLYDELTA_THREADS", value_name = "N")]
    pub threads: Option<u32>,
    /// Type of weights and KV cache
    #[arg(long, env = "POLYDELTA_DTYPE", value_enum, default_value_t)]
    pub dtype: DtypeChoice,
    /// Which implementation computes; the reference is slow and obvious
    #[arg(long, env = "POLYDELTA_KERNELS", value_enum, default_value_t, hide = true)]
    pub kernels: Kernels,
}
