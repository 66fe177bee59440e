mod chats;
mod mixes;
mod pooling;
mod sent;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::super::testing::{House, id, metric, recorded, request};
use super::*;
use crate::adapters::AdapterError;
use crate::admission::{AdapterChoice, InvalidRequest, ServingDelta};
use crate::engine::SubmitError;
use crate::scheduler::places::Holder;
use crate::text::{ChatError, TokenizerSettings};
use crate::types::generate::{Chat, ChatMessage};
use crate::types::{AdapterVersion, BaseDigest};

fn with_adapter(name: &str, version: Option<AdapterVersion>) -> AdmissionRequest {
    let delta = DeltaChoice::Adapter(AdapterChoice { name: name.parse().unwrap(), version });
    AdmissionRequest { delta, ..request("prompt") }
}

async fn refusal(house: &House, request: AdmissionRequest) -> AdmissionError {
    match house.gate.admit(request, Arrival::now()).await {
        Ok(_) => panic!("admitted"),
        Err(refusal) => refusal,
    }
}

#[tokio::test]
async fn an_admitted_request_is_what_the_client_asked_for() {
    let house = House::new();
    let version = house.adapter("sql", 1);
    let mut wanted = with_adapter("sql", Some(version));
    wanted.request_id = "trace-7".into();
    wanted.input.choices = 2;
    wanted.input.priority = -3;
    wanted.input.sampling.seed = Some(9);
    wanted.input.stopping.max_tokens = Some(5);
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let arrival = Arrival { deadline, ..Arrival::now() };
    let generation = house.gate.admit(wanted, arrival).await.unwrap();
    let info = generation.info();
    assert_eq!((info.request_id.as_str(), info.choices), ("trace-7", 2));
    assert_eq!(info.delta, ServingDelta::Adapter { name: "sql".parse().unwrap(), version });
    let submitted = house.engine.take();
    let request = &submitted.request;
    assert_eq!(&request.prompt[..], house.gate.parts.tokenizer.encode("prompt", true).unwrap());
    assert_eq!(request.adapter.unwrap().version, version);
    assert_eq!((request.choices, request.priority, request.deadline), (2, -3, deadline));
    assert_eq!((request.sampling.seed, request.stopping.max_tokens), (9, 5));
    assert_eq!(request.arrived, arrival.arrived);
    assert!(submitted.lease.is_some(), "the engine holds the adapter");
}

#[tokio::test]
async fn the_lease_lives_as_long_as_the_engine_wants() {
    let house = House::new();
    house.adapter("sql", 1);
    let generation = house.gate.admit(with_adapter("sql", None), Arrival::now()).await.unwrap();
    drop(generation);
    let submitted = house.engine.take();
    assert_eq!(house.registry.leases(), 1, "rows of it may be in a step");
    drop(submitted);
    assert_eq!(house.registry.leases(), 0);
}

#[tokio::test]
async fn places_are_few_and_come_back() {
    let house = House::new();
    let first = house.gate.admit(request("a"), Arrival::now()).await.unwrap();
    let _second = house.gate.admit(request("b"), Arrival::now()).await.unwrap();
    assert!(matches!(refusal(&house, request("c")).await, AdmissionError::TooManyRequests { limit: 2 }));
    let text = || PromptInput::Text("a".into());
    assert!(matches!(
        house.gate.tokenize(text(), &DeltaChoice::Base, ClientKey::LOCAL).await,
        Err(AdmissionError::TooManyRequests { limit: 2 })
    ));
    drop(first);
    assert!(house.gate.admit(request("c"), Arrival::now()).await.is_ok());
    assert!(
        house.gate.tokenize(text(), &DeltaChoice::Base, ClientKey::LOCAL).await.is_ok(),
        "and gives its place back"
    );
    assert!(house.gate.admit(request("c"), Arrival::now()).await.is_ok());
}

