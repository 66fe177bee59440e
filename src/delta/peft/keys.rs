//! The keys of a file, in whichever of the usual ways they were written, as the parameters of the base's modules they
//! mean.
//!
//! PEFT saves `base_model.model.{path of the module}.{parameter}`. Other savers leave things in or out that say nothing:
//! the name of the adapter (`lora_A.default.weight`, of a plain `state_dict()`), the wrappers of torch.compile, FSDP,
//! DDP and gradient checkpointing, the prefix, or the level `model.` (an adapter that was trained on the base without
//! its head). They are taken off where one meaning is left. Where a key has none, or a file mixes two ways, it is refused: PEFT
//! would leave such tensors out with a warning and go on.

mod experts;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub(crate) use experts::SparsePart;
use experts::SparsePaths;

use crate::delta::DeltaError;
use crate::delta::layout::{BaseLayout, Module};

/// PEFT's prefix of every module path.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The one key of virtual tokens.
pub(crate) const VIRTUAL_TOKENS: &str = "prompt_embeddings";

/// What multitask prompt tuning saves beside them.
pub(crate) const TASK_COLS: &str = "prefix_task_cols";
pub(crate) const TASK_ROWS: &str = "prefix_task_rows";
const OF_NO_MODULE: [&str; 3] = [VIRTUAL_TOKENS, TASK_COLS, TASK_ROWS];

/// Tensors that all modules share: VeRA's and RandLoRA's projections, and VB-LoRA's bank.
pub(crate) const VERA_A: &str = "base_model.vera_A";
pub(crate) const VERA_B: &str = "base_model.vera_B";
pub(crate) const VECTOR_BANK: &str = "base_model.vblora_vector_bank";
pub(crate) const RANDLORA_A: &str = "base_model.randlora_A";
pub(crate) const RANDLORA_B: &str = "base_model.randlora_B";
const SHARED: [&str; 5] = [VERA_A, VERA_B, VECTOR_BANK, RANDLORA_A, RANDLORA_B];

/// The head of a classifier, under whichever of its names PEFT has saved it.
pub(crate) const HEAD_WEIGHT: &str = "base_model.model.score.weight";
pub(crate) const HEAD_BIAS: &str = "base_model.model.score.bias";
const HEADS: [&str; 2] = ["score", "classifier"];

/// Levels that a wrapper of torch adds anywhere in a path.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"];

/// Parameters that are modules with a weight (or a bias), as `lora_A.weight`.
const MODULES: [&str; 7] =
    ["lora_A", "lora_B", "ln_tuning_layers", "gralora_A_general", "gralora_B_general", "oft_R", "oft_embedding_R"];

/// Parameters that are tensors. AdaLoRA's `lora_A` and `lora_B` are, too.
const TENSORS: &[&str] = &[
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_velora_embed",
    "ia3_l",
    "beft_bias",
    "road_theta",
    "road_alpha",
    "shira_weight",
    "shira_indices",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "vera_lambda_b",
    "vera_lambda_d",
    "miss_block",
    "hra_u",
    "delora_A",
    "delora_B",
    "delora_lambda",
    "delora_w_norm",
    "gralora_A",
    "gralora_B",
    "boft_R",
    "boft_s",
    "vblora_logits_A",
    "vblora_logits_B",
    "vblora_logits_A_topk_indices",
    "vblora_logits_A_topk_weights",
    "vblora_logits_B_topk_indices",
    "vblora_logits_B_topk_weights",
    "trainable_tokens_delta",
    "fourierft_spectrum",
    "c3a_kernel",
    "randlora_lambda",
    "randlora_gamma",
    "hira_A",
    "hira_B",
    // These belong to no module.
    "vera_A",
    "vera_B",
    "vblora_vector_bank",
    "randlora_A",
    "randlora_B",
    VIRTUAL_TOKENS,
    TASK_COLS,
    TASK_ROWS,
];

/// Where else the path of a module ends.
const OTHERS: [&str; 5] =
    ["lora_magnitude_vector", "modules_to_save", "original_module", "base_layer", "token_adapter"];

/// Whether a path ends before this.
fn is_parameter(segment: &str) -> bool {
    MODULES.contains(&segment) || TENSORS.contains(&segment) || OTHERS.contains(&segment)
}

