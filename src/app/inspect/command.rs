//! `polydelta adapter inspect`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use super::super::base::OpenedBase;
use super::super::error::AppError;
use super::super::running_engine::compile_limits;
use super::drift::Drift;
use super::shift::{LogitShift, Reader};
use super::{InspectBase, InspectError, InspectLimits, Inspection, inspect_program, write_json, write_text};
use crate::adapters::import::AdapterFolder;
use crate::adapters::{CONFIG_FILE, StoreLimits};
use crate::cli::{Brought, CliError, Saved, bring};
use crate::config::{DriftArgs, Environment, InspectArgs, ModelSource, Terminal};
use crate::delta::{DeltaProgram, NamedBase, named_base};
use crate::files;
use crate::hub::{HubOptions, Wanted, cached};
use crate::model::base_layout;
use crate::ops::cpu::{CpuBackend, CpuOptions};
use crate::ops::{ComputeDtype, Numerics};
use crate::telemetry::Spinner;
use crate::text::{OwnTokens, Tokenizer};
use crate::types::Sha256Digest;

/// An adapter that lies ready, and the base that it is held against under the limits of a server with default settings.
pub(in crate::app) struct Opened {
    brought: Brought,
    base: OpenedBase,
    /// Read where the adapter was saved with a tokenizer.
    tokenizer: Option<Arc<Tokenizer>>,
    note: Option<String>,
    limits: InspectLimits,
}

/// Tokens that an adapter has and its base does not.
pub(in crate::app) struct Own {
    tokens: OwnTokens,
    file: Vec<u8>,
}

impl Opened {
    /// Blocks, and sends something where the hub is named.
    pub(in crate::app) fn open(args: &InspectArgs, environment: &Environment) -> Result<Self, AppError> {
        let (named, limits) = args.resolve()?;
        let brought = bring(&args.source, Saved::ALL, environment).map_err(CliError::from)?;
        brought.notes().iter().for_each(|note| tracing::info!("{note}"));
        let (source, note) = match named {
            Some(source) => (source, None),
            None => base_of(brought.dir(), environment),
        };
        let base = OpenedBase::open(&source, environment)?;
        let context = u32::try_from(base.spec.context_length).unwrap_or(u32::MAX);
        let settings = base.tokenizer_settings()?;
        let tokenizer = brought.saved_tokens().map(|_| base.tokenizer(&settings)).transpose()?;
        let own = settings.chat_template().map(|template| Sha256Digest::of(template.as_bytes()));
        let limits = InspectLimits {
            files: StoreLimits {
                max_adapter_bytes: limits.max_bytes,
                base_chat_templates: own.into_iter().collect(),
                ..StoreLimits::default()
            },
            compile: compile_limits(&limits, context),
        };
        Ok(Self { brought, base, tokenizer, note, limits })
    }

