//! `polydelta adapter inspect`: what an adapter folder compiles to, or why it is refused, without a server. It reads and
//! checks exactly as an upload does, so what is accepted here is accepted there under the same limits.

mod command;
mod drift;
mod groups;
mod shift;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::adapters::import::{AdapterFolder, ReadAdapter, read_folder};
use crate::adapters::{AdapterError, StoreLimits};
use crate::config::Exit;
use crate::config::units::format_bytes;
use crate::delta::{Base, BaseLayout, CompileLimits, DeltaError, DeltaProgram, compile, config_refusals, named_base};
use crate::model::{Checkpoint, DecoderSpec, Mlp, base_layout};
use crate::ops::{ExpertsSpec, WeightFormat};
use crate::text::{ChatError, ChatTemplate, OwnTokensError};
use crate::types::{AdapterVersion, DeltaGroup};
pub(super) use command::{Opened, run};
pub use drift::{Drift, KindOfChange, SiteChange};
pub use groups::OpGroup;
pub use shift::LogitShift;

/// The opened base an adapter is inspected against.
#[derive(Clone, Copy)]
pub struct InspectBase<'a> {
    /// For people: a folder, `hf:ORG/NAME`, the bundled model.
    pub name: &'a str,
    /// Its shape.
    pub spec: &'a DecoderSpec,
    /// Its numbers; some methods read them.
    pub checkpoint: &'a Checkpoint,
    /// Type of matrices on the device.
    pub weights: WeightFormat,
    /// Why it is this one, where nobody named it.
    pub note: Option<&'a str>,
}

/// Limits a server would set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectLimits {
    /// Sizes of files.
    pub files: StoreLimits,
    /// Ranks and virtual tokens.
    pub compile: CompileLimits,
}

/// Shape of the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BaseShape {
    /// As the operator named it.
    pub name: String,
    /// `model_type` of its config.
    pub family: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Columns of gate, and of up, of dense layers; 0 where there is none.
    pub intermediate_size: usize,
    /// What sparse layers choose from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsShape>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The head is the embedding.
    pub tied: bool,
    /// Why it is this one, where nobody named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The experts of sparse layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertsShape {
    /// Layers that have them.
    pub layers: usize,
    /// Of a layer.
    pub count: usize,
    /// That a token goes through.
    pub per_token: usize,
    /// Columns of gate, and of up, of each.
    pub intermediate_size: usize,
}

/// Virtual tokens at the head of every sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InspectedVirtualTokens {
    /// How many.
    pub count: u32,
    /// K and V are in the file (prefix tuning); else they are computed once from embeddings (prompt tuning).
    pub saved_kv: bool,
}

