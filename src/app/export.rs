//! `polydelta adapter export`: an adapter folder written as one of another method, without a server. What is written is
//! compiled again before it is, and shown as `inspect` shows it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::error::AppError;
use super::inspect::{Compiled, InspectBase, InspectLimits, Opened, compiled, inspect, write_json, write_text};
use crate::adapters::import::AdapterFolder;
use crate::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::cli::CliError;
use crate::config::{Environment, ExportArgs, ExportMethod};
use crate::delta::{Base, LoraFiles, named_base};
use crate::model::base_layout;

/// Run the verb.
pub(super) async fn run(args: &ExportArgs, environment: &Environment, out: &mut impl Write) -> Result<(), AppError> {
    let opened = tokio::task::block_in_place(|| Opened::open(&args.inspect, environment))?;
    let (base, limits) = (opened.base(), opened.limits());
    let result = tokio::task::block_in_place(|| {
        let own_tokens = opened.own_tokens()?;
        let folder = opened.folder(own_tokens.as_ref());
        let files = match args.method {
            ExportMethod::Lora => as_lora(base, folder, limits)?,
        };
        write(&files, folder, &args.to)?;
        let written = AdapterFolder { dir: &args.to, ..folder };
        Ok::<_, AppError>(inspect(base, written, limits))
    })?;
    let written = if args.inspect.json { write_json(&result, base, out) } else { write_text(&result, base, out) };
    written.map_err(CliError::Output)?;
    Ok(result.map(drop)?)
}

/// The files of an adapter as a LoRA, which give it back number by number. Blocks.
pub(super) fn as_lora(
    base: InspectBase<'_>,
    folder: AdapterFolder<'_>,
    limits: &InspectLimits,
) -> Result<LoraFiles, AppError> {
    let layout = base_layout(base.spec);
    let against = Base { layout: &layout, weights: base.checkpoint };
    let Compiled { files, program, .. } = compiled(against, folder, limits)?;
    let trained_on = named_base(&files.config).map(|base| base.name);
    let lora = program.to_lora(&layout, trained_on.as_deref())?;
    lora.check(&program, against, limits.compile)?;
    Ok(lora)
}

fn write(files: &LoraFiles, from: AdapterFolder<'_>, to: &Path) -> Result<(), CliError> {
    let failed = |path: &Path, source| CliError::File { action: "writing", path: path.display().to_string(), source };
    fs::create_dir_all(to).map_err(|source| failed(to, source))?;
    if fs::read_dir(to).map_err(|source| failed(to, source))?.next().is_some() {
        return Err(failed(to, io::Error::other("the folder is not empty")));
    }
    let template = from.chat_template.map(|template| (CHAT_TEMPLATE_FILE, template));
    let tokens = from.own_tokens.map(|tokens| (TOKENIZER_FILE, tokens));
    let parts = [(CONFIG_FILE, &files.config[..]), (WEIGHTS_FILE, &files.weights[..])];
    parts.into_iter().chain(template).chain(tokens).try_for_each(|(name, content)| {
        let path = to.join(name);
        fs::write(&path, content).map_err(|source| failed(&path, source))
    })
}

#[cfg(test)]
mod tests;
