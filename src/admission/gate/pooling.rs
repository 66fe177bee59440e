//! The way of texts that are read instead of continued: as that of a request to generate, several at once. Each is a request
//! of its own to the engine and takes a place; none is queued before all have been checked.

use std::sync::Arc;
use std::time::Instant;

use super::{Brought, Gate, Ready, check_task, party};
use crate::admission::arrival::Arrival;
use crate::admission::delta::{DeltaChoice, ResolvedDelta, ServingDelta};
use crate::admission::error::{AdmissionError, Wanted};
use crate::admission::generation::GenerationInfo;
use crate::admission::pooling::{Reader, Reading};
use crate::admission::texts::OwnText;
use crate::admission::tokenizing::TokenizedPrompt;
use crate::admission::validate::Resolved;
use crate::types::pool::{PoolInput, PoolRows, PoolSpec, PoolWanted, Pooling};
use crate::types::{AdapterTask, OutputOptions, Party, PromptInput, SamplingParams, StoppingParams};

/// Texts to be read, without their transport.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRequest {
    /// Of the client or the server.
    pub request_id: String,
    /// What to read them with.
    pub delta: DeltaChoice,
    /// The texts, and what becomes of them.
    pub input: PoolInput,
    /// Bytes of the answer.
    pub max_answer_bytes: u64,
}

/// A text that was checked, with its tokens.
struct Text {
    /// Of which form it was, without its content.
    form: PromptInput,
    tokens: TokenizedPrompt,
}

impl Gate {
    /// Check texts, bring their adapter to the device and queue them. Dropping the future, or what it gives, gives everything
    /// back.
    ///
    /// # Errors
    /// Why they are not admitted; nothing of them is left then.
    pub async fn pool(&self, request: PoolRequest, arrival: Arrival) -> Result<Reading, AdmissionError> {
        let admitted = self.try_pool(request, arrival).await;
        admitted.inspect_err(|error| self.parts.metrics.record_rejection(error.reason()))
    }

    async fn try_pool(&self, request: PoolRequest, arrival: Arrival) -> Result<Reading, AdmissionError> {
        let PoolRequest { request_id, delta, mut input, max_answer_bytes } = request;
        if arrival.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(AdmissionError::DeadlineExceeded);
        }
        let resolved = self.resolve(&delta).await;
        let party = party(arrival.client, &resolved);
        let limits = self.limits(resolved.as_ref().ok());
        limits.check_pooling(&input)?;
        let places = input.inputs.iter().map(|_| self.place(party)).collect::<Result<Vec<_>, _>>()?;
        for (index, prompt) in input.inputs.iter().enumerate() {
            let checked = limits.check_input(prompt).map_err(|invalid| self.named(invalid, None));
            checked.map_err(|error| of_input(index, error))?;
        }
        let resolved = resolved?;
        let wanted = match input.wanted {
            PoolWanted::Scores => Wanted::Scores,
            PoolWanted::Embeddings(_) => Wanted::Embeddings,
        };
        check_task(wanted, &resolved)?;
        let own = self.text(&resolved, party).await?;
        let own = own.as_ref();
        let texts = self.tokenize_all(&mut input.inputs, &resolved, own, party).await?;
        let known = resolved.adapters().first().and_then(|adapter| adapter.task);
        self.check_texts(&texts, &input.wanted, known, max_answer_bytes)?;
        let brought = self.bring_for_each(wanted, resolved, arrival, texts.len()).await?;

