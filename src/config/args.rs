//! The command line.

use clap::{Parser, Subcommand, ValueEnum};

use super::client::{AdapterCommand, GenerateArgs, ReplayArgs};
use super::doctor::DoctorArgs;
use super::environment::Environment;
use super::pooling::{EmbedArgs, ScoreArgs};
use super::problem::{ConfigProblem, ConfigProblems};
use super::serve::ServeConfig;
use super::serve_args::{DemoArgs, ServeArgs};
use super::store::StoreCommand;

/// One base language model, many small deltas of it, mixed in one batch, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "polydelta", version, long_version = LONG_VERSION, about, propagate_version = true)]
#[command(after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// Logging, for every command.
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What a report of a fault needs.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nbuilt for ",
    env!("BUILD_TARGET"),
    ", profile ",
    env!("BUILD_PROFILE"),
    ", by ",
    env!("BUILD_RUSTC"),
);

const EXAMPLES: &str = "\
Examples:
  polydelta demo
  polydelta serve --model ./Qwen2.5-0.5B --adapter sql=./adapters/sql
  polydelta adapter upload sql ./adapters/sql
  polydelta generate --adapter sql \"How many orders came in today?\"

Every flag has an environment variable, which --help names beside it. Those of serve are POLYDELTA_ and the flag
(--max-num-seqs is POLYDELTA_MAX_NUM_SEQS), those of another verb have the verb in between (--json of demo is
POLYDELTA_DEMO_JSON); POLYDELTA_LOG, POLYDELTA_SERVER and their like mean the same everywhere. Flags win.

Exit codes:
  0    done
  1    failed: a disk, a port, an error inside the program or the server
  2    the command line, a variable or the configuration is wrong; nothing was done
  3    what was named does not exist: a file, a folder, a model, an adapter
  4    unavailable: no server there, not serving, overloaded, or not in time
  5    rejected: the server or the checks refused what was given
  6    a check found problems
  7    a replayed answer is not the one of its receipt
  8    a receipt cannot be replayed on this server: another base, other numerics, or an adapter that is not there
  130  interrupted";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model and its adapters over gRPC
    Serve(Box<ServeArgs>),
    /// Serve the bundled model with its adapters, run one mixed batch and show what came out
    Demo(DemoArgs),
    /// Generate text on a running server
    Generate(Box<GenerateArgs>),
    /// Compute the answer of a receipt again, and say what agrees
    Replay(ReplayArgs),
    /// Print embeddings of texts, as a running server makes them
    Embed(EmbedArgs),
    /// Score texts, or their tokens, with an adapter that was trained to classify
    Score(ScoreArgs),
    /// Upload, list, inspect and remove adapters
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Check and mend the folder that keeps adapters, without a server
    #[command(subcommand)]
    Store(StoreCommand),
    /// Say what this machine computes with: instructions, memory bandwidth, GPUs, and how to mend what is missing
    Doctor(DoctorArgs),
}

impl Args {
    /// Check what was read as a whole.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn check(&self, environment: &Environment) -> Result<(), ConfigProblems> {
        let mut problems = self.log.problems();
        let of_verb = match &self.command {
            Command::Serve(args) => ServeConfig::resolve(args, environment).map(drop),
            Command::Demo(args) => ServeConfig::for_demo(args, environment).map(drop),
            Command::Generate(args) => args.check(),
            Command::Adapter(AdapterCommand::Inspect(args)) => args.inspect.resolve().map(drop),
            Command::Adapter(AdapterCommand::Export(args)) => args.inspect.resolve().map(drop),
            Command::Doctor(args) => args.resolve(environment).map(drop),
            Command::Replay(_) | Command::Embed(_) | Command::Score(_) | Command::Adapter(_) | Command::Store(_) => {
                Ok(())
            }
        };
        problems.extend(of_verb.err().into_iter().flat_map(|found| found.0));
        if problems.is_empty() { Ok(()) } else { Err(ConfigProblems(problems)) }
    }
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
    #[arg(long, global = true, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How to write the log, which goes to standard error
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl LogArgs {
    fn problems(&self) -> Vec<ConfigProblem> {
        let read = tracing_subscriber::EnvFilter::builder().parse(&self.log);
        let unreadable = |error: &dyn std::fmt::Display| ConfigProblem::Unreadable {
            flag: "--log".to_owned(),
            given_as: "--log".to_owned(),
            value: self.log.clone(),
            reason: error.to_string(),
        };
        read.err().map(|error| unreadable(&error)).into_iter().collect()
    }
}
