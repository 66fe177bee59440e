//! The way of a request into the engine, cheapest refusal first: place → limits → name → tokens → adapter → queue. A chat
//! is rendered with its adapter's own template where that has one.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::arrival::Arrival;
use super::delta::{DeltaChoice, ResolvedDelta, ServingDelta};
use super::error::{AdmissionError, Wanted};
use super::generation::{Admitted, Echo, Generation, GenerationInfo};
use super::lease::SharedLease;
use super::receipt::{Draft, Noted};
use super::salt::PrefixSalting;
use super::texts::{AdapterTexts, Chosen, OwnText};
use super::tokenizing::{TokenizedPrompt, Tokenizing};
use super::validate::{InvalidRequest, Limits, Resolved, prompt_field};
use crate::adapters::{AdapterError, AdapterRegistry, ResidentLease, Want};
use crate::delta::DeltaError;
use crate::engine::{AdapterInstaller, GenerationEngine};
use crate::receipt::Origin;
use crate::scheduler::places::{NoPlace, Place, Places};
use crate::telemetry::LoraRequest;
use crate::telemetry::metrics::{Metrics, QueueCause};
use crate::text::{ChatTemplate, ChoiceText, Tokenizer};
use crate::types::generate::{GenerateInput, OutputOptions, PromptInput};
use crate::types::{AdapterBinding, AdapterName, AdapterTask, ClientKey, EngineRequest, Party, RequestId};

mod pooling;

pub use pooling::PoolRequest;

