//! A running request as its reader sees it: engine events in, text out.
//!
//! This is the only consumer of [`SequenceEvent`]s; the unary and the streaming call both read it. It detokenizes, finds
//! stop strings, ends a choice at one, counts, and takes times. Dropped before its end, it ends the request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arrival::Arrival;
use super::delta::ServingDelta;
use super::lease::SharedLease;
use super::receipt::Draft;
use crate::engine::{EventReceiver, GenerationEngine};
use crate::receipt::{Receipt, StopRecord};
use crate::scheduler::places::Place;
use crate::telemetry::LoraRequest;
use crate::telemetry::metrics::{Metrics, QueueCause, RequestFacts, RequestOutcome};
use crate::text::{ChoiceText, TokenizerError};
use crate::types::{FinishReason, PooledVector, RequestFailure, RequestId, SequenceEvent, TokenLogprob, Usage};

/// Why a generation ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The engine said so.
    #[error(transparent)]
    Failed(#[from] RequestFailure),
    /// The engine closed the channel before every choice had ended: its thread is gone.
    #[error("the engine ended the request without a result")]
    EngineGone,
    /// An id of the model that the tokenizer cannot decode.
    #[error("decoding generated tokens: {0}")]
    Text(#[from] TokenizerError),
}

impl GenerationError {
    fn outcome(&self) -> RequestOutcome {
        match self {
            Self::Failed(RequestFailure::DeadlineExceeded) => RequestOutcome::DeadlineExceeded,
            Self::Failed(RequestFailure::Draining | RequestFailure::NonFinite | RequestFailure::EngineFailed)
            | Self::EngineGone
            | Self::Text(_) => RequestOutcome::Failed,
        }
    }
}

/// Which stop ended a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopMatch {
    /// A stop string of the request.
    Text(String),
    /// An eos or stop id.
    Token(u32),
}

impl From<&StopMatch> for StopRecord {
    fn from(matched: &StopMatch) -> Self {
        match matched {
            StopMatch::Text(text) => Self::Text(text.clone()),
            StopMatch::Token(id) => Self::TokenId(*id),
        }
    }
}

/// A generated token, or one of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputToken {
    /// The id.
    pub id: u32,
    /// Present where asked for; never in an echo.
    pub logprob: Option<OutputLogprob>,
}

/// A token's log-probability with the tokens' texts.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputLogprob {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The token's text by itself (see [`ChoiceText::token_text`]).
    pub text: String,
    /// The most likely tokens, best first.
    pub top: Vec<TopToken>,
}

/// One of the most likely tokens at a place.
#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    /// The id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its text by itself.
    pub text: String,
}

impl OutputLogprob {
    fn new(id: u32, logprob: TokenLogprob, text: &ChoiceText) -> Result<Self, TokenizerError> {
        let top = |(id, logprob): (u32, f32)| Ok(TopToken { id, logprob, text: text.token_text(id)? });
        let top = logprob.top.into_iter().map(top).collect::<Result<_, TokenizerError>>()?;
        Ok(Self { logprob: logprob.logprob, text: text.token_text(id)?, top })
    }
}

/// More of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceDelta {
    /// Which choice.
    pub index: u32,
    /// Final text.
    pub text: String,
    /// The tokens that came with it. Text can lag behind its tokens.
    pub tokens: Vec<OutputToken>,
    /// Set on the choice's last delta.
    pub finish: Option<(FinishReason, Option<StopMatch>)>,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Arrival to first step.
    pub queue: Duration,
    /// First step to first token.
    pub prefill: Duration,
    /// First token to last.
    pub decode: Duration,
    /// Arrival to last token.
    pub total: Duration,
}

/// What a generation says while it runs.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    /// What the next token of the prompt is worth, where asked for, from the second token on. All of them come before the
    /// first generated token.
    PromptLogprob(OutputToken),
    /// What the prompt, or more of its tokens, have become, where asked for.
    Pooled(Vec<PooledVector>),
    /// More of one choice.
    Delta(ChoiceDelta),
    /// Every choice has ended. Said once; nothing follows.
    Finished {
        /// Token counts.
        usage: Usage,
        /// Times.
        timings: Timings,
        /// Where it was asked for.
        receipt: Option<Arc<Receipt>>,
    },
}

/// What is known of a request once it is admitted.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    /// The client's or the server's id.
    pub request_id: String,
    /// What serves it.
    pub delta: ServingDelta,
    /// The first token of the prompt that the adapter works on; `None` where it works on none, or there is none.
    pub active_from: Option<u32>,
    /// Number of choices.
    pub choices: u32,
}

/// What an admitted request is made of, for [`Generation::new`].
pub(super) struct Admitted {
    pub info: GenerationInfo,
    pub id: RequestId,
    pub engine: Arc<dyn GenerationEngine>,
    pub events: EventReceiver,
    pub lease: Option<SharedLease>,
    pub lora: Vec<LoraRequest>,
    pub texts: Vec<ChoiceText>,
    pub stop: Vec<String>,
    pub prompt_tokens: u32,
    pub echo: Option<Echo>,
    /// Where a receipt is wanted.
    pub draft: Option<Draft>,
    pub arrival: Arrival,
    pub place: Place,
    pub metrics: Metrics,
}