/// What an accepted adapter compiles to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Digest an upload would give it: 64 lower-case hexadecimal digits.
    pub version: String,
    /// The base it was compiled against.
    pub base: BaseShape,
    /// The base that the adapter says it was trained on. It is a note of the trainer's and decides nothing.
    pub trained_on: Option<String>,
    /// For people: `LoRA`, `DoRA`, `IA3` ….
    pub kind: String,
    /// Of its method: `addition`, `specification` or `reparameterization`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<&'static str>,
    /// What it was trained for, as peft spells it: `CAUSAL_LM`, `FEATURE_EXTRACTION`, `SEQ_CLS` or `TOKEN_CLS`.
    pub task: &'static str,
    /// Labels of its head; 0 without one.
    pub labels: u32,
    /// Largest rank of any low-rank op; 0 without one.
    pub max_rank: u32,
    /// Learned numbers.
    pub parameters: u64,
    /// Of its files.
    pub stored_bytes: u64,
    /// It has a chat template of its own, which is not the base's.
    pub has_chat_template: bool,
    /// Tokens that the tokenizer saved with it has and the base's has not.
    #[serde(skip_serializing_if = "is_zero")]
    pub own_tokens: usize,
    /// On the device, with matrices in [`Inspection::dtype`].
    pub device_bytes: u64,
    /// `f32` or `bf16`.
    pub dtype: &'static str,
    /// Prefix and prompt tuning only.
    pub virtual_tokens: Option<InspectedVirtualTokens>,
    /// Token ids that activate it (aLoRA only).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub invocation_tokens: Vec<u32>,
    /// It changes no KV, and shares all of it with the base.
    pub keeps_base_kv: bool,
    /// So many layers from the first on it leaves as they are: `serve --shared-layers` shares their work.
    pub base_layers: u32,
    /// Tokens of its vocabulary where the base has another number of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<u32>,
    /// Number of ops by class.
    pub ops: BTreeMap<&'static str, u32>,
    /// Where the ops attach, alike ones together.
    pub sites: Vec<OpGroup>,
    /// Fields of its config that are not known here and were let pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown_fields: Vec<String>,
    /// What it does to the base, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The folder, its files or their sizes.
    #[error(transparent)]
    Files(#[from] AdapterError),
    /// Its own chat template.
    #[error(transparent)]
    ChatTemplate(#[from] ChatError),
    /// Its own tokens.
    #[error(transparent)]
    Tokens(#[from] OwnTokensError),
    /// What the compiler refuses: every field of the config, or the first thing wrong with the tensors.
    #[error("{}", joined(.0))]
    Refused(Vec<DeltaError>),
    /// The base could not be read, or its numbers not be compared.
    #[error(transparent)]
    Base(Box<DeltaError>),
}

impl From<DeltaError> for InspectError {
    fn from(error: DeltaError) -> Self {
        Self::Base(Box::new(error))
    }
}

fn joined(refusals: &[DeltaError]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl InspectError {
    /// The exit code: a refusal is [`Exit::Rejected`], a missing file [`Exit::NotFound`], a failing disk or base
    /// [`Exit::Failure`].
    #[must_use]
    pub fn exit(&self) -> Exit {
        let ours =
            |error: &DeltaError| matches!(error, DeltaError::Base(_) | DeltaError::Candle(_) | DeltaError::Ops(_));
        match self {
            Self::Files(AdapterError::MissingFile { .. }) => Exit::NotFound,
            Self::Files(AdapterError::Io { .. }) | Self::Base(_) => Exit::Failure,
            Self::Refused(refusals) if refusals.iter().any(ours) => Exit::Failure,
            Self::Files(_) | Self::ChatTemplate(_) | Self::Tokens(_) | Self::Refused(_) => Exit::Rejected,
        }
    }

    /// One line for each thing that is refused.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Files(error) => vec![error.to_string()],
            Self::ChatTemplate(error) => vec![error.to_string()],
            Self::Tokens(error) => vec![error.to_string()],
            Self::Base(error) => vec![error.to_string()],
            Self::Refused(refusals) => refusals.iter().map(ToString::to_string).collect(),
        }
    }
}

/// An adapter that was read and would be accepted.
pub(super) struct Compiled {
    pub(super) version: AdapterVersion,
    pub(super) files: ReadAdapter,
    pub(super) program: DeltaProgram,
}

/// Read and compile, as an upload does.
pub(super) fn compiled(
    against: Base<'_>,
    folder: AdapterFolder<'_>,
    limits: &InspectLimits,
) -> Result<Compiled, InspectError> {
    let (version, files) = read_folder(folder, &limits.files)?;
    folder.chat_template.map_or(Ok(()), ChatTemplate::check)?;
    let program = compile(&files.config, &files.weights, against, limits.compile);
    let program = program.map_err(|first| refusals(first, &files.config, against.layout, limits.compile))?;
    Ok(Compiled { version, files, program })
}

/// Compile an adapter against a base. Blocks: some methods read the base's weights.
///
/// # Errors
/// [`InspectError`]: the files, or what is refused.
pub fn inspect(
    base: InspectBase<'_>,
    folder: AdapterFolder<'_>,
    limits: &InspectLimits,
) -> Result<Inspection, InspectError> {
    inspect_program(base, folder, limits).map(|(inspection, _)| inspection)
}

/// With the program.
fn inspect_program(
    base: InspectBase<'_>,
    folder: AdapterFolder<'_>,
    limits: &InspectLimits,
) -> Result<(Inspection, DeltaProgram), InspectError> {
    let layout = base_layout(base.spec);
    let against = Base { layout: &layout, weights: base.checkpoint };
    let Compiled { version, files, program } = compiled(against, folder, limits)?;
    let inspection = Inspection {
        version: version.to_string(),
        trained_on: named_base(&files.config).map(|base| base.name),
        stored_bytes: files.bytes(),
        has_chat_template: files.chat_template.is_some(),
        ..describe(base, &program)
    };
    Ok((inspection, program))
}

/// For what is not shown where there is none.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// All that is refused of the config, where it is the config; else what the compiler stopped at.
fn refusals(first: DeltaError, config: &[u8], layout: &BaseLayout, limits: CompileLimits) -> InspectError {
    let all = config_refusals(config, layout, limits);
    InspectError::Refused(if all.is_empty() { vec![first] } else { all })
}

/// What its program says.
fn describe(base: InspectBase<'_>, program: &DeltaProgram) -> Inspection {
    let facts = program.facts(base.weights);
    let virtual_tokens = facts.virtual_tokens;
    Inspection {
        version: String::new(),
        base: BaseShape::of(base),
        trained_on: None,
        kind: facts.kind,
        group: facts.group.map(DeltaGroup::as_str),
        task: facts.task.as_str(),
        labels: facts.task.labels(),
        max_rank: facts.max_rank,
        parameters: facts.parameters,
        stored_bytes: 0,
        has_chat_template: false,
        own_tokens: 0,
        device_bytes: facts.device_bytes,
        dtype: base.weights.as_str(),
        virtual_tokens: virtual_tokens
            .map(|tokens| InspectedVirtualTokens { count: tokens.count, saved_kv: tokens.saved_kv }),
        invocation_tokens: facts.invocation_tokens,
        keeps_base_kv: facts.keeps_base_kv,
        base_layers: facts.base_layers,
        vocab_size: facts.vocab_size,
        ops: facts.ops.iter().map(|(class, count)| (class.as_str(), *count)).collect(),
        sites: groups::group(program),
        unknown_fields: facts.unknown_fields,
        drift: None,
    }
}

impl BaseShape {
    /// Shape of a decoder.
    #[must_use]
    pub fn of(base: InspectBase<'_>) -> Self {
        let InspectBase { name, spec, note, .. } = base;
        Self {
            name: name.to_owned(),
            note: note.map(str::to_owned),
            family: spec.family.model_type(),
            layers: spec.layers.len(),
            hidden_size: spec.hidden_size,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            intermediate_size: spec.dense_size(),
            experts: ExpertsShape::of(spec),
            vocab_size: spec.vocab_size,
            tied: spec.tied,
        }
    }

    fn line(&self) -> String {
        let dense = self.experts.is_none_or(|experts| experts.layers < self.layers);
        let dense = dense.then(|| format!("inner {}", self.intermediate_size));
        let inner: Vec<String> = dense.into_iter().chain(self.experts.map(|experts| experts.to_string())).collect();
        format!(
            "{} ({}, {} layers, hidden {}, {} heads of {}, {} KV, {}, vocabulary {}, {})",
            self.name,
            self.family,
            self.layers,
            self.hidden_size,
            self.heads,
            self.head_dim,
            self.kv_heads,
            inner.join(", "),
            self.vocab_size,
            if self.tied { "tied" } else { "untied" },
        )
    }
}

impl ExpertsShape {
    fn of(spec: &DecoderSpec) -> Option<Self> {
        let ExpertsSpec { experts: count, experts_per_token: per_token, intermediate_size, .. } = spec.experts()?;
        let layers = spec.layers.iter().filter(|layer| matches!(layer.mlp, Mlp::Experts(_))).count();
        Some(Self { layers, count, per_token, intermediate_size })
    }
}

impl fmt::Display for ExpertsShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, count, per_token, intermediate_size } = self;
        write!(f, "{count} experts of {intermediate_size} in {layers} layers, {per_token} per token")
    }
}

