//! The polydelta command.

use polydelta::config::{Environment, Exit, parse};

fn main() -> Exit {
    let environment = Environment::of_process();
    match parse(std::env::args_os().collect(), &environment) {
        Ok(args) => polydelta::app::run(&args, &environment),
        Err(refused) => refused.report(),
    }
}