/// What the keys of a file mean.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The key PEFT would have written, and the file's own.
    pub(crate) known: BTreeMap<String, String>,
    /// Keys that mean nothing here, in order.
    pub(crate) unknown: Vec<String>,
    /// How the paths of the model it was trained on differ from the base's.
    pub(crate) level: Level,
}

/// Levels `model.` that the paths of the trained model have more than the base's: -1 for one trained without its head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Level(isize);

impl Level {
    /// The path a module has in the model the adapter was trained on, to which its config refers. `None`: it has no
    /// such module.
    pub(crate) fn path(self, module: &Module) -> Option<Cow<'_, str>> {
        self.path_of(&module.path)
    }

    /// As [`Self::path`], of anything that has a path.
    pub(crate) fn path_of(self, path: &str) -> Option<Cow<'_, str>> {
        match self.0 {
            0 => Some(Cow::Borrowed(path)),
            -1 => path.strip_prefix("model.").map(Cow::Borrowed),
            more => Some(Cow::Owned("model.".repeat(usize::try_from(more).ok()?) + path)),
        }
    }
}

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    /// `base_model` and `model` in front.
    lead: Vec<&'a str>,
    /// The rest of the module's path.
    core: String,
    /// `lora_A.weight`, `bias`, `ia3_l` ….
    parameter: String,
    /// The name of the adapter, where the key has it; `None` where it could have it; absent where it could not.
    adapter: Option<Option<&'a str>>,
}

impl<'a> Parts<'a> {
    fn of(key: &'a str) -> Self {
        let segments: Vec<&str> = key.split('.').filter(|segment| !WRAPPERS.contains(segment)).collect();
        let last = segments.len().saturating_sub(1);
        let end = segments.iter().position(|segment| is_parameter(segment)).unwrap_or(last);
        let (path, parameter) = segments.split_at(end);
        let lead = path.iter().take_while(|segment| matches!(**segment, "base_model" | "model")).count();
        let (lead, core) = path.split_at(lead);
        let (parameter, adapter) = parameter_of(parameter);
        Self { lead: lead.to_vec(), core: core.join("."), parameter, adapter }
    }

    /// The levels in front that belong to the trained model and not to PEFT.
    fn own_lead(&self) -> usize {
        let mut lead = self.lead.as_slice();
        while let Some(at) = lead.iter().position(|segment| *segment == "base_model") {
            lead = lead.get(at + 1..).unwrap_or_default();
            lead = lead.strip_prefix(["model"].as_slice()).unwrap_or(lead);
        }
        lead.len()
    }
}

/// A parameter without the name of the adapter, and that name. A magnitude is read with and without `.weight`.
fn parameter_of<'a>(segments: &[&'a str]) -> (String, Option<Option<&'a str>>) {
    const LEAVES: [&str; 2] = ["weight", "bias"];
    let is_leaf = |segment: &str| LEAVES.contains(&segment);
    match *segments {
        [name, leaf] if MODULES.contains(&name) && is_leaf(leaf) => (format!("{name}.{leaf}"), Some(None)),
        [wrapper @ "base_layer", name, leaf] if MODULES.contains(&name) && is_leaf(leaf) => {
            (format!("{wrapper}.{name}.{leaf}"), Some(None))
        }
        [wrapper @ "base_layer", name, adapter, leaf] if MODULES.contains(&name) && is_leaf(leaf) => {
            (format!("{wrapper}.{name}.{leaf}"), Some(Some(adapter)))
        }
        [name, adapter, leaf] if MODULES.contains(&name) && is_leaf(leaf) => {
            (format!("{name}.{leaf}"), Some(Some(adapter)))
        }
        [name @ "lora_magnitude_vector"] | [name @ "lora_magnitude_vector", "weight"] => (name.to_owned(), Some(None)),
        [name @ "lora_magnitude_vector", adapter] | [name @ "lora_magnitude_vector", adapter, "weight"] => {
            (name.to_owned(), Some(Some(adapter)))
        }
        [name] if TENSORS.contains(&name) => (name.to_owned(), Some(None)),
        [name, adapter] if TENSORS.contains(&name) => of_adapter(name, adapter),
        [wrapper @ "token_adapter", name @ "trainable_tokens_delta"] => (format!("{wrapper}.{name}"), Some(None)),
        [wrapper @ "token_adapter", name @ "trainable_tokens_delta", adapter] => {
            (format!("{wrapper}.{name}"), Some(Some(adapter)))
        }
        ["modules_to_save", adapter, leaf] if is_leaf(leaf) => (leaf.to_owned(), Some(Some(adapter))),
        _ => (segments.join("."), None),
    }
}

