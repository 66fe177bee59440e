//! What the files beside `tokenizer.json` say of tokens and templates, put together as transformers does.
//!
//! `tokenizer_config.json` names special tokens and describes added ones; where it does not describe them,
//! `special_tokens_map.json` and `added_tokens.json` do. What is found is added to the tokenizer and given to the chat
//! template by name. `add_bos_token` and `add_eos_token` say nothing: beside a `tokenizer.json` transformers leaves
//! them to its post-processor.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::error::TokenizerError;
use super::tokenizer_class::TokenizerClass;
use crate::files::{self, MAX_SETTINGS_BYTES, MAX_TOKENIZER_BYTES};

/// Names that transformers gives to special tokens, in its order. A model may have more, which end in `_token`.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const CONFIG: &str = "tokenizer_config.json";

/// What the files say.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSettings {
    /// Special tokens with a name, in transformers' order.
    pub(super) named: Vec<(String, AddedToken)>,
    /// Special tokens without one.
    pub(super) extra: Vec<AddedToken>,
    /// Descriptions of added tokens, by the id they had where they were written down.
    pub(super) added: BTreeMap<u32, AddedToken>,
    /// The descriptions are the config's; those of `added_tokens.json` yield to what the tokenizer has at their ids.
    pub(super) described: bool,
    /// Special tokens written out in a text are text.
    pub(super) split_special_tokens: bool,
    /// `chat_template.jinja`, else `chat_template` of the config.
    pub(super) chat_template: Option<String>,
    /// The one called `tool_use`, for chats with tools.
    pub(super) tool_template: Option<String>,
    /// What transformers makes of `tokenizer.json`.
    pub(super) class: TokenizerClass,
    /// Added tokens that the model takes for control tokens beside the special ones; unset: those its template writes.
    pub(super) control_tokens: Option<Vec<String>>,
}

impl TokenizerSettings {
    /// Read the files of a model folder beside its `config.json`, whose fields are `model`. Those that are not there say
    /// nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] and [`TokenizerError::Settings`].
    pub fn from_dir(dir: &Path, model: &Map<String, Value>) -> Result<Self, TokenizerError> {
        let mut config = object(&dir.join(CONFIG))?.unwrap_or_default();
        let mut settings = Self::default();
        let within = |reason: String| TokenizerError::Settings { path: dir.join(CONFIG), reason };
        settings.chat_template = chat_template_beside(dir, &config)?;
        settings.tool_template = tool_template_beside(dir, &config)?;
        settings.split_special_tokens = config.get("split_special_tokens") == Some(&Value::Bool(true));
        settings.control_tokens = config
            .get("chat_control_tokens")
            .and_then(Value::as_array)
            .map(|tokens| tokens.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        let described = config.remove("added_tokens_decoder");
        settings.described = described.is_some();
        if let Some(described) = described {
            let Value::Object(described) = described else {
                return Err(within("added_tokens_decoder is not an object".to_owned()));
            };
            for (id, token) in &described {
                let parsed = id.parse().ok().zip(token_of(token, false));
                let (id, token) = parsed.ok_or_else(|| within(format!("added_tokens_decoder: {id:?} is no token")))?;
                settings.added.insert(id, token);
            }
        } else {
            for (name, value) in object(&dir.join("special_tokens_map.json"))?.unwrap_or_default() {
                config.insert(name, value);
            }
        }
        settings.class = TokenizerClass::of(model, &config, || written_in_bytes(&dir.join("tokenizer.json")))?;
        for (name, token) in settings.class.names() {
            config.entry(*name).or_insert_with(|| Value::String((*token).to_owned()));
        }
        settings.take_named(&config);
        if !settings.described {
            settings.take_added(&dir.join("added_tokens.json"))?;
        }
        settings.describe();
        Ok(settings)
    }

    /// The model's own chat template, where it has one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// These settings with another token that ends an answer, where there is one.
    #[must_use]
    pub fn with_eos(&self, eos: Option<&str>) -> Self {
        const EOS: &str = "eos_token";
        let mut settings = self.clone();
        let Some(eos) = eos else { return settings };
        let token = AddedToken::from(eos, true);
        match settings.named.iter_mut().find(|(name, _)| name == EOS) {
            Some((_, named)) => *named = token,
            None => settings.named.push((EOS.to_owned(), token)),
        }
        settings
    }

    /// Every name that ends in `_token` and stands for one.
    fn take_named(&mut self, config: &Map<String, Value>) {
        let mut take = |name: &str, value: &Value| {
            if let Some(token) = token_of(value, true) {
                self.named.push((name.to_owned(), token));
            }
        };
        for name in NAMES {
            take(name, config.get(name).unwrap_or(&Value::Null));
        }
        let own = config.iter().filter(|(name, _)| name.ends_with("_token") && !NAMES.contains(&name.as_str()));
        own.for_each(|(name, value)| take(name, value));
        let filled = |name: &str| config.get(name).filter(|value| !matches!(value, Value::Null));
        let extra = filled("extra_special_tokens").filter(|value| **value != Value::Array(Vec::new()));
        match extra.or_else(|| filled("additional_special_tokens")) {
            Some(Value::Object(named)) => named.iter().for_each(|(name, value)| take(name, value)),
            Some(Value::Array(tokens)) => {
                self.extra = tokens.iter().filter_map(|token| token_of(token, true)).collect()
            }
            _ => {}
        }
    }

    fn take_added(&mut self, path: &Path) -> Result<(), TokenizerError> {
        for (text, id) in object(path)?.unwrap_or_default() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| TokenizerError::Settings {
                path: path.to_owned(),
                reason: format!("{text:?} has no id"),
            })?;
            let named = self.named.iter().map(|(_, token)| token).chain(&self.extra);
            let special = named.into_iter().any(|token| token.content == text);
            self.added.insert(id, AddedToken::from(text, special));
        }
        Ok(())
    }

    /// A named token is what its description says it is.
    fn describe(&mut self) {
        for (_, token) in &mut self.named {
            if let Some(described) = self.added.values().find(|described| described.content == token.content) {
                *token = described.clone();
            }
        }
    }

    /// Name and text of every named token: the variables of a chat template.
    pub(super) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, token)| (name.as_str(), token.content.as_str()))
    }

    /// What `tokenizer` lacks, in the order in which transformers adds it. New ids follow from that order, whatever ids
    /// were written down.
    pub(super) fn missing(&self, tokenizer: &tokenizers::Tokenizer) -> Vec<AddedToken> {
        let vocabulary = tokenizer.get_added_vocabulary();
        let present = |text: &str| {
            let id = vocabulary.get_vocab().get(text)?;
            vocabulary.get_added_tokens_decoder().get(id)
        };
        let taken = |id: &u32| !self.described && vocabulary.get_added_tokens_decoder().contains_key(id);
        let is_named = |token: &AddedToken| self.named.iter().any(|(_, named)| named.content == token.content);
        // A named token is special, whatever its description says.
        let special = |token: &AddedToken| token.clone().special(token.special || is_named(token));
        let added = self.added.iter().filter(|(id, _)| !taken(id)).map(|(_, token)| special(token));
        let mut missing: Vec<AddedToken> = added.filter(|token| present(&token.content) != Some(token)).collect();
        if !self.described {
            let own = vocabulary.get_added_tokens_decoder().values();
            missing.extend(own.filter(|token| !token.special && is_named(token)).map(special));
        }
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            let described = missing.iter().any(|known| known.content == token.content);
            if !described && present(&token.content).is_none() {
                missing.push(special(token));
            }
        }
        missing
    }
}

