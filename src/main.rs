//! The polydelta command.

use clap::Parser;
use polydelta::config::{Args, Environment, Exit};

fn main() -> Exit {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    polydelta::app::run(&args, &Environment::of_process())
}
