//! Reading `adapter_config.json` strictly: every field is used, known not to matter, or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::json::Json;
use crate::delta::DeltaError;

/// Fields that describe training, provenance or tooling and never the maths of inference, for every method.
const IGNORED: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_weights",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
];

/// Most entries of a list or table. Adapters that name every linear module of a large model have about a thousand.
const MAX_ENTRIES: usize = 16_384;

/// Most refusals told at once.
const MAX_REFUSALS: usize = 100;

/// LoRA variants whose field holds a nested config: an empty one is that config with its defaults, which is on.
const ON_WHERE_EMPTY: [&str; 5] = ["arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config"];

/// The fields of a config, with the record of which were looked at.
pub(crate) struct Fields {
    fields: Vec<(String, Json)>,
    used: RefCell<BTreeSet<String>>,
}

impl Fields {
    /// Parse the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DeltaError> {
        match serde_json::from_slice(bytes) {
            Ok(Json::Object(fields)) => Ok(Self { fields, used: RefCell::default() }),
            Ok(_) => Err(DeltaError::Json { reason: "it is not an object".to_owned() }),
            Err(error) => Err(DeltaError::Json { reason: error.to_string() }),
        }
    }

    /// The value of a field, marked as used; null counts as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&Json> {
        self.used.borrow_mut().insert(field.to_owned());
        self.raw(field).filter(|value| **value != Json::Null)
    }

    fn raw(&self, field: &str) -> Option<&Json> {
        self.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }

    /// Mark fields that never change inference for this method.
    pub(crate) fn ignore(&self, fields: &[&str]) {
        self.used.borrow_mut().extend(fields.iter().map(|field| (*field).to_owned()));
    }

    /// Refuse every field that was neither used nor ignored, unless its value switches nothing on.
    pub(crate) fn finish(&self) -> Result<(), DeltaError> {
        self.first_refusals(1).pop().map_or(Ok(()), Err)
    }

    /// What [`Fields::finish`] refuses, all of it within reason.
    pub(crate) fn refusals(&self) -> Vec<DeltaError> {
        self.first_refusals(MAX_REFUSALS)
    }

    fn first_refusals(&self, count: usize) -> Vec<DeltaError> {
        self.ignore(&IGNORED);
        let used = self.used.borrow();
        let neutral = |name: &str, value: &Json| match value {
            Json::Object(_) if ON_WHERE_EMPTY.contains(&name) => false,
            value => value.is_neutral(),
        };
        let refused = self.fields.iter().filter(|(name, value)| !used.contains(name) && !neutral(name, value));
        refused.take(count).map(|(name, _)| self.unsupported(name, "")).collect()
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
        match self.get(field) {
            None => Ok(None),
            Some(Json::Number(value)) if value.is_finite() => Ok(Some(*value)),
            Some(_) => Err(self.bad(field, "a finite number")),
        }
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

    /// A table of numbers by pattern, in file order.
    pub(crate) fn pattern(&self, field: &str) -> Result<Vec<(String, f64)>, DeltaError> {
        let expected = "an object of finite numbers";
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Json::Object(entries)) => {
                self.check_entries(field, entries.len())?;
                let entry = |(key, value): &(String, Json)| match value {
                    Json::Number(number) if number.is_finite() => Ok((key.clone(), *number)),
                    _ => Err(self.bad(field, expected)),
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

    pub(crate) fn unsupported(&self, field: &str, hint: &'static str) -> DeltaError {
        DeltaError::UnsupportedField { field: field.chars().take(80).collect(), found: self.shown(field), hint }
    }

    fn shown(&self, field: &str) -> String {
        self.raw(field).map_or_else(|| "absent".to_owned(), |value| value.to_string().chars().take(80).collect())
    }
}

fn whole(value: &Json) -> Option<usize> {
    match value {
        Json::Number(number) if *number >= 0.0 && number.fract() == 0.0 && *number < 9e15 => Some(*number as usize),
        _ => None,
    }
}

/// How a config names modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// A regular expression that must match the whole path.
    Pattern(String),
    /// Paths or their last parts.
    List(Vec<String>),
}
