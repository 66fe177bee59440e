//! The way of a request into the engine, cheapest refusal first: place → limits → name → tokens → adapter → queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::engine::GenerationEngine;
use super::error::AdmissionError;
use super::generation::{Admitted, Echo, Generation, GenerationInfo};
use super::hall::AdapterHall;
use super::lease::SharedLease;
use super::salt::PrefixSalting;
use super::tokenizing::{TokenizedPrompt, Tokenizing};
use super::validate::{InvalidRequest, Limits, Resolved, prompt_field};
use crate::adapters::{AdapterError, AdapterRegistry, ResidentLease};
use crate::scheduler::places::{NoPlace, Place, Places};
use crate::telemetry::metrics::{Metrics, QueueCause};
use crate::text::{ChatTemplate, ChoiceText, Tokenizer};
use crate::types::generate::{GenerateInput, PromptInput};
use crate::types::{AdapterName, AdapterVersion, ClientKey, ConnectionId, EngineRequest, Party, RequestId};

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
    /// The connection it came over.
    pub connection: ConnectionId,
    /// Queue time counts from here.
    pub arrived: Instant,
    /// The client's deadline.
    pub deadline: Option<Instant>,
}

impl Arrival {
    /// Just now, from nobody in particular, without a deadline.
    #[must_use]
    pub fn now() -> Self {
        Self { client: ClientKey::LOCAL, connection: ConnectionId::default(), arrived: Instant::now(), deadline: None }
    }
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
    /// Threads that may tokenize short texts at a time.
    pub tokenize_threads: usize,
    /// Who shares the prefix cache.
    pub prefix_salting: PrefixSalting,
}

/// Admits requests. One per server.
pub struct Gate {
    parts: GateParts,
    places: Places,
    tokenizing: Tokenizing,
    next_id: AtomicU64,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(parts: GateParts) -> Self {
        let places = Places::new(parts.max_concurrent as usize);
        let (tokenizer, template) = (Arc::clone(&parts.tokenizer), parts.chat_template.clone());
        let (threads, metrics) = (parts.tokenize_threads, parts.metrics.clone());
        let tokenizing = Tokenizing::new(tokenizer, template, &parts.limits, threads, metrics);
        Self { parts, places, tokenizing, next_id: AtomicU64::new(1) }
    }

    /// Requests that could be admitted now.
    #[must_use]
    pub fn free_places(&self) -> usize {
        self.places.free()
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
        let GenerateRequest { request_id, adapter, mut input } = request;
        if arrival.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(AdmissionError::DeadlineExceeded);
        }
        // Whoever names what does not exist is nobody's party until it is refused.
        let version = adapter.as_ref().map(|choice| self.version(choice)).transpose();
        let party = Party { client: arrival.client, adapter: version.as_ref().ok().copied().flatten() };
        let place = self.place(party)?;
        self.parts.limits.check(&input).map_err(|invalid| self.named(invalid))?;
        version?;
        let field = prompt_field(&input.prompt);
        // Moved and not copied: it may be a megabyte, and wait.
        let prompt = self.tokenizing.tokenize(input.prompt.take(), party).await?;
        self.parts.limits.check_tokens(field, &prompt.ids).map_err(|invalid| self.named(invalid))?;
        // Once more when the adapter's virtual tokens are known; no adapter is loaded for a prompt that is too long.
        self.parts.limits.room(&input, prompt.ids.len(), 0)?;
        // A lease keeps the version alive from here; which one it is may have changed meanwhile.
        let lease = match &adapter {
            Some(choice) => Some(self.lease(choice, arrival.client).await?),
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
            connection: arrival.connection,
            prompt: Arc::clone(&ids),
            adapter: binding,
            sampling: Arc::new(sampling),
            stopping: Arc::new(stopping),
            choices,
            priority: input.priority,
            tenant_salt: self.parts.prefix_salting.salt(arrival.client, &input.cache_salt),
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

    /// What a name stands for now.
    fn version(&self, choice: &AdapterChoice) -> Result<AdapterVersion, AdapterError> {
        self.parts.registry.lease(&choice.name, choice.version).map(|lease| lease.version())
    }

    async fn lease(&self, choice: &AdapterChoice, client: ClientKey) -> Result<ResidentLease, AdmissionError> {
        let want = self.parts.registry.want(&choice.name, choice.version, client)?;
        let asked = Instant::now();
        let lease = self.parts.hall.resident(want).await?;
        self.parts.metrics.record_adapter_wait(asked.elapsed());
        self.parts.metrics.record_queue_wait(QueueCause::Adapter, asked.elapsed());
        Ok(lease)
    }

    /// Token ids of a prompt, for a client that wants nothing else. It takes a place while it works.
    ///
    /// # Errors
    /// The prompt is too long, holds unknown ids, or the model has no chat template or refuses the chat.
    pub async fn tokenize(&self, prompt: PromptInput, client: ClientKey) -> Result<TokenizedPrompt, AdmissionError> {
        let party = Party { client, adapter: None };
        let tokenized = match self.place(party) {
            Ok(_place) => self.tokenize_checked(prompt, party).await,
            Err(full) => Err(full),
        };
        tokenized.inspect_err(|error| self.parts.metrics.record_rejection(error.reason()))
    }

    async fn tokenize_checked(&self, prompt: PromptInput, party: Party) -> Result<TokenizedPrompt, AdmissionError> {
        self.parts.limits.check_prompt(&prompt).map_err(|invalid| self.named(invalid))?;
        self.tokenizing.tokenize(prompt, party).await
    }

    fn place(&self, party: Party) -> Result<Place, AdmissionError> {
        let limit = self.parts.max_concurrent;
        self.places.take(party).map_err(|refused| match refused {
            NoPlace::Full => AdmissionError::TooManyRequests { limit },
            NoPlace::Share { holder, held } => AdmissionError::ShareOfRequests { holder, held, limit },
        })
    }

    /// With the text of the token it is about.
    fn named(&self, invalid: InvalidRequest) -> InvalidRequest {
        invalid.name_token(|id| self.parts.tokenizer.token(id))
    }

    /// The text of token ids, for a client that wants nothing else. It takes a place while it works.
    ///
    /// # Errors
    /// There are more ids than the context holds, or one is not in the vocabulary.
    pub async fn detokenize(
        &self,
        ids: Vec<u32>,
        skip_special: bool,
        client: ClientKey,
    ) -> Result<String, AdmissionError> {
        let work = async {
            let party = Party { client, adapter: None };
            let _place = self.place(party)?;
            self.parts.limits.check_detokenize(&ids).map_err(|invalid| self.named(invalid))?;
            self.tokenizing.detokenize(ids, skip_special, party).await
        };
        work.await.inspect_err(|error: &AdmissionError| self.parts.metrics.record_rejection(error.reason()))
    }
}

#[cfg(test)]
mod tests;
