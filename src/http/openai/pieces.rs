//! What a generation says as pieces of choices: the same whether they are put together or sent one by one.

use serde_json::Value;

use super::asked::{Kind, Shape};
use super::logprobs::{self, Entry, Spelling};
use crate::admission::{ChoiceDelta, Generation, GenerationError, GenerationEvent, OutputToken, StopMatch};
use crate::types::{FinishReason, Usage};

/// More of one choice.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    /// Among the choices of all prompts.
    pub(super) index: u32,
    pub(super) text: String,
    /// Where log-probabilities are wanted.
    pub(super) tokens: Vec<Entry>,
    /// Where ids are wanted.
    pub(super) token_ids: Vec<u32>,
    /// With the first piece of a choice.
    pub(super) opening: Option<Opening>,
    /// With its last.
    pub(super) finish: Option<Finish>,
}

/// What is said of a prompt with each of its choices.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Opening {
    /// Where ids are wanted.
    pub(super) prompt_ids: Option<Vec<u32>>,
    /// Where they are wanted in a field of their own.
    pub(super) prompt_logprobs: Option<Value>,
}

/// How a choice ended.
#[derive(Debug, PartialEq)]
pub(super) struct Finish {
    /// OpenAI's word.
    pub(super) reason: &'static str,
    /// vLLM's: the stop string, or the id where the request named it; null of the model's own end.
    pub(super) stop_reason: Value,
}

impl Finish {
    /// Both, as they are written.
    pub(super) fn into_values(self) -> (Value, Value) {
        (self.reason.into(), self.stop_reason)
    }
}

impl Piece {
    /// Nothing of a choice.
    pub(super) fn empty(index: u32) -> Self {
        let (text, tokens, token_ids) = (String::new(), Vec::new(), Vec::new());
        Self { index, text, tokens, token_ids, opening: None, finish: None }
    }

    /// Put more of the same choice behind it.
    pub(super) fn add(&mut self, more: Self) {
        let Self { index: _, text, tokens, token_ids, opening, finish } = more;
        self.text.push_str(&text);
        self.tokens.extend(tokens);
        self.token_ids.extend(token_ids);
        self.opening = self.opening.take().or(opening);
        self.finish = self.finish.take().or(finish);
    }

    /// Whether a client would learn nothing of it: text lags behind its tokens.
    pub(super) fn is_silent(&self) -> bool {
        let Self { index: _, text, tokens, token_ids, opening, finish } = self;
        text.is_empty() && tokens.is_empty() && token_ids.is_empty() && opening.is_none() && finish.is_none()
    }

    /// Its log-probabilities, where they are wanted.
    pub(super) fn logprobs(&self, shape: &Shape) -> Value {
        entries(&self.tokens, shape)
    }
}

/// Log-probabilities in the shape of the route; null where none are wanted.
pub(super) fn entries(tokens: &[Entry], shape: &Shape) -> Value {
    let spelling = Spelling { as_ids: shape.tokens_as_ids };
    match (shape.logprobs, shape.kind) {
        (None, _) => Value::Null,
        (Some(_), Kind::Chat) => logprobs::of_chat(tokens, spelling),
        (Some(_), Kind::Text) => logprobs::of_completion(tokens, spelling),
    }
}

/// Makes pieces of the events of one prompt's generation.
pub(super) struct Pieces {
    shape: Shape,
    /// Of its first choice.
    first_index: u32,
    /// Ids that the request named as ends.
    stop_ids: Vec<u32>,
    /// Choices whose echo has not come yet.
    echoes_due: u32,
    echo: Option<Echo>,
    /// What the prompt's tokens from the second on are worth.
    prompt: Vec<OutputToken>,
    choices: Vec<Progress>,
    /// Once it has ended.
    pub(super) ended: Option<(Usage, Option<String>)>,
}

/// The prompt as it came back.
struct Echo {
    text: String,
    ids: Vec<u32>,
    /// Text of its first token alone.
    first: String,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    begun: bool,
    characters: usize,
}

impl Pieces {
    /// Of a prompt of so many choices; the gate was asked to give the prompt back where `echoes`.
    pub(super) fn new(shape: Shape, first_index: u32, choices: u32, echoes: bool, stop_ids: Vec<u32>) -> Self {
        Self {
            shape,
            first_index,
            stop_ids,
            echoes_due: if echoes { choices } else { 0 },
            echo: None,
            prompt: Vec::new(),
            choices: vec![Progress::default(); choices as usize],
            ended: None,
        }
    }

    /// What an event adds to a choice, if it adds anything.
    pub(super) fn take(
        &mut self,
        event: GenerationEvent,
        generation: &Generation,
    ) -> Result<Option<Piece>, GenerationError> {
        match event {
            GenerationEvent::PromptLogprob(token) => self.prompt.push(token),
            GenerationEvent::Delta(delta) if self.echoes_due > 0 => {
                self.echoes_due -= 1;
                if self.echo.is_none() {
                    let ids: Vec<u32> = delta.tokens.iter().map(|token| token.id).collect();
                    let first = ids.first().map_or(Ok(String::new()), |id| generation.token_text(*id))?;
                    self.echo = Some(Echo { text: delta.text, ids, first });
                }
            }
            GenerationEvent::Delta(delta) => return Ok(self.delta(delta)),
            GenerationEvent::Finished { usage, receipt, timings: _ } => {
                self.ended = Some((usage, receipt.map(|receipt| receipt.text())));
            }
            GenerationEvent::Pooled(_) => {}
        }
        Ok(None)
    }