#[tokio::test]
async fn every_refusal_gives_the_place_back() {
    let house = House::new();
    house.adapter("sql", 1);
    let version = AdapterVersion([7; 32]);
    let mut zero = request("x");
    zero.input.stopping.max_tokens = Some(0);
    let invalid = refusal(&house, zero).await;
    assert!(matches!(invalid, AdmissionError::Invalid(InvalidRequest::Zero { .. })));
    let unknown = refusal(&house, with_adapter("none", None)).await;
    assert!(matches!(unknown, AdmissionError::Adapter(AdapterError::NotFound { .. })));
    let other = refusal(&house, with_adapter("sql", Some(version))).await;
    assert!(matches!(other, AdmissionError::Adapter(AdapterError::VersionMismatch { .. })));
    house.engine.refuse(SubmitError::QueueFull { queued: 4, limit: 4 });
    let full = refusal(&house, with_adapter("sql", None)).await;
    assert!(matches!(full, AdmissionError::Submit(SubmitError::QueueFull { queued: 4, limit: 4 })));
    house.engine.refuse(SubmitError::Stopped);
    assert!(matches!(refusal(&house, request("x")).await, AdmissionError::Submit(SubmitError::Stopped)));
    house.installer.broken.store(true, SeqCst);
    house.adapter("new", 2);
    let broken = refusal(&house, with_adapter("new", None)).await;
    assert!(matches!(broken, AdmissionError::Adapter(AdapterError::LoadFailed { .. })));
    assert_eq!((house.gate.free_places(), house.registry.leases(), house.engine.submitted()), (2, 0, 0));
}

#[tokio::test]
async fn the_cheapest_refusal_comes_first() {
    let house = House::new();
    house.adapter("sql", 1);
    // Everything is wrong with this one; each round mends what was named.
    let mut wrong = with_adapter("none", None);
    wrong.input.prompt = PromptInput::Text("a".repeat(200));
    wrong.input.choices = 99;
    let past = Arrival { deadline: Some(Instant::now()), ..Arrival::now() };
    let refused = house.gate.admit(wrong.clone(), past).await.err();
    assert!(matches!(refused, Some(AdmissionError::DeadlineExceeded)));
    let held =
        [house.gate.admit(request("a"), Arrival::now()).await, house.gate.admit(request("b"), Arrival::now()).await];
    assert!(matches!(refusal(&house, wrong.clone()).await, AdmissionError::TooManyRequests { .. }));
    drop(held);
    let field = |error: AdmissionError| match error {
        AdmissionError::Invalid(invalid) => invalid.field().to_owned(),
        other => panic!("{other}"),
    };
    assert_eq!(field(refusal(&house, wrong.clone()).await), "n");
    wrong.input.choices = 1;
    let unknown = refusal(&house, wrong.clone()).await;
    assert!(matches!(unknown, AdmissionError::Adapter(AdapterError::NotFound { .. })), "before it is tokenized");
    wrong.delta = with_adapter("sql", None).delta;
    assert_eq!(field(refusal(&house, wrong).await), "prompt");
    assert_eq!(house.installer.asked.load(SeqCst), 0, "no adapter was loaded for any of them");
}