fn row(out: &mut impl Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{label:<16}{text}")
}

fn lines(out: &mut impl Write, label: &str, texts: &[String]) -> io::Result<()> {
    texts.iter().enumerate().try_for_each(|(index, text)| row(out, if index == 0 { label } else { "" }, text))
}

fn note(base: InspectBase<'_>, out: &mut impl Write) -> io::Result<()> {
    base.note.map_or(Ok(()), |note| row(out, "", note))
}

/// Write an inspection, or what is refused, for people.
///
/// # Errors
/// The writer's.
pub fn write_text(
    result: &Result<Inspection, InspectError>,
    base: InspectBase<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let inspection = match result {
        Ok(inspection) => inspection,
        Err(error) => {
            row(out, "base", &BaseShape::of(base).line())?;
            note(base, out)?;
            return lines(out, "refused", &error.lines());
        }
    };
    row(out, "kind", &inspection.kind)?;
    if let Some(group) = inspection.group {
        row(out, "group", group)?;
    }
    let labels = if inspection.labels > 0 { format!(", labels: {}", inspection.labels) } else { String::new() };
    row(out, "task", &format!("{}{labels}", inspection.task))?;
    row(out, "version", &inspection.version)?;
    row(out, "base", &inspection.base.line())?;
    note(base, out)?;
    if let Some(name) = &inspection.trained_on {
        row(out, "trained on", name)?;
    }
    if inspection.max_rank > 0 {
        row(out, "max rank", &inspection.max_rank.to_string())?;
    }
    row(out, "parameters", &inspection.parameters.to_string())?;
    if let Some(tokens) = inspection.virtual_tokens {
        let source = if tokens.saved_kv { "K and V from the file" } else { "computed once from embeddings" };
        row(out, "virtual tokens", &format!("{} ({source})", tokens.count))?;
    }
    if !inspection.invocation_tokens.is_empty() {
        let ids: Vec<_> = inspection.invocation_tokens.iter().map(ToString::to_string).collect();
        row(out, "activated by", &format!("tokens {}", ids.join(" ")))?;
    }
    if inspection.keeps_base_kv {
        row(out, "KV cache", "the base's, shared whole")?;
    }
    if inspection.base_layers > 0 {
        row(out, "unchanged", &format!("the first {} layers", inspection.base_layers))?;
    }
    if let Some(tokens) = inspection.vocab_size {
        let base = inspection.base.vocab_size;
        let beside =
            if tokens as usize > base { format!("{} added", tokens as usize - base) } else { format!("of {base}") };
        row(out, "vocabulary", &format!("{tokens} tokens, {beside}"))?;
    }
    row(out, "on disk", &format_bytes(inspection.stored_bytes))?;
    row(out, "on the device", &format!("{} in {}", format_bytes(inspection.device_bytes), inspection.dtype))?;
    if inspection.has_chat_template {
        row(out, "chat template", "its own")?;
    }
    if !is_zero(&inspection.own_tokens) {
        row(out, "tokens", &format!("{} of its own", inspection.own_tokens))?;
    }
    if !inspection.unknown_fields.is_empty() {
        row(out, "unknown fields", &inspection.unknown_fields.join(", "))?;
    }
    lines(out, "ops", &inspection.sites.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let drift = inspection.drift.iter().flat_map(Drift::rows);
    drift.into_iter().try_for_each(|(label, texts)| lines(out, label, &texts))
}

/// Write an inspection, or `{"base", "refused": [texts]}`, as one JSON document.
///
/// # Errors
/// The writer's.
pub fn write_json(
    result: &Result<Inspection, InspectError>,
    base: InspectBase<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    match result {
        Ok(inspection) => serde_json::to_writer_pretty(&mut *out, inspection)?,
        Err(error) => {
            let shape = BaseShape::of(base);
            let document = serde_json::json!({ "base": shape, "refused": error.lines() });
            serde_json::to_writer_pretty(&mut *out, &document)?;
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests;
