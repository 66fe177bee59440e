//! The way of a request into the engine, cheapest refusal first: place → limits → tokens → adapter → queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::engine::GenerationEngine;
use super::error::AdmissionError;
use super::generation::{Admitted, Echo, Generation, GenerationInfo};
use super::hall::AdapterHall;
use super::lease::SharedLease;
use super::validate::{InvalidRequest, Limits, Resolved, prompt_field};
use crate::adapters::{AdapterRegistry, ResidentLease};
use crate::telemetry::metrics::Metrics;
use crate::text::{ChatTemplate, ChoiceText, Tokenizer};
use crate::types::generate::{GenerateInput, PromptInput};
use crate::types::{AdapterName, AdapterVersion, ClientKey, EngineRequest, RequestId};

/// A request as a client states it, without its transport.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// Of the client or the server.
    pub request_id: String,
    /// `None` is the base.
    pub adapter: Option<AdapterChoice>,
    /// What to continue and how.
    pub input: GenerateInput,
}

/// Which adapter a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Its name.
    pub name: AdapterName,
    /// The version the name must stand for.
    pub version: Option<AdapterVersion>,
}

/// Who sent a request, when it came and when it must have ended.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Who is charged for it.
    pub client: ClientKey,
    /// Queue time counts from here.
    pub arrived: Instant,
    /// The client's deadline.
    pub deadline: Option<Instant>,
}

impl Arrival {
    /// Just now, from nobody in particular, without a deadline.
    #[must_use]
    pub fn now() -> Self {
        Self { client: ClientKey::LOCAL, arrived: Instant::now(), deadline: None }
    }
}

/// A prompt in both of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPrompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The text they come from; for a prompt of ids, the text they stand for.
    pub text: String,
}

/// What the gate is made of.
pub struct GateParts {
    /// Runs requests.
    pub engine: Arc<dyn GenerationEngine>,
    /// Which adapters there are.
    pub registry: Arc<AdapterRegistry>,
    /// Brings adapters to the device.
    pub hall: Arc<dyn AdapterHall>,
    /// Of the base model.
    pub tokenizer: Arc<Tokenizer>,
    /// Of the base model, where it has one.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// What a request may ask for, and what it gets where it does not say.
    pub limits: Limits,
    /// Is told how every request ended.
    pub metrics: Metrics,
    /// Requests in the server at a time.
    pub max_concurrent: u32,
    /// Threads that may tokenize at a time.
    pub tokenize_threads: usize,
}

/// Admits requests. One per server.
pub struct Gate {
    parts: GateParts,
    places: Arc<Semaphore>,
    tokenizing: Arc<Semaphore>,
    next_id: AtomicU64,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(parts: GateParts) -> Self {
        let places = Arc::new(Semaphore::new(parts.max_concurrent as usize));
        let tokenizing = Arc::new(Semaphore::new(parts.tokenize_threads.max(1)));
        Self { parts, places, tokenizing, next_id: AtomicU64::new(1) }
    }

    /// Requests that could be admitted now.
    #[must_use]
    pub fn free_places(&self) -> usize {
        self.places.available_permits()
    }

    /// Check a request, bring its adapter to the device and queue it. Dropping the future gives everything back.
    ///
    /// # Errors
    /// Why it is not admitted; nothing of it is left then.
    pub async fn admit(&self, request: GenerateRequest, arrival: Arrival) -> Result<Generation, AdmissionError> {
        let admitted = self.try_admit(request, arrival).await;
        admitted.inspect_err(|error| self.parts.metrics.record_rejection(error.reason()))
    }