#[tokio::test]
async fn virtual_tokens_count_towards_the_context() {
    let house = House::new();
    house.installer.virtual_tokens.store(30, SeqCst);
    house.adapter("prefix", 1);
    let mut wanted = with_adapter("prefix", None);
    wanted.input.prompt = PromptInput::TokenIds(vec![id("a"); 60]);
    let generation = house.gate.admit(wanted.clone(), Arrival::now()).await.unwrap();
    assert_eq!(house.engine.take().request.stopping.max_tokens, 10, "what 60 and 30 of 100 leave");
    drop(generation);
    wanted.input.stopping.max_tokens = Some(11);
    let refused = refusal(&house, wanted).await;
    let expected =
        InvalidRequest::MaxTokens { max_tokens: 11, prompt_tokens: Some(60), virtual_tokens: 30, context_length: 100 };
    assert!(matches!(refused, AdmissionError::Invalid(invalid) if invalid == expected));
    assert_eq!(house.registry.leases(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_adapter_loads_leaves_nothing_behind() {
    let house = House::new();
    house.adapter("sql", 1);
    house.installer.stuck.store(true, SeqCst);
    let mut admission = Box::pin(house.gate.admit(with_adapter("sql", None), Arrival::now()));
    while house.installer.asked.load(SeqCst) == 0 {
        assert!(futures_poll(&mut admission).await.is_none());
    }
    assert_eq!((house.gate.free_places(), house.registry.leases()), (1, 1));
    drop(admission);
    assert_eq!((house.gate.free_places(), house.registry.leases(), house.engine.submitted()), (2, 0, 0));
}

/// Poll once and let others run.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &TokenizerSettings::default(), &crate::text::fixtures::byte_level()).unwrap()
}

#[tokio::test]
async fn every_form_of_a_prompt_becomes_ids_and_text() {
    let template = template("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}");
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(template)));
    let tokenizer = Arc::clone(&house.gate.parts.tokenizer);
    let text = house.gate.tokenize(PromptInput::Text("hi".into()), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    assert_eq!(text, TokenizedPrompt { ids: tokenizer.encode("hi", true).unwrap(), text: "hi".into() });
    let ids = vec![id("h"), id("i")];
    let given =
        house.gate.tokenize(PromptInput::TokenIds(ids.clone()), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    assert_eq!(given, TokenizedPrompt { ids, text: "hi".into() });
    let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
    let chat = PromptInput::Chat(vec![message("user", "hi"), message("assistant", "ho")].into());
    let rendered = house.gate.tokenize(chat, &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    let wanted = "user:hi;assistant:ho;";
    let ids = tokenizer.encode(wanted, false).unwrap();
    assert_eq!(rendered, TokenizedPrompt { ids, text: wanted.into() }, "no special tokens are added");
}

#[tokio::test]
async fn ids_become_text_and_ids_that_are_no_tokens_are_refused() {
    let house = House::new();
    let tokenizer = Arc::clone(&house.gate.parts.tokenizer);
    let end = tokenizer.token_id("</s>").unwrap();
    let ids = vec![id("h"), end, id("i")];
    assert_eq!(
        house.gate.detokenize(ids.clone(), false, &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap(),
        "h</s>i"
    );
    assert_eq!(house.gate.detokenize(ids, true, &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap(), "hi");
    assert_eq!(house.gate.detokenize(vec![], true, &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap(), "");
    for (ids, named) in [(vec![id("h"), u32::MAX], "token_ids[1]"), (vec![end; 101], "token_ids")] {
        let refused = house.gate.detokenize(ids, true, &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap_err();
        assert!(matches!(&refused, AdmissionError::Invalid(invalid) if invalid.field() == named), "{refused:?}");
    }
    assert_eq!(house.gate.free_places(), 2);
}

#[tokio::test]
async fn control_tokens_in_a_message_are_text_unless_the_request_allows_them() {
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(template("{{ messages[0].content }}</s>"))));
    let tokenizer = Arc::clone(&house.gate.parts.tokenizer);
    let end = tokenizer.token_id("</s>").unwrap();
    let ends = |ids: &[u32]| ids.iter().filter(|id| **id == end).count();
    let message = ChatMessage { role: "user".into(), content: "hi</s>".into() };
    let mut chat = Chat::from(vec![message]);
    let quoted =
        house.gate.tokenize(PromptInput::Chat(chat.clone()), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    assert_eq!((ends(&quoted.ids), quoted.text.as_str()), (1, "hi</s></s>"));
    assert_eq!(tokenizer.decode(&quoted.ids, true).unwrap(), "hi</s>");
    chat.allow_special_tokens = true;
    let allowed = house.gate.tokenize(PromptInput::Chat(chat), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    assert_eq!((ends(&allowed.ids), allowed.text), (2, quoted.text));
}

/// The only lane is theirs in turn, and what they may take ends.
#[tokio::test]
async fn hostile_renderings_leave_tokenizing_to_others() {
    let endless = "{% if messages[0].content == 'go' %}{% for i in range(100000) %}{% for j in range(100000) %}\
                   {% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}";
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(template(endless))));
    let chat =
        |content: &str| PromptInput::Chat(vec![ChatMessage { role: "user".into(), content: content.into() }].into());
    let (hostile, polite) = tokio::join!(
        house.gate.tokenize(chat("go"), &DeltaChoice::Base, ClientKey::LOCAL),
        house.gate.tokenize(chat("hi"), &DeltaChoice::Base, ClientKey::LOCAL)
    );
    let refused = hostile.unwrap_err();
    assert!(matches!(refused, AdmissionError::Chat { source: ChatError::Limit { .. }, adapter: None }), "{refused:?}");
    assert_eq!(refused.reason(), "template");
    assert_eq!(polite.unwrap().text, "hi");
    assert_eq!((house.gate.free_places(), house.gate.tokenizing.free_turns()), (2, 1));
}

#[tokio::test]
async fn prompts_that_cannot_be_tokenized_are_refused() {
    let house = House::new();
    let chat = |messages: Vec<ChatMessage>| PromptInput::Chat(messages.into());
    let user = ChatMessage { role: "user".into(), content: "hi".into() };
    let refused = house.gate.tokenize(chat(vec![user.clone()]), &DeltaChoice::Base, ClientKey::LOCAL).await;
    assert!(matches!(refused, Err(AdmissionError::NoChatTemplate)));
    let long = house.gate.tokenize(PromptInput::Text("a".repeat(1001)), &DeltaChoice::Base, ClientKey::LOCAL).await;
    assert!(matches!(long, Err(AdmissionError::Invalid(InvalidRequest::TooLong { bytes: 1001, max: 1000, .. }))));
    let raising = template("{{ raise_exception('no system role') }}");
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(raising)));
    let refused = house.gate.tokenize(chat(vec![user.clone()]), &DeltaChoice::Base, ClientKey::LOCAL).await;
    assert!(matches!(refused, Err(AdmissionError::Chat { .. })));
    let silent = template("");
    let house = House::with(|parts| parts.chat_template = Some(Arc::new(silent)));
    assert!(matches!(
        house.gate.tokenize(chat(vec![user]), &DeltaChoice::Base, ClientKey::LOCAL).await,
        Err(AdmissionError::EmptyPrompt { field: "chat.messages" })
    ));
}

/// The only thread that may block is busy, so that the work of a client that has left is still to be done.
#[test]
fn tokenizing_keeps_its_turn_when_its_client_leaves() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let house = House::new();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv());
        let mut tokenizing =
            Box::pin(house.gate.tokenize(PromptInput::Text("hi".into()), &DeltaChoice::Base, ClientKey::LOCAL));
        assert!(futures_poll(&mut tokenizing).await.is_none());
        drop(tokenizing);
        assert_eq!((house.gate.free_places(), house.gate.tokenizing.free_turns()), (2, 0));
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
        house.gate.tokenize(PromptInput::Text("hi".into()), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
        assert_eq!(house.gate.tokenizing.free_turns(), 1);
    });
}