/// A request as a client states it, without its transport.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmissionRequest {
    /// Of the client or the server.
    pub request_id: String,
    /// What to compute it with.
    pub delta: DeltaChoice,
    /// What to continue and how.
    pub input: GenerateInput,
    /// Bytes of an answer that is given as a whole; `None` for one that is streamed.
    pub max_answer_bytes: Option<u64>,
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
    /// What adapters bring for texts.
    pub adapter_texts: Arc<AdapterTexts>,
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
    /// What receipts say of this server.
    pub origin: Origin,
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
        let tokenizing = Tokenizing::new(&parts.limits, parts.tokenize_threads, parts.metrics.clone());
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
        let AdmissionRequest { request_id, delta, mut input, max_answer_bytes } = request;
        if arrival.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(AdmissionError::DeadlineExceeded);
        }
        let resolved = self.resolve(&delta).await;
        let party = party(arrival.client, &resolved);
        let place = self.place(party)?;
        let limits = self.limits(resolved.as_ref().ok());
        limits.check(&input).map_err(|invalid| self.named(invalid, None))?;
        let resolved = resolved?;
        check_task(Wanted::Tokens, &resolved)?;
        let text = self.text(&resolved, party).await?;
        let text = text.as_ref();
        let prompt = self.tokenize_input(&mut input.prompt, &resolved, text, party).await?;
        // Once more when the adapter's virtual tokens are known; no adapter is loaded for a prompt that is too long.
        limits.room(&input, prompt.ids.len(), 0)?;
        if let Some(max_bytes) = max_answer_bytes {
            limits.check_answer(&input, prompt.ids.len(), max_bytes)?;
        }
        let brought = self.bring(Wanted::Tokens, resolved, arrival.client).await?;
        let binding = brought.binding(&prompt);
        let virtual_tokens = binding.and_then(|binding| binding.virtual_tokens).map_or(0, |tokens| tokens.count);
        // Once more when the adapter's vocabulary is known.
        let limits = Limits::with_eos(self.limits_of(&brought), text.and_then(|text| text.eos));
        limits.check_ids(&input, &prompt.ids).map_err(|invalid| self.named(invalid, text))?;
        let resolved = limits.resolve(&input, prompt.ids.len(), virtual_tokens)?;

        self.submit(Ready {
            request_id,
            prompt,
            tokenizer: self.tokenizer(text),
            brought,
            resolved,
            stop: input.stopping.stop,
            options: input.options,
            priority: input.priority,
            cache_salt: &input.cache_salt,
            arrival,
            place,
        })
    }

    /// Hand a request over to the engine.
    fn submit(&self, ready: Ready<'_>) -> Result<Generation, AdmissionError> {
        let Ready { request_id, prompt, tokenizer, brought, resolved, stop, options, arrival, place, .. } = ready;
        let Resolved { sampling, stopping, choices } = resolved;
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let binding = brought.binding(&prompt);
        let Brought { serving, lease, lora } = brought;
        let TokenizedPrompt { ids, text } = prompt;
        let ids: Arc<[u32]> = ids.into();
        let choice_text = || ChoiceText::new(Arc::clone(&tokenizer), &ids, &stop, stopping.min_tokens);
        let texts = (0..choices).map(|_| choice_text()).collect();
        let active_from = binding.map(|binding| binding.active_from).filter(|from| *from != AdapterBinding::NEVER);
        let draft = options.receipt.then(|| {
            Draft::new(&Noted {
                origin: &self.parts.origin,
                serving: &serving,
                active_from,
                prompt: &ids,
                sampling: &sampling,
                stopping: &stopping,
                stop: &stop,
                choices,
                reports_logprobs: options.logprobs.is_some(),
            })
        });
        let engine_request = EngineRequest {
            id,
            client: arrival.client,
            connection: arrival.connection,
            prompt: Arc::clone(&ids),
            adapter: binding,
            sampling: Arc::new(sampling),
            stopping: Arc::new(stopping),
            choices,
            priority: ready.priority,
            tenant_salt: self.parts.prefix_salting.salt(arrival.client, ready.cache_salt),
            deadline: arrival.deadline,
            arrived: arrival.arrived,
        };
        let lease = lease.map(SharedLease::new);
        let events = self.parts.engine.submit(engine_request, lease.as_ref().map(SharedLease::for_engine))?;
        Ok(Generation::new(Admitted {
            info: GenerationInfo { request_id, delta: serving, active_from, choices },
            id,
            engine: Arc::clone(&self.parts.engine),
            events,
            lease,
            lora,
            texts,
            stop,
            prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            echo: options.echo.then_some(Echo { text, ids }),
            draft,
            arrival,
            place,
            metrics: self.parts.metrics.clone(),
        }))
    }

    /// What a request is computed with, on the device; it is counted while it waits for that, too.
    async fn bring(&self, wanted: Wanted, delta: ResolvedDelta, client: ClientKey) -> Result<Brought, AdmissionError> {
        let (serving, is_sent) = (delta.serving(), matches!(delta, ResolvedDelta::Sent(_)));
        let requests = self.parts.metrics.lora_requests();
        let lora = delta.adapters().into_iter().map(|adapter| requests.waiting(&adapter.name)).collect();
        let Some(want) = delta.want(&self.parts.registry, client)? else {
            return Ok(Brought { serving, lease: None, lora });
        };
        let lease = self.lease(want, is_sent).await?;
        // Once more, of one whose task was not known before it was loaded. A mix has no head.
        if let ServingDelta::Adapter { name, .. } = &serving {
            check_task_of(wanted, name, lease.task())?;
        }
        if is_sent {
            self.check_sent(&lease)?;
        }
        Ok(Brought { serving, lease: Some(lease), lora })
    }

    /// What the request brings is known when it is loaded, and its tokens by then are the base's.
    fn check_sent(&self, lease: &ResidentLease) -> Result<(), AdmissionError> {
        let Some(tokens) = lease.vocab_size() else { return Ok(()) };
        Err(AdmissionError::Sent(Arc::new(DeltaError::ResizedVocabulary {
            of: "inline_adapter.weights".to_owned(),
            tokens: tokens as usize,
            vocab_size: self.parts.limits.vocab_size as usize,
            reason: "an adapter that a request brings has the tokens of the base; upload it",
        })))
    }

    /// What a request may ask for that is computed with this, as far as that is known.
    fn limits(&self, delta: Option<&ResolvedDelta>) -> Cow<'_, Limits> {
        let limits = &self.parts.limits;
        limits.of_vocabulary(delta.and_then(|delta| delta.vocab_size(limits.vocab_size)))
    }

    /// The same where it is on the device.
    fn limits_of(&self, brought: &Brought) -> Cow<'_, Limits> {
        self.parts.limits.of_vocabulary(brought.lease.as_ref().and_then(ResidentLease::vocab_size))
    }

    async fn resolve(&self, delta: &DeltaChoice) -> Result<ResolvedDelta, AdmissionError> {
        delta.resolve(&self.parts.registry, self.parts.limits.max_inline_adapter_bytes).await
    }

    /// What is wrong with an adapter that the request brings is wrong with the request.
    async fn lease(&self, want: Want, is_sent: bool) -> Result<ResidentLease, AdmissionError> {
        let asked = Instant::now();
        let lease = self.parts.installer.acquire(want).await.map_err(|error| match error {
            AdapterError::LoadFailed { source, .. } if is_sent => AdmissionError::Sent(source),
            error => error.into(),
        })?;
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
        delta: &DeltaChoice,
        client: ClientKey,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let work = async {
            let resolved = self.resolve(delta).await;
            let party = party(client, &resolved);
            let _place = self.place(party)?;
            let resolved = resolved?;
            self.limits(Some(&resolved)).check_prompt(&prompt).map_err(|invalid| self.named(invalid, None))?;
            let text = self.text(&resolved, party).await?;
            self.tokenize_for(prompt, &resolved, text.as_ref(), party).await
        };
        work.await.inspect_err(|error: &AdmissionError| self.parts.metrics.record_rejection(error.reason()))
    }

    /// Token ids of a prompt that was checked, which the model has rows for. It is moved and not copied: it may be a
    /// megabyte, and wait.
    async fn tokenize_input(
        &self,
        prompt: &mut PromptInput,
        delta: &ResolvedDelta,
        text: Option<&Arc<OwnText>>,
        party: Party,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let field = prompt_field(prompt);
        let tokenized = self.tokenize_for(prompt.take(), delta, text, party).await?;
        self.limits(Some(delta)).check_tokens(field, &tokenized.ids).map_err(|invalid| self.named(invalid, text))?;
        Ok(tokenized)
    }

    /// Token ids of a prompt that was checked.
    async fn tokenize_for(
        &self,
        prompt: PromptInput,
        delta: &ResolvedDelta,
        text: Option<&Arc<OwnText>>,
        party: Party,
    ) -> Result<TokenizedPrompt, AdmissionError> {
        let template = match prompt {
            PromptInput::Chat(_) => self.template(delta, text, party).await?,
            PromptInput::Text(_) | PromptInput::TokenIds(_) => None,
        };
        self.tokenizing.tokenize(prompt, template, &self.tokenizer(text), party).await
    }

    /// The template of a chat: the adapter's own, else the model's.
    async fn template(
        &self,
        delta: &ResolvedDelta,
        text: Option<&Arc<OwnText>>,
        party: Party,
    ) -> Result<Option<Chosen>, AdmissionError> {
        let Some((adapter, own)) = delta.chat_template()? else {
            let template = text.map_or(&self.parts.chat_template, |text| &text.chat_template);
            return Ok(template.clone().map(|template| Chosen { template, adapter: None }));
        };
        let GateParts { adapter_texts, registry, installer, .. } = &self.parts;
        let template = adapter_texts.template(adapter, own, text, party, registry, installer.as_ref()).await?;
        Ok(Some(Chosen { template, adapter: Some(adapter.name.clone()) }))
    }

    /// What texts are read and written with; `None`: as the base's are, for an adapter without tokens of its own.
    async fn text(&self, delta: &ResolvedDelta, party: Party) -> Result<Option<Arc<OwnText>>, AdmissionError> {
        let Some((adapter, tokens)) = delta.tokens()? else { return Ok(None) };
        let GateParts { adapter_texts, chat_template, registry, installer, .. } = &self.parts;
        let asked = adapter_texts.text(adapter, tokens, chat_template.as_ref(), party, registry, installer.as_ref());
        asked.await.map(Some)
    }

    fn tokenizer(&self, text: Option<&Arc<OwnText>>) -> Arc<Tokenizer> {
        Arc::clone(text.map_or(&self.parts.tokenizer, |text| &text.tokenizer))
    }

    fn place(&self, party: Party) -> Result<Place, AdmissionError> {
        let limit = self.parts.max_concurrent;
        self.places.take(party).map_err(|refused| match refused {
            NoPlace::Full => AdmissionError::TooManyRequests { limit },
            NoPlace::Share { holder, held } => AdmissionError::ShareOfRequests { holder, held, limit },
        })
    }

    /// With the text of the token it is about.
    fn named(&self, invalid: InvalidRequest, text: Option<&Arc<OwnText>>) -> InvalidRequest {
        invalid.name_token(|id| self.tokenizer(text).token(id))
    }

    /// The text of token ids, those of an adapter with its own tokens, for a client that wants nothing else. It takes a place
    /// while it works; no adapter is loaded for it.
    ///
    /// # Errors
    /// There are more ids than the context holds, one is not in the vocabulary, or there is no such adapter.
    pub async fn detokenize(
        &self,
        ids: Vec<u32>,
        skip_special: bool,
        delta: &DeltaChoice,
        client: ClientKey,
    ) -> Result<String, AdmissionError> {
        let work = async {
            let resolved = self.resolve(delta).await;
            let party = party(client, &resolved);
            let _place = self.place(party)?;
            let resolved = resolved?;
            let text = self.text(&resolved, party).await?;
            let text = text.as_ref();
            let checked = self.limits(Some(&resolved)).check_detokenize(&ids);
            checked.map_err(|invalid| self.named(invalid, text))?;
            self.tokenizing.detokenize(ids, skip_special, &self.tokenizer(text), party).await
        };
        work.await.inspect_err(|error: &AdmissionError| self.parts.metrics.record_rejection(error.reason()))
    }
}

