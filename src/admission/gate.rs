//! The way of a request into the engine, cheapest refusal first: place → limits → name → tokens → adapter → queue. A chat
//! is rendered with its adapter's own template where that has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::arrival::Arrival;
use super::error::AdmissionError;
use super::generation::{Admitted, Echo, Generation, GenerationInfo};
use super::lease::SharedLease;
use super::salt::PrefixSalting;
use super::templates::{AdapterTemplates, Chosen};
use super::tokenizing::{TokenizedPrompt, Tokenizing};
use super::validate::{InvalidRequest, Limits, Resolved, prompt_field};
use crate::adapters::{AdapterError, AdapterRegistry, ResidentLease, ResolvedAdapter};
use crate::engine::{AdapterInstaller, GenerationEngine};
use crate::scheduler::places::{NoPlace, Place, Places};
use crate::telemetry::metrics::{Metrics, QueueCause};
use crate::text::{ChatTemplate, ChoiceText, Tokenizer};
use crate::types::generate::{GenerateInput, PromptInput};
use crate::types::{AdapterName, AdapterVersion, ClientKey, EngineRequest, Party, RequestId};

/// A request as a client states it, without its transport.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmissionRequest {
    /// Of the client or the server.
    pub request_id: String,
    /// `None` is the base.
    pub adapter: Option<AdapterChoice>,
    /// What to continue and how.
    pub input: GenerateInput,
    /// Bytes of an answer that is given as a whole; `None` for one that is streamed.
    pub max_answer_bytes: Option<u64>,
}

/// Which adapter a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Its name.
    pub name: AdapterName,
    /// The version the name must stand for.
    pub version: Option<AdapterVersion>,
}

/// What the gate is made of.
pub struct GateParts {
    /// Runs requests.
    pub engine: Arc<dyn GenerationEngine>,
    /// Which adapters there are.
    pub registry: Arc<AdapterRegistry>,
    /// Brings adapters to the device.
    pub installer: Arc<dyn AdapterInstaller>,
    /// Of the base model.
    pub tokenizer: Arc<Tokenizer>,
    /// Of the base model, where it has one.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// Those of adapters.
    pub adapter_templates: Arc<AdapterTemplates>,
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
        let (tokenizer, threads, metrics) =
            (Arc::clone(&parts.tokenizer), parts.tokenize_threads, parts.metrics.clone());
        let tokenizing = Tokenizing::new(tokenizer, &parts.limits, threads, metrics);
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
    pub async fn admit(&self, request: AdmissionRequest, arrival: Arrival) -> Result<Generation, AdmissionError> {
        let admitted = self.try_admit(request, arrival).await;
        admitted.inspect_err(|error| self.parts.metrics.record_rejection(error.reason()))
    }

    async fn try_admit(&self, request: AdmissionRequest, arrival: Arrival) -> Result<Generation, AdmissionError> {
        let AdmissionRequest { request_id, adapter, mut input, max_answer_bytes } = request;
        if arrival.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(AdmissionError::DeadlineExceeded);
        }
        let resolved = self.resolve(adapter.as_ref());
        let party = party(arrival.client, &resolved);
        let place = self.place(party)?;
        self.parts.limits.check(&input).map_err(|invalid| self.named(invalid))?;
        let resolved = resolved?;
        let field = prompt_field(&input.prompt);
        // Moved and not copied: it may be a megabyte, and wait.
        let prompt = self.tokenize_for(input.prompt.take(), resolved.as_ref(), party).await?;
        self.parts.limits.check_tokens(field, &prompt.ids).map_err(|invalid| self.named(invalid))?;
        // Once more when the adapter's virtual tokens are known; no adapter is loaded for a prompt that is too long.
        self.parts.limits.room(&input, prompt.ids.len(), 0)?;
        if let Some(max_bytes) = max_answer_bytes {
            self.parts.limits.check_answer(&input, prompt.ids.len(), max_bytes)?;
        }
        let (lease, lora) = match resolved {
            Some(resolved) => {
                // Counted while it waits for its adapter, too.
                let lora = self.parts.metrics.lora_requests().waiting(&resolved.name);
                (Some(self.lease(resolved, arrival.client).await?), Some(lora))
            }
            None => (None, None),
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
            lora,
            texts,
            stop: input.stopping.stop,
            prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            echo: input.options.echo.then_some(Echo { text, ids }),
            arrival,
            place,
            metrics: self.parts.metrics.clone(),
        }))
    }

    /// What a name stands for now; that version is kept from here.
    fn resolve(&self, adapter: Option<&AdapterChoice>) -> Result<Option<ResolvedAdapter>, AdapterError> {
        adapter.map(|choice| self.parts.registry.resolve(&choice.name, choice.version)).transpose()
    }

    async fn lease(&self, adapter: ResolvedAdapter, client: ClientKey) -> Result<ResidentLease, AdmissionError> {
        let want = self.parts.registry.want_resolved(adapter, client)?;
        let asked = Instant::now();
        let lease = self.parts.installer.acquire(want).await?;
        self.parts.metrics.record_queue_wait(QueueCause::Adapter, asked.elapsed());
        Ok(lease)
    }

    /// Token ids of a prompt as the adapter, or the base, would get it, for a client that wants nothing else. It takes a
    /// place while it works; no adapter is loaded for it.
    ///
    /// # Errors
    /// The prompt is too long, holds unknown ids, there is no such adapter, or no chat template, or that refuses the chat.
    pub async fn tokenize(
        &self,
        prompt: PromptInput,
        adapter: Option<&AdapterChoice>,
        client: ClientKey,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let work = async {
            let resolved = self.resolve(adapter);
            let party = party(client, &resolved);
            let _place = self.place(party)?;
            let resolved = resolved?;
            self.parts.limits.check_prompt(&prompt).map_err(|invalid| self.named(invalid))?;
            self.tokenize_for(prompt, resolved.as_ref(), party).await
        };
        work.await.inspect_err(|error: &AdmissionError| self.parts.metrics.record_rejection(error.reason()))
    }

    /// Token ids of a prompt that was checked.
    async fn tokenize_for(
        &self,
        prompt: PromptInput,
        adapter: Option<&ResolvedAdapter>,
        party: Party,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let template = match prompt {
            PromptInput::Chat(_) => self.template(adapter, party).await?,
            PromptInput::Text(_) | PromptInput::TokenIds(_) => None,
        };
        self.tokenizing.tokenize(prompt, template, party).await
    }

    /// The template of a chat: the adapter's own, else the model's.
    async fn template(
        &self,
        adapter: Option<&ResolvedAdapter>,
        party: Party,
    ) -> Result<Option<Chosen>, AdmissionError> {
        let Some((adapter, own)) = adapter.and_then(|adapter| Some((adapter, adapter.chat_template?))) else {
            return Ok(self.parts.chat_template.clone().map(|template| Chosen { template, adapter: None }));
        };
        let GateParts { adapter_templates, registry, installer, .. } = &self.parts;
        let template = adapter_templates.of(adapter, own, party, registry, installer.as_ref()).await?;
        Ok(Some(Chosen { template, adapter: Some(adapter.name.clone()) }))
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

/// Whoever names what does not exist is nobody's party until it is refused.
fn party(client: ClientKey, resolved: &Result<Option<ResolvedAdapter>, AdapterError>) -> Party {
    let adapter = resolved.as_ref().ok().and_then(Option::as_ref).map(|adapter| adapter.lease.version());
    Party { client, adapter }
}

#[cfg(test)]
mod tests;