        let task = brought.iter().find_map(|brought| Some(brought.lease.as_ref()?.task()));
        self.check_texts(&texts, &input.wanted, task, max_answer_bytes)?;
        for (index, (text, brought)) in texts.iter().zip(&brought).enumerate() {
            let binding = brought.binding(&text.tokens);
            let virtual_tokens = binding.and_then(|binding| binding.virtual_tokens).map_or(0, |tokens| tokens.count);
            let limits = self.limits_of(brought);
            let checked = limits
                .check_input_length(&text.form, text.tokens.ids.len(), virtual_tokens)
                .and_then(|()| limits.check_prompt_ids(&text.form, &text.tokens.ids));
            checked.map_err(|error| of_input(index, self.named(error, own)))?;
        }
        let pool = spec(&input.wanted, task.unwrap_or_default());
        let mut readers = Vec::with_capacity(texts.len());
        let serving = brought.first().map(|brought| brought.serving.clone());
        for ((text, place), brought) in texts.into_iter().zip(places).zip(brought) {
            let tokens = text.tokens.ids.len();
            let generation = self.submit(Ready {
                request_id: request_id.clone(),
                prompt: text.tokens,
                tokenizer: self.tokenizer(own),
                brought,
                resolved: reading(pool),
                stop: Vec::new(),
                options: OutputOptions::default(),
                priority: input.priority,
                cache_salt: &input.cache_salt,
                arrival,
                place,
            })?;
            readers.push(Reader::new(generation, tokens));
        }
        let delta = serving.unwrap_or(ServingDelta::Base);
        let info = GenerationInfo { request_id, delta, active_from: None, choices: 1 };
        Ok(Reading::new(info, readers, input.wanted))
    }

    async fn tokenize_all(
        &self,
        prompts: &mut [PromptInput],
        delta: &ResolvedDelta,
        own: Option<&Arc<OwnText>>,
        party: Party,
    ) -> Result<Vec<Text>, AdmissionError> {
        let mut texts = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter_mut().enumerate() {
            let tokens = self.tokenize_input(prompt, delta, own, party).await;
            let tokens = tokens.map_err(|error| of_input(index, error))?;
            // What is left of it is its form.
            let form = prompt.take();
            // Once more when the adapter's virtual tokens are known; no adapter is loaded for a text that is too long.
            let checked = self.parts.limits.check_input_length(&form, tokens.ids.len(), 0);
            checked.map_err(|error| of_input(index, error))?;
            texts.push(Text { form, tokens });
        }
        Ok(texts)
    }

    /// How much is read and answered. What an adapter of unknown task answers is known once it is loaded.
    fn check_texts(
        &self,
        texts: &[Text],
        wanted: &PoolWanted,
        task: Option<AdapterTask>,
        max_answer_bytes: u64,
    ) -> Result<(), AdmissionError> {
        let tokens: u64 = texts.iter().map(|text| text.tokens.ids.len() as u64).sum();
        let numbers = match (wanted, task) {
            (PoolWanted::Embeddings(options), _) => {
                texts.len() as u64 * u64::from(options.dimensions.unwrap_or(self.parts.limits.hidden_size))
            }
            // Logits and probabilities.
            (PoolWanted::Scores, Some(AdapterTask::SequenceClassification { labels })) => {
                2 * texts.len() as u64 * u64::from(labels)
            }
            (PoolWanted::Scores, Some(AdapterTask::TokenClassification { labels })) => 2 * tokens * u64::from(labels),
            (PoolWanted::Scores, Some(AdapterTask::Generation | AdapterTask::Embedding) | None) => 0,
        };
        Ok(self.parts.limits.check_inputs(tokens, numbers, max_answer_bytes)?)
    }

    /// A lease for every text: each ends by itself.
    async fn bring_for_each(
        &self,
        wanted: Wanted,
        delta: ResolvedDelta,
        arrival: Arrival,
        count: usize,
    ) -> Result<Vec<Brought>, AdmissionError> {
        let mut brought = Vec::with_capacity(count);
        for _ in 0..count {
            brought.push(self.bring(wanted, delta.clone(), arrival.client).await?);
        }
        Ok(brought)
    }
}

/// What the engine is to do for each text.
fn spec(wanted: &PoolWanted, task: AdapterTask) -> PoolSpec {
    match wanted {
        PoolWanted::Embeddings(options) => {
            let rows = match options.pooling {
                Pooling::Last => PoolRows::Last,
                Pooling::Mean => PoolRows::Sum,
                Pooling::First => PoolRows::First,
            };
            PoolSpec { rows, labels: None }
        }
        PoolWanted::Scores => {
            let each = matches!(task, AdapterTask::TokenClassification { .. });
            let rows = if each { PoolRows::Each } else { PoolRows::Last };
            PoolSpec { rows, labels: Some(task.labels()) }
        }
    }
}

/// A request that has no output but what is read.
fn reading(pool: PoolSpec) -> Resolved {
    let stopping = StoppingParams { max_tokens: 0, min_tokens: 0, stop_token_ids: Vec::new() };
    Resolved { sampling: SamplingParams::pooling(pool), stopping, choices: 1 }
}

fn of_input(index: usize, error: impl Into<AdmissionError>) -> AdmissionError {
    AdmissionError::Input { index, error: Box::new(error.into()) }
}