/// A tensor's name and the adapter's behind it, to which VB-LoRA appends what it saves instead of logits.
fn of_adapter<'a>(name: &str, adapter: &'a str) -> (String, Option<Option<&'a str>>) {
    let appended = ["_topk_indices", "_topk_weights"].into_iter();
    let appended = appended.filter(|_| name.starts_with("vblora_logits_"));
    match appended.filter_map(|end| Some((end, adapter.strip_suffix(end)?))).next() {
        Some((end, adapter)) => (format!("{name}{end}"), Some(Some(adapter))),
        None => (name.to_owned(), Some(Some(adapter))),
    }
}

/// The modules of the base by their path without the levels in front; those that share one are left out.
fn by_core(layout: &BaseLayout) -> BTreeMap<&str, (&Module, usize)> {
    let mut modules: BTreeMap<&str, Option<(&Module, usize)>> = BTreeMap::new();
    for module in layout.modules() {
        let core = module.path.strip_prefix("model.").unwrap_or(&module.path);
        let lead = usize::from(core.len() < module.path.len());
        let place = modules.entry(core).or_insert(Some((module, lead)));
        if place.is_some_and(|(other, _)| other.path != module.path) {
            *place = None;
        }
    }
    modules.into_iter().filter_map(|(core, module)| Some((core, module?))).collect()
}

impl Keys {
    /// Read the keys of a file for this base.
    ///
    /// # Errors
    /// [`DeltaError::SameTensor`] where two keys mean one parameter, [`DeltaError::MixedKeys`] where the file is written
    /// in two ways or holds two adapters.
    pub(crate) fn read<'a>(names: impl Iterator<Item = &'a str>, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let (modules, sparse) = (by_core(layout), SparsePaths::of(layout));
        let in_modules =
            |core: &str| modules.get(core).map(|(module, lead)| (Cow::Borrowed(module.path.as_str()), *lead as isize));
        let in_blocks = |parts: &Parts<'_>| {
            let part = sparse.part(&parts.core).filter(|part| part.takes(&parts.parameter));
            part.and_then(|part| Some((Cow::Owned(part.path()?), 1)))
        };
        let mut keys = Self::default();
        let (mut level, mut adapter) = (None, None);
        for name in names {
            let parts = Parts::of(name);
            let bare = parts.core.is_empty() && parts.lead.is_empty();
            let canonical = if bare && OF_NO_MODULE.contains(&parts.parameter.as_str()) {
                parts.parameter.clone()
            } else if let Some(shared) = shared(&parts) {
                shared.to_owned()
            } else if let Some((path, lead)) = in_modules(&parts.core).or_else(|| in_blocks(&parts)) {
                let own = parts.own_lead() as isize - lead;
                let prefixed = parts.lead.contains(&"base_model");
                same(&mut level, (own, prefixed), name, "in the levels before the layers")?;
                if let Some(of_key) = parts.adapter {
                    same(&mut adapter, of_key.map(str::to_owned), name, "in the name of the adapter within")?;
                }
                format!("{PREFIX}{path}.{}", parts.parameter)
            } else if let Some(head) = head(&parts) {
                let prefixed = parts.lead.contains(&"base_model");
                same(&mut level, (parts.own_lead() as isize, prefixed), name, "in the levels before the layers")?;
                head.to_owned()
            } else {
                keys.unknown.push(name.to_owned());
                continue;
            };
            if let Some(first) = keys.known.insert(canonical, name.to_owned()) {
                return Err(DeltaError::SameTensor { first, second: name.to_owned() });
            }
        }
        keys.level = Level(level.map_or(0, |((own, _), _)| own));
        Ok(keys)
    }
}

