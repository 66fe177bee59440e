//! The verb that looks at the machine.

use clap::Args;
use clap::builder::BoolishValueParser;

use super::checks::Checks;
use super::environment::Environment;
use super::gpu::{KernelCacheArgs, KernelCacheLocation};
use super::problem::ConfigProblems;

/// `polydelta doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Leave out how fast memory is, which takes a second or two to measure
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub no_measure: bool,
    /// Print one JSON document instead of text
    #[arg(long, value_parser = BoolishValueParser::new())]
    pub json: bool,
    /// Of a server on this machine.
    #[command(flatten)]
    pub kernel_cache: KernelCacheArgs,
}

impl DoctorArgs {
    /// Where a server that was set up alike keeps assembled kernels.
    ///
    /// # Errors
    /// [`ConfigProblems`] naming `--kernel-cache`.
    pub fn resolve(&self, environment: &Environment) -> Result<KernelCacheLocation, ConfigProblems> {
        let mut checks = Checks::default();
        let kernel_cache = self.kernel_cache.check(&mut checks, environment);
        checks.done(kernel_cache)
    }
}