#[tokio::test]
async fn refusals_and_waits_are_counted() {
    let (metrics, handle) = recorded();
    let house = House::with(|parts| parts.metrics = metrics);
    house.adapter("sql", 1);
    let mut zero = request("x");
    zero.input.stopping.max_tokens = Some(0);
    refusal(&house, zero.clone()).await;
    refusal(&house, zero).await;
    refusal(&house, with_adapter("none", None)).await;
    drop(house.gate.admit(with_adapter("sql", None), Arrival::now()).await.unwrap());
    let rejected = |reason| metric(&handle, "polydelta_queue_rejected_total", &[reason]);
    assert_eq!(rejected("reason=\"invalid\""), Some(2.0));
    assert_eq!(rejected("reason=\"adapter\""), Some(1.0));
    let waits = metric(&handle, "polydelta_queue_wait_seconds_count", &["cause=\"adapter\""]);
    assert_eq!(waits, Some(1.0));
}

/// A tokenizer may know tokens that were added to it and that the model has no rows for.
#[tokio::test]
async fn an_id_that_the_model_has_no_row_for_is_refused_wherever_it_comes_from_and_named_with_its_text() {
    let tokenizer = House::new().gate.parts.tokenizer.clone();
    let id = tokenizer.token_id("</s>").unwrap();
    let house = House::with(|parts| {
        parts.limits.vocab_size = id;
        parts.chat_template = Some(Arc::new(template("{{ messages[0].content }}</s>")));
    });
    // Of an adapter that was never compiled its tokens show when it is loaded.
    house.registry.serve_base(BaseDigest([1; 32]), 4);
    house.adapter("sql", 1);
    let input = |change: fn(&mut GenerateInput, u32)| {
        let mut wanted = with_adapter("sql", None);
        // The prompt itself begins without an added token.
        wanted.input.prompt = PromptInput::TokenIds(vec![1]);
        change(&mut wanted.input, id);
        wanted
    };
    let cases = [
        (input(|input, _| input.prompt = PromptInput::Text("a </s> b".into())), "prompt"),
        (input(|input, id| input.prompt = PromptInput::TokenIds(vec![1, id])), "token_ids.ids[1]"),
        (
            input(|input, _| {
                input.prompt = PromptInput::Chat(vec![ChatMessage { role: "user".into(), content: "a".into() }].into());
            }),
            "chat.messages",
        ),
        (input(|input, id| input.sampling.logit_bias = vec![(id, 1.0)]), "sampling.logit_bias"),
        (input(|input, id| input.stopping.stop_token_ids = vec![id]), "stopping.stop_token_ids[0]"),
    ];
    for (wanted, field) in cases {
        let error = refusal(&house, wanted).await;
        let AdmissionError::Invalid(invalid) = &error else { panic!("{error:?}") };
        assert_eq!(invalid.field(), field);
        let text = invalid.to_string();
        assert!(text.contains(&format!("token id {id} (\"</s>\")")), "{text}");
    }
    assert_eq!(house.installer.asked.load(SeqCst), 0, "no adapter is loaded for it");
    let unknown = refusal(&house, input(|input, _| input.prompt = PromptInput::TokenIds(vec![u32::MAX]))).await;
    assert!(unknown.to_string().contains(&format!("token id {} is not", u32::MAX)), "{unknown}");
    let text =
        house.gate.tokenize(PromptInput::Text("</s>".into()), &DeltaChoice::Base, ClientKey::LOCAL).await.unwrap();
    assert!(text.ids.contains(&id), "tokenizing says what the tokenizer says");
}