/// The tensor that all modules share, where a key means one. Its levels say nothing of those of modules.
fn shared(parts: &Parts<'_>) -> Option<&'static str> {
    let is_own = |key: &&&str| key.strip_prefix("base_model.") == Some(parts.parameter.as_str());
    SHARED.iter().find(is_own).filter(|_| parts.core.is_empty()).copied()
}

/// The parameter of a classifier's head, where a key means one.
fn head(parts: &Parts<'_>) -> Option<&'static str> {
    match parts.parameter.as_str() {
        "weight" if is_head(&parts.core) => Some(HEAD_WEIGHT),
        "bias" if is_head(&parts.core) => Some(HEAD_BIAS),
        _ => None,
    }
}

/// Whether this is a name of a classifier's head.
pub(crate) fn is_head(module: &str) -> bool {
    HEADS.contains(&module)
}

/// Hold what a key says against what the first key said.
pub(crate) fn same<T: PartialEq>(
    first: &mut Option<(T, String)>,
    found: T,
    name: &str,
    difference: &'static str,
) -> Result<(), DeltaError> {
    match first {
        Some((expected, _)) if *expected == found => Ok(()),
        Some((_, first)) => Err(DeltaError::MixedKeys { first: first.clone(), second: name.to_owned(), difference }),
        None => {
            *first = Some((found, name.to_owned()));
            Ok(())
        }
    }
}

/// The module of the base that a key is for.
pub(crate) fn module_of<'a>(key: &str, layout: &'a BaseLayout) -> Option<&'a Module> {
    by_core(layout).get(Parts::of(key).core.as_str()).map(|(module, _)| *module)
}

/// The first of some keys that is for a router or an expert of the base.
pub(crate) fn first_of_experts<'k>(keys: &'k [String], layout: &BaseLayout) -> Option<&'k String> {
    let paths = SparsePaths::of(layout);
    keys.iter().find(|key| paths.part(&Parts::of(key).core).is_some())
}

/// What a key is for of the base's routers and experts, and whether it is LoRA's.
pub(crate) fn sparse_part<'a>(key: &str, layout: &'a BaseLayout) -> Option<(SparsePart<'a>, bool)> {
    let parts = Parts::of(key);
    let part = SparsePaths::of(layout).part(&parts.core)?;
    let is_lora = part.takes(&parts.parameter);
    Some((part, is_lora))
}

/// Whether a key is one of a whole model: a weight or a bias, and nothing that a method adds.
pub(crate) fn is_of_a_model(key: &str) -> bool {
    let added = [
        "lora_",
        "ia3_",
        "ln_tuning",
        "prompt_",
        "modules_to_save",
        "hada_",
        "lokr_",
        "vera_",
        "oft_",
        "miss_",
        "hra_",
        "beft_",
        "_adapters.",
    ];
    let plain = key.ends_with(".weight") || key.ends_with(".bias");
    plain && !added.iter().any(|part| key.contains(part))
}

/// What the base has in place of a key that means nothing here, for people.
pub(crate) fn nearest(key: &str, layout: &BaseLayout) -> String {
    let parts = Parts::of(key);
    let modules = by_core(layout);
    let whole = format!("{}.{}", parts.core, parts.parameter);
    let within = |core: &str| whole.strip_prefix(core).and_then(|rest| rest.strip_prefix('.'));
    if let Some((module, parameter)) = modules.iter().find_map(|(core, (module, _))| Some((module, within(core)?))) {
        return format!("the base has the module `{}`, but the method has no `{parameter}` there", module.path);
    }
    let common = |path: &str| {
        let (ours, theirs) = (path.rsplit('.'), parts.core.rsplit('.'));
        ours.zip(theirs).take_while(|(ours, theirs)| ours == theirs).count()
    };
    let score = |module: &&Module| (std::cmp::Reverse(common(&module.path)), distance(&module.path, &parts.core));
    match layout.modules().min_by_key(score) {
        Some(module) => format!("the base has no such module; nearest is `{}`", module.path),
        None => "the base has no modules".to_owned(),
    }
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, of_a) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, of_b) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(of_a != of_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
