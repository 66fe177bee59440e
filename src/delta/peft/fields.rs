//! Reading `adapter_config.json` strictly: every field is used, known not to matter, or refused.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;

use super::json::{is_neutral, without_mark};
use crate::delta::DeltaError;
use crate::files::{Json, parse_ordered};

/// Fields that describe training, provenance or tooling and never the maths of inference, for every method: those of
/// every PEFT to date, then those that other programs write beside them.
const IGNORED: [&str; 18] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_weights",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    // PEFT before 0.4: whether `eval()` adds the update to the weights, which is the same sum.
    "merge_weights",
    // unsloth: which fixes the training had.
    "unsloth_fixed",
    "unsloth_version",
    // ms-swift: its own name of the method, the dtype of training, the learning rates of LoRA+.
    "swift_type",
    "lora_dtype",
    "lorap_emb_lr",
    "lorap_lr_ratio",
    // LLaMA-Factory, axolotl, trl: the learning rates of LoRA+, the version of the library that saved it.
    "loraplus_lr_embedding",
    "loraplus_lr_ratio",
    "transformers_version",
];

/// Fields that are known to change the maths, of PEFT to date and of its forks. Switched on they are refused where no
/// method reads them, whatever the operator lets pass.
const UNSUPPORTED: [&str; 35] = [
    "alora_invocation_tokens",
    "arrow_config",
    "bias",
    "ensure_weight_tying",
    "feedforward_modules",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "alpha_pattern",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "postprocess_past_key_value_function",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    // PEFT before 0.3, ms-swift: which parts of a fused projection have LoRA.
    "enable_lora",
    "use_merged_linear",
    // ms-swift.
    "model_key_mapping",
    "use_qa_lora",
    // The forks of DoRA, MoRA, LoRAMoE and HydraLoRA.
    "Wdecompose_target_modules",
    "dora_simple",
    "use_mora",
    "lora_nums",
    "use_hydralora",
];

/// Most entries of a list or table. Adapters that name every linear module of a large model have about a thousand.
const MAX_ENTRIES: usize = 16_384;

/// Most refusals told at once.
const MAX_REFUSALS: usize = 100;

/// LoRA variants whose field holds a nested config: an empty one is that config with its defaults, which is on.
const ON_WHERE_EMPTY: [&str; 4] = ["arrow_config", "kasa_config", "monteclora_config", "use_bdlora"];

/// Most unknown fields let pass; they are kept and shown.
const MAX_UNKNOWN: usize = 64;

/// Most characters of a field's name that are shown.
const MAX_NAME_SHOWN: usize = 80;

/// What becomes of a field that is not known and switches something on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnknownFields {
    /// It is refused by name.
    Refused,
    /// It is noted.
    Noted,
}

/// The fields of a config, with the record of which were looked at.
pub(crate) struct Fields {
    fields: Vec<(String, Json)>,
    used: RefCell<BTreeSet<String>>,
}