    pub(in crate::app) fn base(&self) -> InspectBase<'_> {
        InspectBase {
            name: &self.base.name,
            spec: &self.base.spec,
            checkpoint: &self.base.checkpoint,
            weights: self.base.own_numerics().weights,
            note: self.note.as_deref(),
        }
    }

    /// With what [`Opened::own_tokens`] found.
    pub(in crate::app) fn folder<'a>(&'a self, own: Option<&'a Own>) -> AdapterFolder<'a> {
        AdapterFolder { own_tokens: own.map(|own| own.file.as_slice()), ..self.brought.folder() }
    }

    /// The tokens of the adapter's tokenizer that the base's has not.
    pub(in crate::app) fn own_tokens(&self) -> Result<Option<Own>, InspectError> {
        let (Some(tokenizer), Some(saved)) = (&self.tokenizer, self.brought.saved_tokens()) else { return Ok(None) };
        let Some(tokens) = OwnTokens::beside(tokenizer, saved.clone())? else { return Ok(None) };
        Ok(Some(Own { file: tokens.to_file()?, tokens }))
    }

    fn inspect(&self) -> Result<(Inspection, DeltaProgram), InspectError> {
        let own = self.own_tokens()?;
        let (mut inspection, program) = inspect_program(self.base(), self.folder(own.as_ref()), &self.limits)?;
        if let Some(Own { tokens, .. }) = &own {
            let base_rows = u32::try_from(self.base.spec.vocab_size).unwrap_or(u32::MAX);
            tokens.check_rows(base_rows, inspection.vocab_size)?;
            inspection.own_tokens = tokens.count();
        }
        Ok((inspection, program))
    }

    pub(in crate::app) fn limits(&self) -> &InspectLimits {
        &self.limits
    }

    /// With what the adapter does to the base, and to the logits of prompts where there are any. Blocks.
    fn drift(
        &self,
        inspection: Inspection,
        program: DeltaProgram,
        prompts: Option<&Path>,
        terminal: Terminal,
    ) -> Result<Inspection, AppError> {
        let prompts = prompts.map(|path| self.prompts(path, &inspection)).transpose()?;
        let spinner = Spinner::start("comparing its changes with the base's weights", terminal.progress);
        let layout = base_layout(&self.base.spec);
        let mut drift =
            Drift::of(&program, &layout, self.base.checkpoint.as_ref()).map_err(super::InspectError::from)?;
        drop(spinner);
        drift.logits = prompts.map(|prompts| self.shift(program, &prompts, terminal)).transpose()?;
        Ok(Inspection { drift: Some(drift), ..inspection })
    }

    fn shift(&self, program: DeltaProgram, prompts: &[Vec<u32>], terminal: Terminal) -> Result<LogitShift, AppError> {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        // The CPU computes nothing in f16.
        let numerics = match self.base.own_numerics() {
            Numerics { compute: ComputeDtype::F16, .. } => Numerics::BF16,
            other => other,
        };
        let backend = CpuBackend::new(CpuOptions { threads, numerics, isa: None })?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let load = |backend: &CpuBackend, context| self.base.load(backend, context, terminal.progress);
        let mut reader = Reader::new(backend, &self.base.spec, program, longest, load)?;
        let _spinner = Spinner::start(&format!("reading {} prompts twice", prompts.len()), terminal.progress);
        Ok(reader.shift(prompts)?)
    }

    /// The lines of a file that hold something, as tokens.
    fn prompts(&self, path: &Path, inspection: &Inspection) -> Result<Vec<Vec<u32>>, AppError> {
        let read = || String::from_utf8(files::read(path, files::MAX_SETTINGS_BYTES)?).map_err(std::io::Error::other);
        let shown = path.display().to_string();
        let text = read().map_err(|source| CliError::File { action: "reading", path: shown.clone(), source })?;
        let tokenizer = self.base.tokenizer(&self.base.tokenizer_settings()?)?;
        let virtual_tokens = inspection.virtual_tokens.map_or(0, |tokens| tokens.count as usize);
        let most = self.base.spec.context_length - virtual_tokens.min(self.base.spec.context_length);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let prompts = lines.map(|(at, line)| {
            let refused = |reason: String| AppError::Prompt { path: shown.clone(), line: at + 1, reason };
            let tokens = tokenizer.encode(line, true).map_err(|error| refused(error.to_string()))?;
            let fits = (1..=most).contains(&tokens.len());
            if fits { Ok(tokens) } else { Err(refused(format!("{} tokens, of 1 to {most}", tokens.len()))) }
        });
        let prompts = prompts.collect::<Result<Vec<_>, AppError>>()?;
        match prompts.is_empty() {
            true => Err(AppError::Prompt { path: shown, line: 1, reason: "the file has no prompt".to_owned() }),
            false => Ok(prompts),
        }
    }
}

/// Run the verb.
pub(in crate::app) async fn run(
    args: &DriftArgs,
    environment: &Environment,
    terminal: Terminal,
    out: &mut impl Write,
) -> Result<(), AppError> {
    let opened = tokio::task::block_in_place(|| Opened::open(&args.inspect, environment))?;
    let (base, json) = (opened.base(), args.inspect.json);
    let result = tokio::task::block_in_place(|| opened.inspect());
    let result = match result {
        Ok((inspection, program)) if args.against_base => {
            let prompts = args.prompts.as_deref();
            Ok(tokio::task::block_in_place(|| opened.drift(inspection, program, prompts, terminal))?)
        }
        result => result.map(|(inspection, _)| inspection),
    };
    let written = if json { write_json(&result, base, out) } else { write_text(&result, base, out) };
    written.map_err(CliError::Output)?;
    Ok(result.map(drop)?)
}

