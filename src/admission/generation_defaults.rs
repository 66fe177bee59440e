//! What a model's makers want where a request does not say: `generation_config.json`, and where there is none
//! `config.json`, as in transformers. Reads bytes, not files: whoever opens the model folder hands them over.
//!
//! `do_sample` decides as it does in transformers: where it is false or absent, decoding is greedy and temperature,
//! top-k, top-p and min-p of the file mean nothing. The repetition penalty is a processor and not a warper there, so it
//! counts either way. A field that the file leaves out is neutral, as in vLLM; transformers would put top-k 50 there.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::files::{JsonError, parse_object};

/// Sampling and end-of-sequence ids of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationDefaults {
    /// 0 is greedy; else finite and > 0.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// In (0, 1].
    pub top_p: f32,
    /// In [0, 1].
    pub min_p: f32,
    /// Finite and > 0; 1 is neutral.
    pub repetition_penalty: f32,
    /// Ids that end a text, ascending, each below the vocabulary size. Empty: only `max_tokens` ends one.
    pub eos_token_ids: Vec<u32>,
    /// End-of-sequence ids of the files that the model has no row for: a tokenizer's added tokens, named by a finetune
    /// that never resized its embedding. The model cannot generate them, so leaving them out changes no output.
    pub unreachable_eos: Vec<u64>,
    /// Settings of the file that would change the output and that this server does not have, for the log at start.
    pub ignored: Vec<&'static str>,
}

impl Default for GenerationDefaults {
    /// Greedy, neutral, without an end of sequence.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            eos_token_ids: Vec::new(),
            unreachable_eos: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

/// A file that says something impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationDefaultsError {
    /// Not JSON.
    #[error("{file}: {reason}")]
    Json {
        /// Which file.
        file: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("{file} is not a JSON object")]
    NotAnObject {
        /// Which file.
        file: &'static str,
    },
    /// A field of the wrong type, or out of its range.
    #[error("{file}: {field} is {found}, expected {expected}")]
    BadField {
        /// Which file.
        file: &'static str,
        /// The field.
        field: &'static str,
        /// What stands there, shortened.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
}

const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

impl GenerationDefaults {
    /// Of a model: its `generation_config.json`, `None` where there is no such file, and its config, which was read with
    /// its weights. `vocab_size` is the width of its logits.
    ///
    /// # Errors
    /// What stands there cannot be meant.
    pub fn read(
        generation_config: Option<&[u8]>,
        config: &Map<String, Value>,
        vocab_size: u32,
    ) -> Result<Self, GenerationDefaultsError> {
        let config = File { name: CONFIG, object: Cow::Borrowed(config) };
        let eos_of_config = eos_of_config(&config, vocab_size)?;
        // With a file of its own transformers looks into config.json for nothing, not even for the end of sequence.
        let (file, eos) = match generation_config {
            None => (config, eos_of_config),
            Some(bytes) => {
                let file = File::parse(GENERATION_CONFIG, bytes)?;
                let eos = file.eos(&file.object, vocab_size)?.unwrap_or_default();
                (file, eos)
            }
        };
        let neutral = Self {
            repetition_penalty: file.repetition_penalty()?,
            eos_token_ids: eos.reachable,
            unreachable_eos: eos.unreachable,
            ignored: file.ignored(),
            ..Self::default()
        };
        if !file.flag("do_sample")?.unwrap_or(false) {
            return Ok(neutral);
        }
        Ok(Self {
            temperature: file.number("temperature", "a number above 0 beside do_sample", |n| n > 0.0)?.unwrap_or(1.0),
            top_k: file.top_k()?.unwrap_or(0),
            top_p: file.top_p()?,
            min_p: file.number("min_p", "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))?.unwrap_or(0.0),
            ..neutral
        })
    }
}

/// Multimodal configs keep the language model's part under `text_config`.
fn eos_of_config(config: &File<'_>, vocab_size: u32) -> Result<Eos, GenerationDefaultsError> {
    if let Some(ids) = config.eos(&config.object, vocab_size)? {
        return Ok(ids);
    }
    let text = config.object.get("text_config").and_then(Value::as_object);
    let ids = text.map(|text| config.eos(text, vocab_size)).transpose()?.flatten();
    Ok(ids.unwrap_or_default())
}

/// End-of-sequence ids, ascending: those a model can generate, and the others.
#[derive(Default)]
struct Eos {
    reachable: Vec<u32>,
    unreachable: Vec<u64>,
}

struct File<'a> {
    name: &'static str,
    object: Cow<'a, Map<String, Value>>,
}

impl File<'_> {
    fn parse(name: &'static str, bytes: &[u8]) -> Result<Self, GenerationDefaultsError> {
        match parse_object(bytes) {
            Ok(object) => Ok(Self { name, object: Cow::Owned(object) }),
            Err(JsonError::NotAnObject { .. }) => Err(GenerationDefaultsError::NotAnObject { file: name }),
            Err(error) => Err(GenerationDefaultsError::Json { file: name, reason: error.to_string() }),
        }
    }