/// What a request is computed with, on the device.
struct Brought {
    serving: ServingDelta,
    /// `None` is the base.
    lease: Option<ResidentLease>,
    /// One for every adapter of it.
    lora: Vec<LoraRequest>,
}

impl Brought {
    fn binding(&self, prompt: &TokenizedPrompt) -> Option<AdapterBinding> {
        self.lease.as_ref().map(|lease| lease.binding(&prompt.ids))
    }
}

/// What a request that may go to the engine is made of.
struct Ready<'a> {
    request_id: String,
    prompt: TokenizedPrompt,
    tokenizer: Arc<Tokenizer>,
    brought: Brought,
    resolved: Resolved,
    stop: Vec<String>,
    options: OutputOptions,
    priority: i32,
    cache_salt: &'a str,
    arrival: Arrival,
    place: Place,
}

/// Whether an adapter has what is wanted, as far as that is known; of a mix every part.
fn check_task(wanted: Wanted, delta: &ResolvedDelta) -> Result<(), AdmissionError> {
    let tasks = delta.adapters().into_iter().filter_map(|adapter| Some((&adapter.name, adapter.task?)));
    tasks.into_iter().try_for_each(|(name, task)| check_task_of(wanted, name, task))
}

fn check_task_of(wanted: Wanted, adapter: &AdapterName, task: AdapterTask) -> Result<(), AdmissionError> {
    if wanted.is_had_by(task) {
        return Ok(());
    }
    Err(AdmissionError::Task { adapter: adapter.clone(), task, wanted })
}

/// Whoever names what does not exist is nobody's party until it is refused.
fn party(client: ClientKey, resolved: &Result<ResolvedDelta, AdmissionError>) -> Party {
    Party { client, adapter: resolved.as_ref().ok().and_then(ResolvedDelta::version) }
}

#[cfg(test)]
mod tests;
