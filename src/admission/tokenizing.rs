//! Tokenizing: off the reactor, few texts at a time, fairly between those who ask, each kind of work in a lane where it
//! is in nobody's way.
//!
//! Short texts take microseconds and have as many turns as there are compute threads. Chats have as many again: a
//! template is a program, and may take far longer than its messages look. Long texts take up to seconds: there is one
//! turn for all of them, so that one core at most is taken from the steps. A text that cannot fit the context is refused
//! by its length in bytes where the tokenizer's parts allow it, before it waits for a turn; else its tokens are counted
//! no further than needed.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::error::AdmissionError;
use super::texts::Chosen;
use super::turns::Turns;
use super::validate::{InvalidRequest, Limits, prompt_field};
use crate::telemetry::metrics::{Metrics, QueueCause};
use crate::text::Tokenizer;
use crate::types::Party;
use crate::types::generate::PromptInput;

/// Texts of more bytes go through the lane for long ones.
const LONG_TEXT: u64 = 16 << 10;

/// How fast texts are likely to be tokenized, for those who wait for a turn.
const BYTES_PER_MICROSECOND: u64 = 4;

/// Tokens that are counted before a text that is too long is given up, in contexts: the refusal of one that is only a
/// little too long says how many it has.
const COUNTED_CONTEXTS: usize = 4;

/// A prompt in both of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The text they come from; for a prompt of ids, the text they stand for.
    pub text: String,
}

/// Tokenizes prompts. One per gate.
pub(super) struct Tokenizing {
    context_length: u32,
    short: Turns,
    chats: Turns,
    long: Turns,
    metrics: Metrics,
}

#[cfg(test)]
const NOBODY: Party = Party { client: crate::types::ClientKey::LOCAL, adapter: None };

#[cfg(test)]
impl Tokenizing {
    /// Short texts that could begin now.
    pub(super) fn free_turns(&self) -> usize {
        self.short.free()
    }

    /// Every turn there is, of all lanes.
    pub(super) async fn take_all_turns(&self) -> Vec<super::turns::Turn> {
        let mut turns = vec![self.take_long_turn().await];
        for lane in [&self.short, &self.chats] {
            while lane.free() > 0 {
                turns.push(lane.take(NOBODY, 1).await);
            }
        }
        turns
    }

    /// The turn of the lane for long texts.
    pub(super) async fn take_long_turn(&self) -> super::turns::Turn {
        self.long.take(NOBODY, 1).await
    }
}

/// What a turn is spent with.
struct Work {
    tokenizer: Arc<Tokenizer>,
    context_length: u32,
}

impl Tokenizing {
    /// `threads` short texts at a time.
    pub(super) fn new(limits: &Limits, threads: usize, metrics: Metrics) -> Self {
        let (short, chats) = (Turns::new(threads.max(1)), Turns::new(threads.max(1)));
        Self { context_length: limits.context_length, short, chats, long: Turns::new(1), metrics }
    }

    fn work(&self, tokenizer: &Arc<Tokenizer>) -> Work {
        Work { tokenizer: Arc::clone(tokenizer), context_length: self.context_length }
    }

    /// Token ids of a prompt that was checked, a chat rendered with `template`. Dropping the future gives the place in
    /// line up, and the work where it has not begun.
    pub(super) async fn tokenize(
        &self,
        prompt: PromptInput,
        template: Option<Chosen>,
        tokenizer: &Arc<Tokenizer>,
        party: Party,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let work = self.work(tokenizer);
        if let PromptInput::Text(text) = &prompt {
            work.check_bytes(prompt_field(&prompt), text)?;
        }
        let lane = match prompt {
            PromptInput::Chat(_) => &self.chats,
            PromptInput::Text(_) | PromptInput::TokenIds(_) => &self.short,
        };
        self.in_turn(lane, prompt.bytes(), party, move || work.tokenize(prompt, template)).await
    }

    /// The text of token ids that were checked.
    pub(super) async fn detokenize(
        &self,
        ids: Vec<u32>,
        skip_special: bool,
        tokenizer: &Arc<Tokenizer>,
        party: Party,
    ) -> Result<String, AdmissionError> {
        let work = self.work(tokenizer);
        let bytes = size_of_val(ids.as_slice()) as u64;
        self.in_turn(&self.short, bytes, party, move || Ok(work.tokenizer.decode(&ids, skip_special)?)).await
    }

    /// Work off the reactor, at what is so long; `lane` is where it waits for its turn unless it is too long for that.
    async fn in_turn<T: Send + 'static>(
        &self,
        lane: &Turns,
        bytes: u64,
        party: Party,
        work: impl FnOnce() -> Result<T, AdmissionError> + Send + 'static,
    ) -> Result<T, AdmissionError> {
        let asked = Instant::now();
        let lane = if bytes > LONG_TEXT { &self.long } else { lane };
        let turn = lane.take(party, bytes / BYTES_PER_MICROSECOND).await;
        self.metrics.record_queue_wait(QueueCause::Tokenizing, asked.elapsed());
        let run = move || {
            // The turn goes with the work and not with the client, who may leave before it is done.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| AdmissionError::TokenizerPanicked)?
    }
}

impl Work {
    fn tokenize(&self, prompt: PromptInput, template: Option<Chosen>) -> Result<TokenizedPrompt, AdmissionError> {
        let field = prompt_field(&prompt);
        let (ids, text) = match prompt {
            PromptInput::Text(text) => (self.encode(field, &text, true)?, text),
            PromptInput::TokenIds(ids) => {
                let text = self.tokenizer.decode(&ids, false)?;
                (ids, text)
            }
            PromptInput::Chat(chat) => {
                let Chosen { template, adapter } = template.ok_or(AdmissionError::NoChatTemplate)?;
                let rendered = template.render(&chat, SystemTime::now());
                let rendered = rendered.map_err(|source| AdmissionError::Chat { adapter, source })?;
                let text = rendered.text();
                self.check_bytes(field, &text)?;
                let ids = rendered.encode_at_most(&self.tokenizer, self.most())?;
                (ids.ok_or_else(|| self.too_long(field, &text))?, text)
            }
        };
        if ids.is_empty() {
            return Err(AdmissionError::EmptyPrompt { field });
        }
        Ok(TokenizedPrompt { ids, text })
    }

    fn encode(&self, field: &'static str, text: &str, add_special: bool) -> Result<Vec<u32>, AdmissionError> {
        let ids = self.tokenizer.encode_at_most(text, add_special, self.most())?;
        ids.ok_or_else(|| self.too_long(field, text).into())
    }

    /// Tokens that are counted.
    fn most(&self) -> usize {
        self.context_length as usize * COUNTED_CONTEXTS
    }

    fn too_long(&self, field: &'static str, text: &str) -> InvalidRequest {
        let (bytes, context_length) = (text.len() as u64, self.context_length);
        InvalidRequest::TextTooLong { field, bytes, more_than: self.most(), context_length }
    }

    /// Refuse a text that has more bytes than all tokens of the context can stand for.
    fn check_bytes(&self, field: &'static str, text: &str) -> Result<(), InvalidRequest> {
        let (bytes, context_length) = (text.len() as u64, self.context_length);
        match self.tokenizer.max_bytes(context_length) {
            Some(most) if bytes > most => {
                let more_than = context_length as usize;
                Err(InvalidRequest::TextTooLong { field, bytes, more_than, context_length })
            }
            _ => Ok(()),
        }
    }
}
