//! `polydelta adapter inspect`.

use std::io::Write;

use super::super::base::OpenedBase;
use super::super::error::AppError;
use super::super::hall::compile_limits;
use super::{InspectBase, InspectLimits, inspect, write_json, write_text};
use crate::adapters::StoreLimits;
use crate::cli::CliError;
use crate::config::{Environment, InspectArgs};

/// Run the verb under the limits of a server with default settings.
pub(in crate::app) async fn run(
    args: &InspectArgs,
    environment: &Environment,
    out: &mut impl Write,
) -> Result<(), AppError> {
    let (source, limits) = args.resolve()?;
    let base = tokio::task::block_in_place(|| OpenedBase::open(&source, environment))?;
    let against =
        InspectBase { name: &base.name, spec: &base.spec, checkpoint: &base.checkpoint, dtype: base.own_dtype() };
    let context = u32::try_from(base.spec.context_length).unwrap_or(u32::MAX);
    let limits = InspectLimits {
        files: StoreLimits { max_adapter_bytes: limits.max_bytes, ..StoreLimits::default() },
        compile: compile_limits(&limits, context),
    };
    let result = tokio::task::block_in_place(|| inspect(against, &args.dir, &limits));
    let written = if args.json { write_json(&result, against, out) } else { write_text(&result, against, out) };
    written.map_err(CliError::Output)?;
    Ok(result.map(drop)?)
}
