//! Chat templates: a conversation as the prompt that its model was trained on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::control::{self, ControlTokens};
use super::error::TokenizerError;
use super::jinja::{Limits, RenderError, SyntaxError, Template, Value};
use super::settings::TokenizerSettings;
use super::tokenizer::Tokenizer;
use crate::files::{self, MAX_SETTINGS_BYTES};
use crate::types::generate::{Chat, ChatMessage, TemplateValue};

/// Most characters of what a template says in an error.
const MAX_SHOWN_CHARS: usize = 512;

/// Why there is no chat prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The file that was named cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The template is not UTF-8.
    #[error("the chat template is not UTF-8 text")]
    NotText,
    /// The template is not valid Jinja, or uses what is not served: the model's fault, found at load.
    #[error("the chat template does not compile: {0}")]
    Template(#[from] SyntaxError),
    /// The tokenizer's added tokens cannot be looked for.
    #[error(transparent)]
    Tokens(#[from] TokenizerError),
    /// The template called `raise_exception`: these messages are not what the model was trained on. The client's
    /// fault.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template failed on these messages: its own fault.
    #[error("the chat template failed: {reason}")]
    Render {
        /// Which operation failed, and where.
        reason: String,
    },
    /// The template took more than a rendering may.
    #[error("the chat template was stopped: the rendering exceeds {limit}")]
    Limit {
        /// Which limit, in words.
        limit: &'static str,
    },
}

/// A compiled chat template with the special tokens it may print.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Arc<Template>,
    variables: Vec<(String, String)>,
    control: ControlTokens,
    /// Takes the place of this one where a chat has tools.
    with_tools: Option<Box<ChatTemplate>>,
}

/// A rendered conversation. Its special tokens are part of it, and it knows which of them the client wrote.
#[derive(Debug)]
pub struct RenderedChat {
    text: String,
    /// What the client wrote was marked.
    marked: bool,
}

impl RenderedChat {
    /// The text as the model's makers mean it.
    #[must_use]
    pub fn text(&self) -> String {
        if self.marked { control::unmarked(&self.text) } else { self.text.clone() }
    }

    /// Its token ids; `None` where there are more than `most`, as [`Tokenizer::encode_at_most`]. Control tokens that the
    /// template wrote are control tokens; those of the client are text, unless it asked for them.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] and [`TokenizerError::Control`].
    pub fn encode_at_most(&self, tokenizer: &Tokenizer, most: usize) -> Result<Option<Vec<u32>>, TokenizerError> {
        if self.marked && control::is_marked(&self.text) {
            control::encode_at_most(tokenizer, &self.text, most)
        } else {
            tokenizer.encode_at_most(&self.text, false, most)
        }
    }
}

impl ChatTemplate {
    /// Compile `source`. The named tokens of `settings` are variables of the template.
    ///
    /// # Errors
    /// [`ChatError::Template`] and [`ChatError::Tokens`].
    pub fn new(source: &str, settings: &TokenizerSettings, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        Ok(Self::of(Arc::new(Template::compile(source)?), settings, tokenizer)?)
    }

