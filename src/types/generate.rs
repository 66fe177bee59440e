//! A generation request as a client states it: every field that was left out is `None`, nothing is checked yet.
//! `admission` resolves it into [`SamplingParams`](super::SamplingParams) and [`StoppingParams`](super::StoppingParams).

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or whatever else the model's template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A conversation to be answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Oldest first.
    pub messages: Vec<ChatMessage>,
    /// Variables of the model's template, by name; one of them replaces a special token of the same name.
    pub template_kwargs: Vec<(String, TemplateValue)>,
    /// Special tokens written out in messages and variables are special tokens.
    pub allow_special_tokens: bool,
}

impl Chat {
    /// Bytes of everything that the client wrote.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let messages = self.messages.iter().map(|message| message.role.len() + message.content.len());
        let variables = self.template_kwargs.iter().map(|(name, value)| name.len() + value.bytes());
        messages.chain(variables).map(|bytes| bytes as u64).sum()
    }
}

impl From<Vec<ChatMessage>> for Chat {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// A variable of a chat template: JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum TemplateValue {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Whole or not.
    Number(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<TemplateValue>),
    /// An object; its keys differ.
    Map(Vec<(String, TemplateValue)>),
}

impl TemplateValue {
    /// Bytes of its texts and keys, and one for every value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        1 + match self {
            Self::Null | Self::Bool(_) | Self::Number(_) => 0,
            Self::Text(text) => text.len(),
            Self::List(values) => values.iter().map(Self::bytes).sum(),
            Self::Map(entries) => entries.iter().map(|(name, value)| name.len() + value.bytes()).sum(),
        }
    }

    /// Levels of lists and objects inside each other.
    #[must_use]
    pub fn depth(&self) -> usize {
        match self {
            Self::List(values) => 1 + values.iter().map(Self::depth).max().unwrap_or(0),
            Self::Map(entries) => 1 + entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// What to continue. Exactly one form.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptInput {
    /// Text; the tokenizer's special tokens are added.
    Text(String),
    /// Ids, taken as they are.
    TokenIds(Vec<u32>),
    /// Rendered with the model's chat template; no special tokens are added.
    Chat(Chat),
}

impl PromptInput {
    /// Bytes of it, as it came.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::TokenIds(ids) => size_of_val(ids.as_slice()) as u64,
            Self::Chat(chat) => chat.bytes(),
        }
    }

    /// Take it out, leaving an empty one of the same form.
    #[must_use]
    pub fn take(&mut self) -> Self {
        match self {
            Self::Text(text) => Self::Text(std::mem::take(text)),
            Self::TokenIds(ids) => Self::TokenIds(std::mem::take(ids)),
            Self::Chat(chat) => Self::Chat(std::mem::take(chat)),
        }
    }
}

/// Sampling as stated. Unset fields come from the model's generation config, else are neutral.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingInput {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<u32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// Unset: one is chosen by the server.
    pub seed: Option<u64>,
    /// Above 0; 1 is neutral.
    pub repetition_penalty: Option<f32>,
    /// −2 to 2; 0 is neutral.
    pub presence_penalty: Option<f32>,
    /// −2 to 2; 0 is neutral.
    pub frequency_penalty: Option<f32>,
    /// (token id, −100 to 100) pairs; an id may not be given twice.
    pub logit_bias: Vec<(u32, f32)>,
}

/// Stopping as stated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoppingInput {
    /// Unset: what the context leaves, capped by the server's default. 0 only where the prompt is scored.
    pub max_tokens: Option<u32>,
    /// Unset: 0.
    pub min_tokens: Option<u32>,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Ids that end the text, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The model's end-of-sequence ids do not end the text.
    pub ignore_eos: Option<bool>,
}

/// What to report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputOptions {
    /// Log-probabilities with this many alternatives; unset reports none.
    pub logprobs: Option<u32>,
    /// Those of the prompt's tokens; unset reports none.
    pub prompt_logprobs: Option<u32>,
    /// The prompt's text and ids come back too.
    pub echo: bool,
    /// Generated ids come back too.
    pub token_ids: bool,
    /// A receipt comes with the end.
    pub receipt: bool,
}

/// A generation request as a client states it, without its transport.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateInput {
    /// What to continue.
    pub prompt: PromptInput,
    /// How to choose tokens.
    pub sampling: SamplingInput,
    /// When to stop.
    pub stopping: StoppingInput,
    /// What to report.
    pub options: OutputOptions,
    /// Number of choices; 0 is 1.
    pub choices: u32,
    /// A head start; larger is more.
    pub priority: i32,
    /// Requests that name the same share the prefix cache, whoever sends them; empty names none.
    pub cache_salt: String,
}

impl GenerateInput {
    /// The least that is to be generated: a token, or nothing where the prompt alone is scored.
    #[must_use]
    pub fn least_tokens(&self) -> u32 {
        u32::from(self.options.prompt_logprobs.is_none() || self.stopping.max_tokens != Some(0))
    }
}