    async fn try_admit(&self, request: GenerateRequest, arrival: Arrival) -> Result<Generation, AdmissionError> {
        let GenerateRequest { request_id, adapter, input } = request;
        if arrival.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(AdmissionError::DeadlineExceeded);
        }
        let place = self.place()?;
        self.parts.limits.check(&input).map_err(|invalid| self.named(invalid))?;
        let field = prompt_field(&input.prompt);
        let prompt = self.tokenize_in_turn(input.prompt.clone()).await?;
        self.parts.limits.check_tokens(field, &prompt.ids).map_err(|invalid| self.named(invalid))?;
        // Once more when the adapter's virtual tokens are known; no adapter is loaded for a prompt that is too long.
        self.parts.limits.room(&input, prompt.ids.len(), 0)?;
        // A name that does not exist is refused before anything is loaded; a lease keeps the version alive from here.
        let lease = match &adapter {
            Some(choice) => Some(self.lease(choice).await?),
            None => None,
        };
        let binding = lease.as_ref().map(ResidentLease::binding);
        let virtual_tokens = binding.and_then(|binding| binding.virtual_tokens).map_or(0, |tokens| tokens.count);
        let Resolved { sampling, stopping, choices } =
            self.parts.limits.resolve(&input, prompt.ids.len(), virtual_tokens)?;

        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let TokenizedPrompt { ids, text } = prompt;
        let ids: Arc<[u32]> = ids.into();
        let texts = (0..choices)
            .map(|_| {
                ChoiceText::new(Arc::clone(&self.parts.tokenizer), &ids, &input.stopping.stop, stopping.min_tokens)
            })
            .collect();
        let version = binding.map(|binding| binding.version);
        let engine_request = EngineRequest {
            id,
            client: arrival.client,
            prompt: Arc::clone(&ids),
            adapter: binding,
            sampling: Arc::new(sampling),
            stopping: Arc::new(stopping),
            choices,
            priority: input.priority,
            tenant_salt: Arc::from([]),
            deadline: arrival.deadline,
            arrived: arrival.arrived,
        };
        let lease = lease.map(SharedLease::new);
        let events = self.parts.engine.submit(engine_request, lease.as_ref().map(SharedLease::for_engine))?;
        Ok(Generation::new(Admitted {
            info: GenerationInfo { request_id, adapter: adapter.map(|choice| choice.name).zip(version), choices },
            id,
            engine: Arc::clone(&self.parts.engine),
            events,
            lease,
            texts,
            stop: input.stopping.stop,
            prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            echo: input.options.echo.then_some(Echo { text, ids }),
            arrival,
            place,
            metrics: self.parts.metrics.clone(),
        }))
    }

    async fn lease(&self, choice: &AdapterChoice) -> Result<ResidentLease, AdmissionError> {
        let want = self.parts.registry.want(&choice.name, choice.version)?;
        let asked = Instant::now();
        let lease = self.parts.hall.resident(want).await?;
        self.parts.metrics.record_adapter_wait(asked.elapsed());
        Ok(lease)
    }

    /// Token ids of a prompt, for a client that wants nothing else. It takes a place while it works.
    ///
    /// # Errors
    /// The prompt is too long, holds unknown ids, or the model has no chat template or refuses the chat.
    pub async fn tokenize(&self, prompt: PromptInput) -> Result<TokenizedPrompt, AdmissionError> {
        let tokenized = match self.place() {
            Ok(_place) => self.tokenize_in_turn(prompt).await,
            Err(full) => Err(full),
        };
        tokenized.inspect_err(|error| self.parts.metrics.record_rejection(error.reason()))
    }

    /// With the text of the token it is about.
    fn named(&self, invalid: InvalidRequest) -> InvalidRequest {
        invalid.name_token(|id| self.parts.tokenizer.token(id))
    }

    /// The text of token ids, for a client that wants nothing else. It takes a place while it works.
    ///
    /// # Errors
    /// There are more ids than the context holds, or one is not in the vocabulary.
    pub async fn detokenize(&self, ids: Vec<u32>, skip_special: bool) -> Result<String, AdmissionError> {
        let work = async {
            let _place = self.place()?;
            self.parts.limits.check_detokenize(&ids).map_err(|invalid| self.named(invalid))?;
            let tokenizer = Arc::clone(&self.parts.tokenizer);
            self.in_turn(move || Ok(tokenizer.decode(&ids, skip_special)?)).await
        };
        work.await.inspect_err(|error: &AdmissionError| self.parts.metrics.record_rejection(error.reason()))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, AdmissionError> {
        let limit = self.parts.max_concurrent;
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| AdmissionError::TooManyRequests { limit })
    }

    async fn tokenize_in_turn(&self, prompt: PromptInput) -> Result<TokenizedPrompt, AdmissionError> {
        self.parts.limits.check_prompt(&prompt).map_err(|invalid| self.named(invalid))?;
        let template = self.parts.chat_template.clone();
        let tokenizer = Arc::clone(&self.parts.tokenizer);
        self.in_turn(move || tokenize(prompt, &tokenizer, template.as_deref())).await
    }

    /// Works off the reactor: a long prompt takes milliseconds.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, AdmissionError> + Send + 'static,
    ) -> Result<T, AdmissionError> {
        // Never closed.
        let turn = Arc::clone(&self.tokenizing).acquire_owned().await.map_err(|_| AdmissionError::TokenizerPanicked)?;
        tokio::task::spawn_blocking(move || {
            // The turn goes with the work and not with the client, who may leave before it is done.
            let _turn = turn;
            work()
        })
        .await
        .map_err(|_| AdmissionError::TokenizerPanicked)?
    }
}

fn tokenize(
    prompt: PromptInput,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<TokenizedPrompt, AdmissionError> {
    let field = prompt_field(&prompt);
    let (ids, text) = match prompt {
        PromptInput::Text(text) => (tokenizer.encode(&text, true)?, text),
        PromptInput::TokenIds(ids) => {
            let text = tokenizer.decode(&ids, false)?;
            (ids, text)
        }
        PromptInput::Chat(chat) => {
            let template = template.ok_or(AdmissionError::NoChatTemplate)?;
            let rendered = template.render(&chat, SystemTime::now())?;
            (tokenizer.encode_chat(&rendered)?, rendered.text())
        }
    };
    if ids.is_empty() {
        return Err(AdmissionError::EmptyPrompt { field });
    }
    Ok(TokenizedPrompt { ids, text })
}

#[cfg(test)]
mod tests;