fn from(client: u8) -> Arrival {
    Arrival { client: ClientKey([client; 32]), ..Arrival::now() }
}

#[tokio::test]
async fn a_flood_of_one_adapter_leaves_places_for_others() {
    let house = House::with(|parts| parts.max_concurrent = 200);
    house.adapter("hot", 1);
    house.adapter("cold", 2);
    let mut held = Vec::new();
    let refused = loop {
        match house.gate.admit(with_adapter("hot", None), from(1)).await {
            Ok(generation) => held.push(generation),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, AdmissionError::ShareOfRequests { holder: Holder::Adapter, held: 1.., limit: 200 }));
    assert_eq!(refused.reason(), "share");
    assert!(held.len() > 180 && house.gate.free_places() >= 10, "{} held", held.len());
    for client in 1..=5 {
        held.push(house.gate.admit(with_adapter("cold", None), from(client)).await.unwrap());
    }
    drop(held);
    assert_eq!(house.gate.free_places(), 200);
}

#[tokio::test]
async fn the_salt_is_the_clients_or_the_one_it_names() {
    let salt = async |house: &House, client, named: &str| {
        let mut wanted = request("x");
        wanted.input.cache_salt = named.to_owned();
        let generation = house.gate.admit(wanted, from(client)).await.unwrap();
        let salt = house.engine.take().request.tenant_salt.clone();
        drop(generation);
        salt
    };
    let salted = House::new();
    assert_ne!(salt(&salted, 1, "").await, salt(&salted, 2, "").await);
    assert_eq!(salt(&salted, 1, "").await, salt(&salted, 1, "").await);
    assert_eq!(salt(&salted, 1, "team").await, salt(&salted, 2, "team").await);
    let shared = House::with(|parts| parts.prefix_salting = PrefixSalting::Shared);
    assert_eq!(salt(&shared, 1, "").await, salt(&shared, 2, "").await);
    let mut long = request("x");
    long.input.cache_salt = "s".repeat(129);
    assert!(matches!(
        refusal(&salted, long).await,
        AdmissionError::Invalid(InvalidRequest::TooLong { field, bytes: 129, max: 128 }) if field == "cache_salt"
    ));
}