/// The base that the adapter's config names, where it is at hand: a folder, or in the hub's cache. Else the bundled one,
/// with a word on it. Sends nothing.
fn base_of(dir: &Path, environment: &Environment) -> (ModelSource, Option<String>) {
    let named =
        files::read(&dir.join(CONFIG_FILE), files::MAX_SETTINGS_BYTES).ok().and_then(|config| named_base(&config));
    let Some(NamedBase { name, revision }) = named else {
        let note = "the adapter names no base, so this is the demo's model: name another with --model";
        return (ModelSource::Bundled, Some(note.to_owned()));
    };
    let found = |source| (source, Some("the base that the adapter names; name another with --model".to_owned()));
    if Path::new(&name).join("config.json").is_file() {
        return found(ModelSource::Dir(name.into()));
    }
    if name.ends_with(".gguf") && Path::new(&name).is_file() {
        return found(ModelSource::Gguf(name.into()));
    }
    let at = revision.map_or_else(|| name.clone(), |revision| format!("{name}@{revision}"));
    let in_cache = at.parse().ok().filter(|repository| {
        let options = HubOptions::from_environment(environment);
        options.is_ok_and(|options| cached(&options, repository, Wanted::Model).is_some())
    });
    match in_cache {
        Some(repository) => found(ModelSource::Hub(repository)),
        None => {
            let note = format!(
                "the adapter was trained on {name:?}, which is no folder here and not in the hub's cache, so this is the \
                 demo's model: name its base with --model"
            );
            (ModelSource::Bundled, Some(note))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is inspected against, for a config in a folder, with what the hub's cache has.
    fn base_for(config: &str, cached: &[&str]) -> (ModelSource, String) {
        let adapter = tempfile::tempdir().unwrap();
        fs::write(adapter.path().join(CONFIG_FILE), config).unwrap();
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join("hub/models--org--name");
        let sha = "0123456789abcdef0123456789abcdef01234567";
        for file in cached {
            fs::create_dir_all(repository.join("refs")).unwrap();
            fs::create_dir_all(repository.join("snapshots").join(sha)).unwrap();
            fs::write(repository.join("refs/main"), sha).unwrap();
            fs::write(repository.join("snapshots").join(sha).join(file), "{}").unwrap();
        }
        let mut environment = Environment::default();
        environment.hub.home = Some(home.path().to_owned());
        let (source, note) = base_of(adapter.path(), &environment);
        (source, note.unwrap())
    }

    #[test]
    fn the_base_is_the_one_that_the_config_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        let named = serde_json::json!({ "base_model_name_or_path": folder.path() }).to_string();
        assert_eq!(base_for(&named, &[]).0, ModelSource::Dir(folder.path().to_owned()));

        let named = r#"{"base_model_name_or_path": "org/name", "revision": null}"#;
        let whole = ["config.json", "tokenizer.json", "model.safetensors"];
        assert_eq!(base_for(named, &whole).0, ModelSource::Hub("org/name".parse().unwrap()));
        let (source, note) = base_for(named, &whole[..2]);
        assert!(source == ModelSource::Bundled && note.contains("\"org/name\"") && note.contains("--model"), "{note}");
        let revision = r#"{"base_model_name_or_path": "org/name", "revision": "v2"}"#;
        assert_eq!(base_for(revision, &whole).0, ModelSource::Bundled, "another revision is in the cache");

        for config in
            ["{}", r#"{"base_model_name_or_path": null}"#, r#"{"base_model_name_or_path": ""}"#, "[", "\u{feff}{}"]
        {
            let (source, note) = base_for(config, &whole);
            assert!(source == ModelSource::Bundled && note.contains("names no base"), "{config}: {note}");
        }
        let marked = format!("\u{feff}{named}");
        assert_eq!(base_for(&marked, &whole).0, ModelSource::Hub("org/name".parse().unwrap()));
        let strange = r#"{"base_model_name_or_path": "../../etc/x\u001b[31m"}"#;
        assert!(!base_for(strange, &whole).1.contains('\u{1b}'), "names are shown on terminals");
    }
}