/// The chat template that transformers takes from a folder with the files of a tokenizer, the default one of several.
/// `None`: it has none.
///
/// # Errors
/// [`TokenizerError::Read`] and [`TokenizerError::Settings`].
pub fn chat_template_in(dir: &Path) -> Result<Option<String>, TokenizerError> {
    chat_template_beside(dir, &object(&dir.join(CONFIG))?.unwrap_or_default())
}

/// `chat_template.jinja`, else what the config says.
fn chat_template_beside(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>, TokenizerError> {
    if let Some(template) = text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(template));
    }
    let said = template_of(config.get("chat_template").unwrap_or(&Value::Null));
    said.map_err(|reason| TokenizerError::Settings { path: dir.join(CONFIG), reason: reason.to_owned() })
}

/// As transformers finds it out.
fn written_in_bytes(path: &Path) -> Result<bool, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = files::read_if_there(path, MAX_TOKENIZER_BYTES).map_err(failed)?.unwrap_or_default();
    const MARK: &[u8] = b"\"ByteLevel\"";
    Ok(file.windows(MARK.len()).any(|part| part == MARK))
}

fn text(path: &Path) -> Result<Option<String>, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let Some(bytes) = files::read_if_there(path, MAX_SETTINGS_BYTES).map_err(failed)? else { return Ok(None) };
    let utf8 = |error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
    String::from_utf8(bytes).map(Some).map_err(utf8)
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| TokenizerError::Settings { path: path.to_owned(), reason: error.to_string() })
}

/// A token is written as its text, or as an object with the text in `content`.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return (!text.is_empty()).then(|| AddedToken::from(text, special));
    }
    let text = value["content"].as_str().filter(|text| !text.is_empty())?;
    let flag = |name: &str| value[name].as_bool();
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(text, special)
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// The template for chats with tools. Files of templates go before those of the config, all of them.
fn tool_template_beside(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>, TokenizerError> {
    let file = text(&dir.join("additional_chat_templates").join("tool_use.jinja"))?;
    if file.is_some() || dir.join("chat_template.jinja").exists() {
        return Ok(file);
    }
    let named = config.get("chat_template").and_then(Value::as_array).into_iter().flatten();
    let template = named.filter(|entry| entry["name"] == "tool_use").find_map(|entry| entry["template"].as_str());
    Ok(template.map(str::to_owned))
}

fn template_of(value: &Value) -> Result<Option<String>, &'static str> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            match (default, named.as_slice()) {
                (Some(entry), _) | (None, [entry]) => text(&entry["template"])
                    .map(Some)
                    .ok_or("an entry of chat_template has no text in its field `template`"),
                _ => Err("chat_template lists several templates and none is named `default`"),
            }
        }
        _ => Err("chat_template is neither a text nor a list of named templates"),
    }
}

#[cfg(test)]
mod tests;