    fn delta(&mut self, delta: ChoiceDelta) -> Option<Piece> {
        let ChoiceDelta { index, mut text, tokens, finish } = delta;
        let progress = *self.choices.get(index as usize)?;
        let mut entries = Vec::new();
        let mut characters = progress.characters;
        let opening = (!progress.begun).then(|| self.opening());
        if opening.is_some()
            && self.shape.echo
            && let Some(echo) = &self.echo
        {
            entries = self.echoed(echo);
            text.insert_str(0, &echo.text);
            characters = echo.text.chars().count();
        }
        if let Some(top) = self.shape.logprobs {
            entries.extend(tokens.iter().filter_map(|token| Entry::new(token, top, characters)));
        }
        let all = progress.characters + text.chars().count();
        if let Some(progress) = self.choices.get_mut(index as usize) {
            *progress = Progress { begun: true, characters: all };
        }
        let token_ids = if self.shape.token_ids { tokens.iter().map(|token| token.id).collect() } else { Vec::new() };
        Some(Piece {
            index: self.first_index + index,
            text,
            tokens: entries,
            token_ids,
            opening,
            finish: finish.map(|(reason, stop)| self.finish(reason, stop)),
        })
    }

    fn opening(&self) -> Opening {
        let ids = self.echo.as_ref().filter(|_| self.shape.token_ids).map(|echo| echo.ids.clone());
        let logprobs = self.shape.prompt_logprobs.map(|top| logprobs::of_prompt(&self.prompt, top));
        Opening { prompt_ids: ids, prompt_logprobs: logprobs }
    }

    /// The prompt's tokens at the head of a choice.
    fn echoed(&self, echo: &Echo) -> Vec<Entry> {
        let (Some(top), Some(first)) = (self.shape.logprobs, echo.ids.first()) else { return Vec::new() };
        let mut entries =
            vec![Entry { id: *first, text: echo.first.clone(), logprob: None, top: Vec::new(), offset: 0 }];
        let mut offset = echo.first.chars().count();
        for token in &self.prompt {
            let Some(entry) = Entry::new(token, top, offset) else { continue };
            offset += entry.text.chars().count();
            entries.push(entry);
        }
        entries
    }

    fn finish(&self, reason: FinishReason, stop: Option<StopMatch>) -> Finish {
        Finish {
            reason: match reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
            },
            stop_reason: match stop {
                Some(StopMatch::Text(text)) => text.into(),
                Some(StopMatch::Token(id)) if self.stop_ids.contains(&id) => id.into(),
                Some(StopMatch::Token(_)) | None => Value::Null,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::OutputLogprob;

    fn shape() -> Shape {
        Shape {
            kind: Kind::Text,
            logprobs: Some(0),
            prompt_logprobs: None,
            echo: true,
            token_ids: true,
            tokens_as_ids: false,
        }
    }

    fn token(id: u32, text: &str) -> OutputToken {
        OutputToken { id, logprob: Some(OutputLogprob { logprob: -1.0, text: text.to_owned(), top: Vec::new() }) }
    }

    fn delta(index: u32, text: &str, token: OutputToken) -> ChoiceDelta {
        ChoiceDelta { index, text: text.to_owned(), tokens: vec![token], finish: None }
    }

    #[test]
    fn the_prompt_comes_once_at_the_head_of_each_choice_with_what_it_is_worth() {
        let mut pieces = Pieces::new(shape(), 4, 2, true, Vec::new());
        pieces.echo = Some(Echo { text: "né".to_owned(), ids: vec![1, 2], first: "n".to_owned() });
        pieces.prompt = vec![token(2, "é")];
        let piece = pieces.delta(delta(1, "x", token(3, "x"))).unwrap();
        assert_eq!((piece.index, piece.text.as_str(), piece.token_ids.as_slice()), (5, "néx", [3].as_slice()));
        let said: Vec<_> =
            piece.tokens.iter().map(|entry| (entry.text.as_str(), entry.logprob, entry.offset)).collect();
        assert_eq!(said, [("n", None, 0), ("é", Some(-1.0), 1), ("x", Some(-1.0), 2)]);
        assert_eq!(piece.opening.unwrap().prompt_ids, Some(vec![1, 2]));
        let more = pieces.delta(delta(1, "y", token(4, "y"))).unwrap();
        assert_eq!((more.text.as_str(), more.tokens[0].offset, more.opening), ("y", 3, None));
        let other = pieces.delta(delta(0, "x", token(3, "x"))).unwrap();
        assert_eq!((other.index, other.text.as_str()), (4, "néx"));
    }

    #[test]
    fn ids_that_the_request_named_are_reasons_and_the_models_own_end_is_none() {
        let pieces = Pieces::new(shape(), 0, 1, false, vec![7]);
        let reason = |stop| pieces.finish(FinishReason::Stop, stop).stop_reason;
        assert_eq!(reason(Some(StopMatch::Token(7))), 7);
        assert_eq!(reason(Some(StopMatch::Text("end".into()))), "end");
        assert_eq!(reason(Some(StopMatch::Token(2))), Value::Null);
        assert_eq!(pieces.finish(FinishReason::Length, None), Finish { reason: "length", stop_reason: Value::Null });
    }
}
