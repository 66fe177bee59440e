//! The verbs of the command line that talk to a server, over the same gRPC as everybody else.
//!
//! Tables and text are for people, `--json` is for programs; standard output carries results only, everything else goes
//! to standard error. `serve`, `demo` and `inspect` need the whole house and are the application's.

mod adapter;
mod bring;
mod client;
mod conversation;
mod exit;
mod generate;
mod interrupt;
mod logprobs;
mod pooling;
mod receipt;
mod replay;
mod table;
mod upload;

pub use adapter::run as adapter;
pub use bring::{BringError, Brought, Saved, bring, exit_of_hub, fetch};
pub use exit::{CliError, UsageError, exit_of};
pub use generate::run as generate;
pub use pooling::{embed, score};
pub use replay::{replay_request, run as replay};
pub use table::Table;
