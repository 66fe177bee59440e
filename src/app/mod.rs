//! The application: takes the resolved configuration, builds the rooms and connects them, and runs one command.
//!
//! | part | job |
//! |---|---|
//! | `address_space` | what the process sets aside where that is limited |
//! | `base` | the base model's folder, opened and read |
//! | `bundled` | the model in the binary |
//! | `computing` | what computes: the CPU, or a GPU where one was asked for or is there |
//! | `descriptors` | how many files may be open, and for what |
//! | `sizing` | how much memory the KV cache and the adapters get |
//! | `listen` | sockets for an address as it was written |
//! | `running_engine` | backend, decoder and engine, for whichever backend is chosen |
//! | [`doors`] | gRPC and HTTP at one address |
//! | `exporter` | where metrics are served |
//! | [`start`] | everything of a server, in order |
//! | `vigil` | the engine's end and its steps |
//! | `identity` | which base it is: the digest of its weights |
//! | `origin` | what receipts say of a server |
//! | `doctor` | `polydelta doctor`: what this machine computes with |
//! | `store` | `polydelta store`: check and repair, without a server |
//! | `housekeeping` | what is to be done from time to time while it runs |
//! | `serve`, `demo`, `inspect`, `export` | the commands that need the whole house |
//!
//! It is the only room that knows all the others. It decides nothing about requests and computes nothing.

mod address_space;
mod base;
mod bundled;
mod computing;
mod demo;
mod descriptors;
mod doctor;
pub mod doors;
mod dtype;
mod error;
mod export;
mod exporter;
mod gpu_error;
mod housekeeping;
mod identity;
pub mod inspect;
mod listen;
mod model_folder;
mod origin;
mod running_engine;
mod serve;
mod sizing;
pub mod start;
mod store;
mod vigil;

use std::io::{Write, stderr, stdout};
use std::time::Duration;

pub use base::OpenedBase;
pub use error::AppError;
pub use start::Server;

use crate::cli;
use crate::config::{
    AdapterCommand, Args, Command, Environment, Exit, LogArgs, LogFormat, Terminal, unknown_variables,
};
use crate::telemetry::{LogSettings, LogSink, init_logging};

/// How long the last lines may take to be written when the process ends.
const LOG_FLUSH: Duration = Duration::from_millis(500);

/// Run one command to its end.
#[must_use]
pub fn run(args: &Args, environment: &Environment) -> Exit {
    address_space::confine_allocator();
    let log = match LogSink::stderr() {
        Ok(log) => log,
        Err(error) => {
            let error = AppError::LogThread(error);
            // Nobody else writes there yet; whether it works changes nothing.
            let _ = writeln!(stderr(), "error: {error}");
            return error.exit();
        }
    };
    let _flush = FlushOnDrop(&log);
    run_logged(args, environment, &log)
}

/// RAII: the last lines are written at the end, also at that of a panic. A log that nobody reads does not hold it up.
struct FlushOnDrop<'a>(&'a LogSink);

impl Drop for FlushOnDrop<'_> {
    fn drop(&mut self) {
        // What could not be written in time is lost; there is nowhere left to say so.
        let _ = self.0.flush(LOG_FLUSH);
    }
}

fn run_logged(args: &Args, environment: &Environment, log: &LogSink) -> Exit {
    let terminal = Terminal::of_process(environment);
    let result = set_up_log(&args.log, terminal, log).and_then(|()| {
        report_unknown_variables(environment);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.enable_all().max_blocking_threads(address_space::blocking_threads());
        let runtime = runtime.build().map_err(AppError::Runtime)?;
        let result = runtime.block_on(dispatch(&args.command, environment, terminal, log));
        // A blocking read of standard input, say, must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => Exit::Ok,
        Err(error) if error.is_broken_pipe() => Exit::Ok,
        Err(error) => {
            log.line(&format!("error: {error}\n"));
            error.exit()
        }
    }
}

fn report_unknown_variables(environment: &Environment) {
    for unknown in unknown_variables(&environment.own) {
        let meant = unknown.meant.map(|meant| format!("; is {meant} meant?")).unwrap_or_default();
        tracing::warn!("{} is set and is the variable of no flag{meant}", unknown.name);
    }
}

fn set_up_log(args: &LogArgs, terminal: Terminal, log: &LogSink) -> Result<(), AppError> {
    let settings =
        LogSettings { filter: args.log.clone(), json: args.log_format == LogFormat::Json, color: terminal.color };
    Ok(init_logging(&settings, log.clone())?)
}

async fn dispatch(
    command: &Command,
    environment: &Environment,
    terminal: Terminal,
    log: &LogSink,
) -> Result<(), AppError> {
    let mut out = stdout();
    match command {
        Command::Serve(args) => serve::run(args, environment, log).await,
        Command::Demo(args) => demo::run(args, environment, (terminal, log), &mut out).await,
        Command::Generate(args) => Ok(cli::generate(args, terminal, &mut out).await?),
        Command::Replay(args) => Ok(cli::replay(args, &mut out).await?),
        Command::Embed(args) => Ok(cli::embed(args, &mut out).await?),
        Command::Score(args) => Ok(cli::score(args, &mut out).await?),
        Command::Doctor(args) => tokio::task::block_in_place(|| doctor::run(args, environment, &mut out)),
        Command::Store(command) => tokio::task::block_in_place(|| store::run(command, environment, &mut out)),
        Command::Adapter(AdapterCommand::Export(args)) => export::run(args, environment, &mut out).await,
        Command::Adapter(command) => {
            // `inspect` writes by itself: the verb's writer is in use by then.
            cli::adapter(command, environment, terminal, &mut out, async |args| {
                inspect::run(args, environment, terminal, &mut stdout()).await
            })
            .await
        }
    }
}