#[tokio::test]
async fn the_client_is_charged() {
    let house = House::new();
    let _generation = house.gate.admit(request("x"), from(7)).await.unwrap();
    assert_eq!(house.engine.take().request.client, ClientKey([7; 32]));
}

/// All turns are taken, so that whatever waits for one would never come back.
#[tokio::test]
async fn a_text_that_cannot_fit_is_refused_before_it_waits_for_a_turn() {
    let house = House::with(|parts| parts.limits.max_prompt_bytes = 1 << 20);
    let most = house.gate.parts.tokenizer.max_bytes(100).unwrap();
    let _turns = house.gate.tokenizing.take_all_turns().await;
    for bytes in [most + 1, 1 << 19] {
        let text = "a".repeat(bytes as usize);
        let refused = refusal(&house, request(&text)).await;
        let AdmissionError::Invalid(invalid) = refused else { panic!("{refused}") };
        let expected = InvalidRequest::TextTooLong { field: "prompt", bytes, more_than: 100, context_length: 100 };
        assert_eq!(invalid, expected);
    }
    assert_eq!((house.gate.free_places(), house.installer.asked.load(SeqCst)), (2, 0));
}

#[tokio::test]
async fn a_text_whose_bytes_could_fit_is_counted_only_as_far_as_needed() {
    let house = House::with(|parts| parts.limits.max_prompt_bytes = 1 << 20);
    let refused = async |tokens: usize| match refusal(&house, request(&"a".repeat(tokens))).await {
        AdmissionError::Invalid(invalid) => invalid,
        other => panic!("{other}"),
    };
    // One more is added in front.
    assert!(matches!(refused(399).await, InvalidRequest::PromptTooLong { prompt_tokens: 400, .. }));
    assert!(matches!(refused(400).await, InvalidRequest::TextTooLong { more_than: 400, bytes: 400, .. }));
}

#[tokio::test]
async fn a_long_text_does_not_wait_for_short_ones_nor_they_for_it() {
    let house = House::with(|parts| {
        parts.limits.max_prompt_bytes = 1 << 20;
        parts.limits.context_length = 1 << 20;
    });
    let long = "a b ".repeat(5000);
    let tokenize =
        |text: &str| house.gate.tokenize(PromptInput::Text(text.to_owned()), &DeltaChoice::Base, ClientKey::LOCAL);
    let lane = house.gate.tokenizing.take_long_turn().await;
    let mut waiting = Box::pin(tokenize(&long));
    assert!(futures_poll(&mut waiting).await.is_none());
    assert_eq!(tokenize("short").await.unwrap().text, "short");
    drop(lane);
    let ids = waiting.await.unwrap().ids;
    assert_eq!(ids, house.gate.parts.tokenizer.encode(&long, true).unwrap());
}
