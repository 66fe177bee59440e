//! Chat templates: Jinja as transformers renders it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

use super::clock;
use crate::files::{self, MAX_SETTINGS_BYTES};
use crate::types::generate::ChatMessage;

/// Why there is no chat prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file of the model folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `tokenizer_config.json` is not what transformers writes.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The template is not valid Jinja: the model's fault, found at load.
    #[error("the chat template does not compile: {reason}")]
    Template {
        /// What the engine said.
        reason: String,
    },
    /// The template called `raise_exception`: these messages are not what the model was trained on. The client's
    /// fault.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template failed on these messages.
    #[error("the chat template failed: {reason}")]
    Render {
        /// What the engine said.
        reason: String,
    },
}

/// The name a template is kept under; without a file ending, so that nothing is escaped.
const NAME: &str = "chat";

/// Carries `raise_exception`'s message through the template engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A compiled chat template with the special tokens it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compile `source`. The tokens are those of `tokenizer_config.json`; empty where it has none.
    ///
    /// # Errors
    /// [`ChatError::Template`].
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, ChatError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| ChatError::Template { reason: describe(&error) })?;
        Ok(Self { environment, bos_token: bos_token.to_owned(), eos_token: eos_token.to_owned() })
    }

    /// The template of a model folder: `chat_template.jinja` if there is one, else `chat_template` of
    /// `tokenizer_config.json` (a text, or a list of named ones of which `default` is taken). `None` where the model
    /// has none.
    ///
    /// # Errors
    /// [`ChatError::Read`], [`ChatError::Config`] and [`ChatError::Template`].
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, ChatError> {
        let path = dir.join("tokenizer_config.json");
        let config = match read(&path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| ChatError::Config { path: path.clone(), reason: error.to_string() })?,
            None => serde_json::Value::Null,
        };
        let source = match read(&dir.join("chat_template.jinja"))? {
            Some(source) => Some(source),
            None => template_of(&config["chat_template"])
                .map_err(|reason| ChatError::Config { path, reason: reason.to_owned() })?,
        };
        let token = |field: &str| token_of(&config[field]);
        source.map(|source| Self::new(&source, &token("bos_token"), &token("eos_token"))).transpose()
    }

    /// The prompt for `messages`, ending where the assistant is to speak. Special tokens are part of it: encode it
    /// without adding any. `now` (UTC) is what templates that print a date see.
    ///
    /// # Errors
    /// [`ChatError::Refused`] where the template raises an exception, else [`ChatError::Render`].
    pub fn render(&self, messages: &[ChatMessage], now: SystemTime) -> Result<String, ChatError> {
        let messages: Vec<Value> =
            messages.iter().map(|message| context! { role => message.role, content => message.content }).collect();
        let strftime_now = Value::from_function(move |format: &str| {
            clock::strftime(now, format).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown format {format:?}"))
            })
        });
        let variables = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
            tools => (),
            documents => (),
            strftime_now,
        };
        self.environment.get_template(NAME).and_then(|template| template.render(variables)).map_err(
            |error| match raised(&error) {
                Some(Raised(message)) => ChatError::Refused { message: message.clone() },
                None => ChatError::Render { reason: describe(&error) },
            },
        )
    }
}

fn read(path: &Path) -> Result<Option<String>, ChatError> {
    let failed = |source| ChatError::Read { path: path.to_path_buf(), source };
    let Some(bytes) = files::read_if_there(path, MAX_SETTINGS_BYTES).map_err(failed)? else { return Ok(None) };
    let utf8 = |error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
    String::from_utf8(bytes).map(Some).map_err(utf8)
}

fn template_of(value: &serde_json::Value) -> Result<Option<String>, &'static str> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some(source.clone())),
        serde_json::Value::Array(named) => {
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

/// A special token is written as a text, or as an object with the text in `content`.
fn token_of(value: &serde_json::Value) -> String {
    value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
}

/// transformers marks the assistant's words for training with `{% generation %}` blocks, which print their content;
/// the engine here has no such tag, and a block that is always taken does the same.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = next_tag(rest) {
        out.push_str(before);
        let word = tag.trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", tag.replacen(word, "if true", 1))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", tag.replacen(word, "endif", 1))),
            _ => out.push_str(&format!("{{%{tag}%}}")),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Text before the next `{% … %}`, its inside, and the text behind it.
fn next_tag(text: &str) -> Option<(&str, &str, &str)> {
    let (before, behind) = text.split_once("{%")?;
    let (tag, after) = behind.split_once("%}")?;
    Some((before, tag, after))
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// The exception behind an error, however deep in macros and loops it was raised.
fn raised(error: &Error) -> Option<&Raised> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised);
        }
        source = error.source();
    }
    None
}

fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what transformers puts in the place of
/// Jinja's own filter: nothing is escaped for HTML.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted for the templates that pass them; both are what happens here anyway.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    let invalid = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"));
    written.map_err(|error| invalid(error.to_string()))?;
    String::from_utf8(out).map(Value::from_safe_string).map_err(|error| invalid(error.to_string()))
}

/// `", "` between elements and `": "` behind keys, as Python writes them.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
