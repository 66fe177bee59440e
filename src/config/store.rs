//! The verbs that look after the folder that keeps adapters, while no server uses it.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};

use super::environment::Environment;
use super::problem::{ConfigProblem, ConfigProblems};

/// `polydelta store …`.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Read everything in a store, verify it, and say what is there and what is wrong; changes nothing
    Check(StoreArgs),
    /// Say what would mend a store, and with --yes do it; data are removed only where --remove names them
    Repair(StoreRepairArgs),
}

/// Which store, and how to print.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// Folder that keeps uploaded adapters; $XDG_DATA_HOME/polydelta where it is not given
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub json: bool,
}

/// `polydelta store repair`.
#[derive(Clone, Debug, Args)]
pub struct StoreRepairArgs {
    /// Which.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Do it; without this only what would be done is printed
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub yes: bool,
    /// Give a name to an object that has lost its own; may be given several times
    #[arg(long, value_name = "NAME=VERSION")]
    pub bind: Vec<String>,
    /// Remove an entry as `check` names it, or all of a kind: `quarantine`, `nameless`; may be given several times
    #[arg(long, value_name = "ENTRY|quarantine|nameless")]
    pub remove: Vec<String>,
}

impl StoreArgs {
    /// The folder.
    ///
    /// # Errors
    /// Where none is given and the environment names none.
    pub fn folder(&self, environment: &Environment) -> Result<PathBuf, ConfigProblems> {
        self.store.clone().or_else(|| environment.data_dir()).ok_or_else(|| {
            let reason = "neither XDG_DATA_HOME nor HOME is set";
            ConfigProblems(vec![ConfigProblem::NoDefault { flag: "--store", reason }])
        })
    }
}