    /// JSON null counts as absent.
    fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn bad(&self, field: &'static str, found: &Value, expected: &'static str) -> GenerationDefaultsError {
        let found = found.to_string().chars().take(80).collect();
        GenerationDefaultsError::BadField { file: self.name, field, found, expected }
    }

    fn flag(&self, field: &'static str) -> Result<Option<bool>, GenerationDefaultsError> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.bad(field, value, "true or false"));
        self.get(field).map(read).transpose()
    }

    fn number(
        &self,
        field: &'static str,
        expected: &'static str,
        allowed: impl Fn(f32) -> bool,
    ) -> Result<Option<f32>, GenerationDefaultsError> {
        let read = |value: &Value| {
            let number = value.as_f64().map(|number| number as f32);
            number.filter(|n| n.is_finite() && allowed(*n)).ok_or_else(|| self.bad(field, value, expected))
        };
        self.get(field).map(read).transpose()
    }

    fn top_k(&self) -> Result<Option<u32>, GenerationDefaultsError> {
        let read = |value: &Value| {
            let k = value.as_u64().ok_or_else(|| self.bad("top_k", value, "a whole number of at least 0"))?;
            Ok(u32::try_from(k).unwrap_or(u32::MAX))
        };
        self.get("top_k").map(read).transpose()
    }

    /// 1 and above keep all; 0 keeps the likeliest token alone.
    fn top_p(&self) -> Result<f32, GenerationDefaultsError> {
        let top_p = self.number("top_p", "a number of at least 0", |n| n >= 0.0)?;
        Ok(top_p.map_or(1.0, |top_p| top_p.clamp(f32::MIN_POSITIVE, 1.0)))
    }

    /// transformers insists on a float here, unless the number is 1.
    fn repetition_penalty(&self) -> Result<f32, GenerationDefaultsError> {
        const FIELD: &str = "repetition_penalty";
        if let Some(whole) = self.get(FIELD).filter(|value| value.is_i64() && value.as_i64() != Some(1)) {
            return Err(self.bad(FIELD, whole, "a number above 0 with a decimal point"));
        }
        Ok(self.number(FIELD, "a number above 0", |n| n > 0.0)?.unwrap_or(1.0))
    }

    /// A number or a list of numbers.
    fn eos(&self, object: &Map<String, Value>, vocab_size: u32) -> Result<Option<Eos>, GenerationDefaultsError> {
        let Some(value) = object.get("eos_token_id").filter(|value| !value.is_null()) else { return Ok(None) };
        let bad = || self.bad("eos_token_id", value, "a token id or a list of token ids");
        let one = |id: &Value| match id.as_i64() {
            // No token has such an id, and that is what it says.
            Some(negative) if negative < 0 => Ok(None),
            _ => id.as_u64().map(Some).ok_or_else(bad),
        };
        let ids: BTreeSet<u64> = match value {
            Value::Array(ids) if ids.is_empty() => return Err(bad()),
            Value::Array(ids) => ids.iter().filter_map(|id| one(id).transpose()).collect::<Result<_, _>>()?,
            id => one(id)?.into_iter().collect(),
        };
        let mut eos = Eos::default();
        for id in ids {
            match u32::try_from(id) {
                Ok(small) if small < vocab_size => eos.reachable.push(small),
                _ => eos.unreachable.push(id),
            }
        }
        Ok(Some(eos))
    }

    fn ignored(&self) -> Vec<&'static str> {
        let meant = |value: &Value, neutral: Option<f64>| match value {
            Value::Bool(on) => *on,
            Value::Number(number) => number.as_f64() != neutral,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Null => false,
        };
        let here = |(field, neutral): &(&'static str, Option<f64>)| {
            self.get(field).is_some_and(|value| meant(value, *neutral)).then_some(*field)
        };
        UNSUPPORTED.iter().filter_map(here).collect()
    }
}

/// Settings of transformers that change which tokens come out, with the number that means "off".
const UNSUPPORTED: [(&str, Option<f64>); 20] = [
    ("bad_words_ids", None),
    ("begin_suppress_tokens", None),
    ("diversity_penalty", Some(0.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("exponential_decay_length_penalty", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("guidance_scale", Some(1.0)),
    ("min_length", Some(0.0)),
    ("min_new_tokens", Some(0.0)),
    ("no_repeat_ngram_size", Some(0.0)),
    ("num_beams", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("sequence_bias", None),
    ("stop_strings", None),
    ("suppress_tokens", None),
    ("typical_p", Some(1.0)),
];

#[cfg(test)]
mod tests;