    fn of(
        template: Arc<Template>,
        settings: &TokenizerSettings,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TokenizerError> {
        let variables = settings.variables().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let control = ControlTokens::new(tokenizer, settings.control_tokens.as_deref(), template.literals())?;
        Ok(Self { template, variables, control, with_tools: None })
    }

    /// The same template for another tokenizer, without compiling it again. `settings` are those it was compiled with, and
    /// what the other tokenizer says besides.
    ///
    /// # Errors
    /// The tokens are too many for a finder.
    pub fn for_tokenizer(&self, settings: &TokenizerSettings, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let with_tools = self.with_tools.as_ref().map(|template| template.for_tokenizer(settings, tokenizer));
        let with_tools = with_tools.transpose()?.map(Box::new);
        Ok(Self { with_tools, ..Self::of(Arc::clone(&self.template), settings, tokenizer)? })
    }

    /// As [`ChatTemplate::new`], of the content of a file.
    ///
    /// # Errors
    /// [`ChatError::NotText`], [`ChatError::Template`] and [`ChatError::Tokens`].
    pub fn from_bytes(source: &[u8], settings: &TokenizerSettings, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        Self::new(std::str::from_utf8(source).map_err(|_| ChatError::NotText)?, settings, tokenizer)
    }

    /// Whether a template can be compiled, whatever the tokenizer.
    ///
    /// # Errors
    /// [`ChatError::NotText`] and [`ChatError::Template`].
    pub fn check(source: &[u8]) -> Result<(), ChatError> {
        Template::compile(std::str::from_utf8(source).map_err(|_| ChatError::NotText)?)?;
        Ok(())
    }

    /// The template of `file` where one is named, else the model's own; `None` where it has none.
    ///
    /// # Errors
    /// [`ChatError::Read`], [`ChatError::Template`] and [`ChatError::Tokens`].
    pub fn load(
        file: Option<&Path>,
        settings: &TokenizerSettings,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ChatError> {
        let (source, with_tools) = match file {
            Some(path) => (Some(read(path)?), None),
            None => (settings.chat_template.clone(), settings.tool_template.as_deref()),
        };
        let Some(source) = source else { return Ok(None) };
        let mut template = Self::new(&source, settings, tokenizer)?;
        let with_tools = with_tools.map(|source| Self::new(source, settings, tokenizer)).transpose()?;
        template.with_tools = with_tools.map(Box::new);
        Ok(Some(template))
    }

    /// The prompt for a conversation, ending where the assistant is to speak. `now` (UTC) is what templates that print a
    /// date see. What it may take grows with the conversation and ends.
    ///
    /// # Errors
    /// [`ChatError::Refused`] where the template raises an exception, else [`ChatError::Render`] and
    /// [`ChatError::Limit`].
    pub fn render(&self, chat: &Chat, now: SystemTime) -> Result<RenderedChat, ChatError> {
        let has_tools = |(name, value): &(String, TemplateValue)| name == "tools" && *value != TemplateValue::Null;
        if let Some(with_tools) = self.with_tools.as_deref().filter(|_| chat.template_kwargs.iter().any(has_tools)) {
            return with_tools.render(chat, now);
        }
        let too_deep = || ChatError::Limit { limit: "the nesting of values" };
        let text = |text: &str| match chat.allow_special_tokens {
            true => Value::text(text),
            false => Value::text(&self.control.mark(text)),
        };
        let message = |message: &ChatMessage| {
            let fields = [("role", &message.role), ("content", &message.content)];
            Value::dict(fields.map(|(name, value)| (name.to_owned(), text(value))))
        };
        let messages = chat.messages.iter().map(message).collect::<Option<_>>().and_then(Value::list);
        let messages = messages.ok_or_else(too_deep)?;
        let mut variables: Vec<(String, Value)> =
            self.variables.iter().map(|(name, value)| (name.clone(), Value::text(value))).collect();
        variables.extend([
            ("messages".to_owned(), messages),
            ("tools".to_owned(), Value::None),
            ("documents".to_owned(), Value::None),
            ("add_generation_prompt".to_owned(), Value::Bool(true)),
        ]);
        for (name, value) in &chat.template_kwargs {
            variables.push((name.clone(), variable(value, &text).ok_or_else(too_deep)?));
        }
        match self.template.render(variables, now, limits(chat)) {
            Ok(text) => Ok(RenderedChat { text, marked: !chat.allow_special_tokens }),
            Err(RenderError::Raised { message }) => {
                Err(ChatError::Refused { message: shown(&control::unmarked(&message)) })
            }
            Err(RenderError::Limit { limit }) => Err(ChatError::Limit { limit }),
            Err(failed @ RenderError::Failed { .. }) => Err(ChatError::Render { reason: shown(&failed.to_string()) }),
        }
    }
}

/// A template may go over its messages a few times, and over all of them for each.
fn limits(chat: &Chat) -> Limits {
    let bytes = chat.bytes();
    let output = usize::try_from(bytes.saturating_mul(4)).unwrap_or(usize::MAX);
    Limits {
        steps: 2_000_000 + 1000 * chat.messages.len() as u64,
        bytes: (32 << 20) + bytes.saturating_mul(64),
        output: (1 << 20) + output,
    }
}

/// Whole numbers are such in a template, whatever the message's format makes of them.
fn variable(value: &TemplateValue, text: &impl Fn(&str) -> Value) -> Option<Value> {
    const WHOLE_BELOW: f64 = 9_007_199_254_740_992.0;
    Some(match value {
        TemplateValue::Null => Value::None,
        TemplateValue::Bool(value) => Value::Bool(*value),
        TemplateValue::Number(value) if value.fract() == 0.0 && value.abs() < WHOLE_BELOW => Value::Int(*value as i64),
        TemplateValue::Number(value) => Value::Float(*value),
        TemplateValue::Text(value) => text(value),
        TemplateValue::List(values) => {
            Value::list(values.iter().map(|value| variable(value, text)).collect::<Option<_>>()?)?
        }
        TemplateValue::Map(entries) => {
            let entry = |(name, value): &(String, TemplateValue)| Some((name.clone(), variable(value, text)?));
            Value::dict(entries.iter().map(entry).collect::<Option<Vec<_>>>()?)?
        }
    })
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

fn read(path: &Path) -> Result<String, ChatError> {
    let failed = |source| ChatError::Read { path: path.to_owned(), source };
    let bytes = files::read(path, MAX_SETTINGS_BYTES).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

#[cfg(test)]
mod tests;