impl Fields {
    /// Parse the file. A byte order mark, as editors put it there, is passed over.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DeltaError> {
        let fields =
            parse_ordered(without_mark(bytes)).map_err(|error| DeltaError::Json { reason: error.to_string() })?;
        Ok(Self { fields, used: RefCell::default() })
    }

    /// With the fields of the object at `field` in its place, as `field.name`; as it was where there is no object.
    pub(crate) fn flattened(mut self, field: &str) -> Self {
        let Some(at) = self.fields.iter().position(|(name, value)| name == field && matches!(value, Json::Object(_)))
        else {
            return self;
        };
        if let (_, Json::Object(inner)) = self.fields.remove(at) {
            self.fields.extend(inner.into_iter().map(|(name, value)| (format!("{field}.{name}"), value)));
        }
        self
    }

    /// Whether a field is there and is not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.raw(field).is_some_and(|value| *value != Json::Null)
    }

    /// Whether there is a field of such a name.
    pub(crate) fn any(&self, is_such: impl Fn(&str) -> bool) -> bool {
        self.fields.iter().any(|(name, _)| is_such(name))
    }

    /// The value of a field, marked as used; null counts as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Json> {
        self.used.borrow_mut().insert(field.to_owned());
        self.peek(field)
    }

    /// The value of a field, which is not marked as used by that.
    pub(crate) fn peek(&self, field: &str) -> Option<&Json> {
        self.raw(field).filter(|value| **value != Json::Null)
    }

    fn raw(&self, field: &str) -> Option<&Json> {
        self.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    /// Whether a field switches something on; it is not marked as used.
    pub(crate) fn is_set(&self, field: &str) -> bool {
        self.raw(field).is_some_and(|value| is_on(field, value))
    }

    /// Mark fields that never change inference for this method.
    pub(crate) fn ignore(&self, fields: &[&str]) {
        self.used.borrow_mut().extend(fields.iter().map(|field| (*field).to_owned()));
    }

    /// Refuse every field that was neither used nor ignored, unless its value switches nothing on. Returns the unknown
    /// ones that were let pass.
    pub(crate) fn finish(&self, unknown: UnknownFields) -> Result<Vec<String>, DeltaError> {
        let (mut refused, noted) = self.look(unknown, 1);
        refused.pop().map_or(Ok(noted), Err)
    }

    /// What [`Fields::finish`] refuses, all of it within reason.
    pub(crate) fn refusals(&self, unknown: UnknownFields) -> Vec<DeltaError> {
        self.look(unknown, MAX_REFUSALS).0
    }

    /// Up to `count` refusals, and the names of the fields let pass.
    fn look(&self, unknown: UnknownFields, count: usize) -> (Vec<DeltaError>, Vec<String>) {
        self.ignore(&IGNORED);
        let used = self.used.borrow();
        let (mut refused, mut noted) = (Vec::new(), Vec::new());
        for (name, _) in self.fields.iter().filter(|(name, value)| !used.contains(name) && is_on(name, value)) {
            if refused.len() == count {
                break;
            }
            if UNSUPPORTED.contains(&name.as_str()) {
                refused.push(self.unsupported(name, hint(name)));
            } else if unknown == UnknownFields::Noted && noted.len() < MAX_UNKNOWN {
                noted.push(shown_name(name));
            } else {
                refused.push(DeltaError::UnknownField { field: shown_name(name), found: self.shown(name) });
            }
        }
        (refused, noted)
    }

    pub(crate) fn bool_or(&self, field: &str, default: bool) -> Result<bool, DeltaError> {
        match self.get(field) {
            None => Ok(default),
            Some(Json::Bool(value)) => Ok(*value),
            Some(_) => Err(self.bad(field, "true or false")),
        }
    }

    pub(crate) fn usize(&self, field: &str) -> Result<Option<usize>, DeltaError> {
        self.get(field).map(|value| whole(value).ok_or_else(|| self.bad(field, "a whole number"))).transpose()
    }

    pub(crate) fn f64(&self, field: &str) -> Result<Option<f64>, DeltaError> {
        let number = |value: &Json| value.as_f64().ok_or_else(|| self.bad(field, "a finite number"));
        self.get(field).map(number).transpose()
    }

    pub(crate) fn str(&self, field: &str) -> Result<Option<&str>, DeltaError> {
        match self.get(field) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(field, "a string")),
        }
    }

    /// A list of strings, or one string for a pattern.
    pub(crate) fn names(&self, field: &str) -> Result<Option<Names>, DeltaError> {
        match self.get(field) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(Names::Pattern(text.clone()))),
            Some(Json::Array(items)) => {
                self.check_entries(field, items.len())?;
                let texts = items.iter().map(|item| match item {
                    Json::String(text) => Ok(text.clone()),
                    _ => Err(self.bad(field, "a list of strings, or a string")),
                });
                Ok(Some(Names::List(texts.collect::<Result<_, _>>()?)))
            }
            Some(_) => Err(self.bad(field, "a list of strings, or a string")),
        }
    }

    /// One whole number or a list of them.
    pub(crate) fn indices(&self, field: &str) -> Result<Option<Vec<usize>>, DeltaError> {
        let expected = "a whole number, or a list of them";
        match self.get(field) {
            None => Ok(None),
            Some(Json::Array(items)) if items.is_empty() => Ok(None),
            Some(Json::Array(items)) => {
                self.check_entries(field, items.len())?;
                let indices: Option<Vec<usize>> = items.iter().map(whole).collect();
                indices.map(Some).ok_or_else(|| self.bad(field, expected))
            }
            Some(value) => whole(value).map(|index| Some(vec![index])).ok_or_else(|| self.bad(field, expected)),
        }
    }

    /// A list of token ids within a field: at least one, each once, all of a vocabulary of so many tokens.
    pub(crate) fn ids(&self, field: &str, list: &Json, vocab_size: usize) -> Result<Vec<u32>, DeltaError> {
        let bad = || self.bad(field, "token ids, each once");
        let Json::Array(items) = list else { return Err(bad()) };
        if items.is_empty() {
            return Err(bad());
        }
        let ids: Vec<usize> = items.iter().map(|item| whole(item).ok_or_else(bad)).collect::<Result<_, _>>()?;
        let tokens = ids.iter().max().map_or(0, |largest| largest + 1);
        if tokens > vocab_size {
            let (of, reason) = (field.to_owned(), "with as many as may be added to it");
            return Err(DeltaError::ResizedVocabulary { of, tokens, vocab_size, reason });
        }
        let mut seen = BTreeSet::new();
        ids.into_iter().map(|id| if seen.insert(id) { Ok(id as u32) } else { Err(bad()) }).collect()
    }

    /// A table of numbers by pattern, in file order.
    pub(crate) fn pattern(&self, field: &str) -> Result<Vec<(String, f64)>, DeltaError> {
        let expected = "an object of finite numbers";
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Json::Object(entries)) => {
                self.check_entries(field, entries.len())?;
                let entry = |(key, value): &(String, Json)| match value.as_f64() {
                    Some(number) => Ok((key.clone(), number)),
                    None => Err(self.bad(field, expected)),
                };
                entries.iter().map(entry).collect()
            }
            Some(_) => Err(self.bad(field, expected)),
        }
    }

    /// Each entry is held against each module of the base, so there is a limit to them.
    fn check_entries(&self, field: &str, count: usize) -> Result<(), DeltaError> {
        if count <= MAX_ENTRIES { Ok(()) } else { Err(self.bad(field, "at most 16384 entries")) }
    }

    pub(crate) fn bad(&self, field: &str, expected: &'static str) -> DeltaError {
        DeltaError::BadField { field: field.to_owned(), found: self.shown(field), expected }
    }

    pub(crate) fn unsupported(&self, field: &str, hint: impl Into<Cow<'static, str>>) -> DeltaError {
        DeltaError::UnsupportedField { field: shown_name(field), found: self.shown(field), hint: hint.into() }
    }

    fn shown(&self, field: &str) -> String {
        self.raw(field).map_or_else(|| "absent".to_owned(), |value| value.to_string().chars().take(80).collect())
    }
}

/// Whether a value switches something on.
fn is_on(name: &str, value: &Json) -> bool {
    match value {
        Json::Object(_) if ON_WHERE_EMPTY.contains(&name) => true,
        value => !is_neutral(value),
    }
}

/// What to do about a field that is refused.
fn hint(field: &str) -> &'static str {
    match field {
        "modules_to_save" => " yet: merge the adapter into its base and serve that as --model, or train without it",
        _ => "",
    }
}

/// A field's name as it can be shown anywhere.
fn shown_name(name: &str) -> String {
    name.chars().take(MAX_NAME_SHOWN).flat_map(char::escape_debug).collect()
}

fn whole(value: &Json) -> Option<usize> {
    let is_whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0 && *number < 9e15;
    value.as_f64().filter(is_whole).map(|number| number as usize)
}

/// How a config names modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A regular expression that must match the whole path.
    Pattern(String),
    /// Paths or their last parts.
    List(Vec<String>),
}

impl Names {
    /// A list.
    pub(crate) fn of(names: &[&str]) -> Self {
        Self::List(names.iter().map(|name| (*name).to_owned()).collect())
    }
}