/// The prompt, to be returned at the head of every choice.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    pub text: String,
    pub ids: Arc<[u32]>,
}

/// An admitted request. Dropping it aborts what still runs.
pub struct Generation {
    info: GenerationInfo,
    request: Running,
    choices: Vec<Choice>,
    stop: Vec<String>,
    usage: Usage,
    times: Times,
    echo: Option<Echo>,
    draft: Option<Draft>,
    /// Index of the next choice whose echo is due.
    echoed: u32,
    finished: bool,
    record: Record,
    /// Its place among the requests in the server.
    _place: Place,
}

struct Choice {
    text: ChoiceText,
    open: bool,
    last_token: Option<Instant>,
}

struct Times {
    arrived: Instant,
    /// Handed to the engine.
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Generation {
    pub(super) fn new(admitted: Admitted) -> Self {
        let Admitted {
            info,
            id,
            engine,
            events,
            lease,
            lora,
            texts,
            stop,
            prompt_tokens,
            echo,
            draft,
            arrival,
            place,
            metrics,
        } = admitted;
        let Arrival { arrived, deadline, client: _, connection: _ } = arrival;
        Self {
            record: Record { metrics, deadline, outcome: None },
            info,
            request: Running { id, engine, events, lease, lora, over: false },
            choices: texts.into_iter().map(|text| Choice { text, open: true, last_token: None }).collect(),
            stop,
            usage: Usage { prompt_tokens, ..Usage::default() },
            times: Times { arrived, submitted: Instant::now(), started: None, first_token: None, last_token: None },
            echo,
            draft,
            echoed: 0,
            finished: false,
            _place: place,
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn info(&self) -> &GenerationInfo {
        &self.info
    }

    /// Text of a token by itself (see [`ChoiceText::token_text`]).
    ///
    /// # Errors
    /// The tokenizer cannot decode it.
    pub fn token_text(&self, id: u32) -> Result<String, GenerationError> {
        let Some(choice) = self.choices.first() else { return Ok(String::new()) };
        Ok(choice.text.token_text(id)?)
    }

    /// The next thing to say; `None` after [`GenerationEvent::Finished`]. May be dropped half-way: nothing is lost.
    ///
    /// # Errors
    /// The request failed; what was said of it before is void, and nothing follows.
    pub async fn next(&mut self) -> Option<Result<GenerationEvent, GenerationError>> {
        if self.finished {
            return None;
        }
        if let Some(delta) = self.next_echo() {
            return Some(Ok(GenerationEvent::Delta(delta)));
        }
        loop {
            if self.choices.iter().all(|choice| !choice.open) {
                self.finished = true;
                self.request.over = true;
                let (usage, timings) = (self.usage, self.times.timings());
                let receipt = self.draft.take().map(Draft::receipt);
                return Some(Ok(GenerationEvent::Finished { usage, timings, receipt }));
            }
            let event = match self.request.events.recv().await {
                Some(event) => self.take(event),
                None => {
                    self.request.over = true;
                    Err(GenerationError::EngineGone)
                }
            };
            match event {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(error) => {
                    self.finished = true;
                    self.record.outcome = Some(error.outcome());
                    return Some(Err(error));
                }
            }
        }
    }

    fn next_echo(&mut self) -> Option<ChoiceDelta> {
        let echo = self.echo.as_ref().filter(|_| self.echoed < self.info.choices)?;
        let tokens = echo.ids.iter().map(|id| OutputToken { id: *id, logprob: None }).collect();
        let delta = ChoiceDelta { index: self.echoed, text: echo.text.clone(), tokens, finish: None };
        self.echoed += 1;
        Some(delta)
    }

    fn take(&mut self, event: SequenceEvent) -> Result<Option<GenerationEvent>, GenerationError> {
        match event {
            SequenceEvent::Started { at, cached_tokens } => {
                self.times.started = Some(at);
                self.request.lora.iter_mut().for_each(LoraRequest::started);
                let waited = at.saturating_duration_since(self.times.submitted);
                self.record.metrics.record_queue_wait(QueueCause::Engine, waited);
                self.usage.cached_tokens = cached_tokens;
                Ok(None)
            }
            SequenceEvent::PromptLogprob { token: id, logprob } => {
                self.draft.iter_mut().for_each(|draft| draft.prompt_logprob(&logprob));
                let Some(choice) = self.choices.first() else { return Ok(None) };
                let logprob = Some(OutputLogprob::new(id, logprob, &choice.text)?);
                Ok(Some(GenerationEvent::PromptLogprob(OutputToken { id, logprob })))
            }
            SequenceEvent::Pooled(vectors) => Ok(Some(GenerationEvent::Pooled(vectors))),
            SequenceEvent::Token { choice, token, logprob, finish, at } => {
                let delta = self.take_token(choice, token.map(|id| (id, logprob)), finish, at)?;
                Ok(delta.map(GenerationEvent::Delta))
            }
            SequenceEvent::Failed(failure) => {
                self.request.over = true;
                Err(failure.into())
            }
        }
    }

    fn take_token(
        &mut self,
        index: u32,
        token: Option<(u32, Option<TokenLogprob>)>,
        finish: Option<(FinishReason, Option<u32>)>,
        at: Instant,
    ) -> Result<Option<ChoiceDelta>, GenerationError> {
        let Some(choice) = self.choices.get_mut(index as usize).filter(|choice| choice.open) else {
            // Tokens computed after a stop string matched are neither shown nor counted.
            return Ok(None);
        };
        if let Some(before) = choice.last_token.replace(at) {
            self.record.metrics.record_token_interval(at.saturating_duration_since(before));
        }
        self.times.first_token.get_or_insert(at);
        self.times.last_token = Some(at);
        let mut delta = ChoiceDelta { index, ..ChoiceDelta::default() };
        let mut matched = None;
        if let Some((id, logprob)) = token {
            self.usage.completion_tokens += 1;
            let text = choice.text.push(id)?;
            (delta.text, matched) = (text.text, text.stop);
            let logprob = match &mut self.draft {
                Some(draft) => draft.token(index, id, logprob),
                None => logprob,
            };
            let logprob = logprob.map(|logprob| OutputLogprob::new(id, logprob, &choice.text)).transpose()?;
            delta.tokens.push(OutputToken { id, logprob });
        }
        if finish.is_some() && matched.is_none() {
            let rest = choice.text.finish()?;
            delta.text += &rest.text;
            matched = rest.stop;
        }
        delta.finish = match (matched, finish) {
            (Some(which), ended) => {
                if ended.is_none() {
                    self.request.engine.finish_choice(self.request.id, index);
                }
                Some((FinishReason::Stop, self.stop.get(which).cloned().map(StopMatch::Text)))
            }
            (None, Some((reason, stop_id))) => Some((reason, stop_id.map(StopMatch::Token))),
            (None, None) => None,
        };
        choice.open = delta.finish.is_none();
        if let (Some(draft), Some((reason, stop))) = (&mut self.draft, &delta.finish) {
            draft.finish(index, *reason, stop.as_ref().map(StopRecord::from));
        }
        if let Some((reason, _)) = &delta.finish
            && self.choices.iter().all(|choice| !choice.open)
        {
            // Before the client hears of it.
            self.request.release();
            self.record.outcome = Some(match reason {
                FinishReason::Stop => RequestOutcome::Stop,
                FinishReason::Length => RequestOutcome::Length,
            });
        }
        let silent = delta.text.is_empty() && delta.tokens.is_empty() && delta.finish.is_none();
        Ok((!silent).then_some(delta))
    }
}

impl Times {
    fn timings(&self) -> Timings {
        let since = |later: Option<Instant>, earlier: Option<Instant>| match (later, earlier) {
            (Some(later), Some(earlier)) => later.saturating_duration_since(earlier),
            _ => Duration::ZERO,
        };
        Timings {
            queue: since(self.started, Some(self.arrived)),
            prefill: since(self.first_token, self.started),
            decode: since(self.last_token, self.first_token),
            total: since(self.last_token, Some(self.arrived)),
        }
    }
}

/// The request in the engine.
struct Running {
    id: RequestId,
    engine: Arc<dyn GenerationEngine>,
    events: EventReceiver,
    /// Its adapter's.
    lease: Option<SharedLease>,
    /// As the metrics count it, until every choice has ended.
    lora: Vec<LoraRequest>,
    /// The engine has ended it, or will without being asked.
    over: bool,
}

impl Running {
    /// Only once the end of every choice has been ordered.
    fn release(&mut self) {
        self.lora.clear();
        if let Some(lease) = &self.lease {
            lease.release();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.engine.abort(self.id);
        }
    }
}

/// What the metrics are told at the end.
struct Record {
    metrics: Metrics,
    deadline: Option<Instant>,
    /// `None` until every choice has ended, or the request has failed.
    outcome: Option<RequestOutcome>,
}

impl Record {
    /// A generation dropped before its end was given up by whoever read it: at the deadline, or because the client left.
    fn outcome(&self) -> RequestOutcome {
        self.outcome.unwrap_or_else(|| match self.deadline {
            Some(deadline) if deadline <= Instant::now() => RequestOutcome::DeadlineExceeded,
            _ => RequestOutcome::Cancelled,
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Timings { queue, prefill, decode, total } = self.times.timings();
        self.record.metrics.record_request(&RequestFacts {
            adapter: self.info.delta.label(),
            outcome: self.record.outcome(),
            usage: self.usage,
            queue,
            prefill: self.times.first_token.map(|_| prefill),
            decode,
            total,
        });
    }
}

#[cfg(test)]
mod tests;
