//! `GenerationService` where all goes well.

use polydelta::grpc::pb;
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use polydelta::grpc::pb::server_service_client::ServerServiceClient;
use polydelta::types::FinishReason;
use tonic::Request;
use tonic::transport::Endpoint;

use super::fakes::{End, FakeServer, Plan};
use super::golden::{Case, EOS, GoldenServer, case};
use super::harness::{Server, prompt, within};
use pb::generate_stream_response::Event;
use pb::stop_match::Match;

/// Every message of a stream that ends well.
pub(crate) async fn events(server: &Server, request: pb::GenerateRequest) -> Result<Vec<Event>, tonic::Status> {
    let mut stream = server.generation().await.generate_stream(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.push(message.event.unwrap());
    }
    Ok(events)
}

/// The response that the messages of a stream add up to.
pub(crate) fn collect(events: &[Event]) -> pb::GenerateResponse {
    let mut response = pb::GenerateResponse::default();
    for (position, event) in events.iter().enumerate() {
        match event {
            Event::Started(started) => {
                assert_eq!(position, 0, "started comes first");
                let pb::Started { request_id, adapter, adapter_version, mix, active_from } = started.clone();
                response = pb::GenerateResponse { request_id, adapter, adapter_version, mix, active_from, ..response };
            }
            Event::Delta(delta) => {
                let index = delta.index as usize;
                if response.choices.len() <= index {
                    response.choices.resize_with(index + 1, pb::Choice::default);
                }
                let choice = &mut response.choices[index];
                assert_eq!(choice.finish_reason(), pb::FinishReason::Unspecified, "nothing follows the end");
                choice.index = delta.index;
                choice.text += &delta.text;
                choice.token_ids.extend(&delta.token_ids);
                choice.logprobs.extend(delta.logprobs.clone());
                choice.finish_reason = delta.finish_reason;
                choice.stop_match.clone_from(&delta.stop_match);
            }
            Event::PromptLogprobs(prompt) => {
                let tokens = response.choices.iter().map(|choice| choice.logprobs.len()).sum::<usize>();
                assert_eq!(tokens, 0, "the prompt comes before what follows it");
                response.prompt_logprobs.extend(prompt.logprobs.clone());
            }
            Event::Finished(finished) => {
                assert_eq!(position, events.len() - 1, "finished comes last");
                response.usage = finished.usage;
                response.timings = finished.timings;
                response.receipt.clone_from(&finished.receipt);
            }
        }
    }
    response
}

pub(crate) async fn unary(server: &Server, request: pb::GenerateRequest) -> pb::GenerateResponse {
    server.generation().await.generate(request).await.unwrap().into_inner()
}

/// What differs from one run to the next.
pub(crate) fn without_times(response: pb::GenerateResponse) -> pb::GenerateResponse {
    let usage = response.usage.map(|usage| pb::Usage { cached_tokens: 0, ..usage });
    pb::GenerateResponse { timings: None, usage, request_id: String::new(), ..response }
}

/// The ids of transformers and peft, and their log-probabilities.
pub(crate) fn check(case: &Case, choice: &pb::Choice) {
    assert_eq!(choice.token_ids, case.ids, "{case:?}");
    assert_eq!(choice.finish_reason(), pb::FinishReason::Length);
    assert_eq!(choice.logprobs.len(), case.ids.len());
    for (step, found) in choice.logprobs.iter().enumerate() {
        assert_eq!(found.token_id, case.ids[step]);
        assert!((found.logprob - case.logprobs[step]).abs() < 1e-4, "{case:?}: {step}");
        assert_eq!(found.top.len(), 5);
        let own = found.top.iter().find(|top| top.token_id == found.token_id).unwrap();
        assert_eq!(own.text, found.text, "a token has one text");
        for (top, (_, logprob)) in found.top.iter().zip(&case.top[step]) {
            assert!((top.logprob - logprob).abs() < 1e-4, "{case:?}: {step}");
        }
    }
}

#[tokio::test]
async fn a_stream_adds_up_to_the_unary_answer_and_both_are_the_golden_one() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    for name in ["base/single", "base/long", "lora_r4/short", "lora_r4/long"] {
        let case = case(name);
        let request = pb::GenerateRequest { request_id: "mine".into(), ..case.request() };
        let unary = unary(&server, request.clone()).await;
        let streamed = collect(&events(&server, request).await.unwrap());
        check(&case, &unary.choices[0]);
        assert_eq!((unary.request_id.as_str(), streamed.request_id.as_str()), ("mine", "mine"));
        assert_eq!(unary.choices[0].text, server.tokenizer.decode(&case.ids, true).unwrap());
        let usage = unary.usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (case.prompt.len() as u32, 12));
        let timings = unary.timings.unwrap();
        let parts = timings.queue_ms + timings.prefill_ms + timings.decode_ms;
        assert!((timings.total_ms - parts).abs() < 1e-6, "{timings:?}");
        assert!(timings.queue_ms >= 0.0 && timings.prefill_ms > 0.0 && timings.decode_ms > 0.0, "{timings:?}");
        assert_eq!(without_times(streamed), without_times(unary));
    }
}

#[tokio::test]
async fn adapters_of_every_kind_share_a_batch_and_give_their_golden_ids() {
    const ADAPTERS: [&str; 9] =
        ["lora_r4", "lora_odd_r3", "lora_bias", "dora", "ia3", "ln_tuning", "prompt_tuning", "prefix_tuning", "embed"];
    let server = GoldenServer::start().await;
    server.upload_golden(&ADAPTERS).await;
    let mut adapters = server.adapters().await;
    for name in ADAPTERS {
        // Once the steps are held, nothing can be installed.
        adapters.load_adapter(pb::LoadAdapterRequest { name: name.into(), pin: None }).await.unwrap();
    }
    server.steps.hold();
    let cases: Vec<Case> = ADAPTERS
        .iter()
        .chain(&["base"])
        .flat_map(|name| [format!("{name}/short"), format!("{name}/long")])
        .map(|name| case(&name))
        .collect();
    let mut client = server.generation().await;
    let mut streams = Vec::new();
    for case in &cases {
        // The response begins once its request is in the engine.
        streams.push(client.generate_stream(case.request()).await.unwrap().into_inner());
    }
    server.steps.release();
    for (case, mut stream) in cases.iter().zip(streams) {
        let mut events = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            events.push(message.event.unwrap());
        }
        let response = collect(&events);
        assert_eq!(Some(response.adapter).filter(|name| !name.is_empty()), case.adapter);
        check(case, &response.choices[0]);
    }
    let stats = server.stats().await;
    assert!(stats.max_distinct_adapters >= 7, "{stats:?}");
    assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.failed_steps), (0, 0, 0));
    assert_eq!((stats.adapters_registered, stats.adapters_resident), (9, 9));
}

#[tokio::test]
async fn a_prompt_seen_before_comes_from_the_cache_and_changes_nothing() {
    let server = GoldenServer::start().await;
    let case = case("base/long");
    let first = unary(&server, case.request()).await;
    let second = unary(&server, case.request()).await;
    assert_eq!(first.usage.unwrap().cached_tokens, 0);
    assert!(second.usage.unwrap().cached_tokens >= 16, "{second:?}");
    assert_eq!(without_times(first), without_times(second));
}

#[tokio::test]
async fn choices_are_counted_and_each_ends_once() {
    let server = GoldenServer::start().await;
    let case = case("base/short");
    let request = pb::GenerateRequest { n: 3, ..case.request() };
    let response = unary(&server, request.clone()).await;
    assert_eq!(response.choices.len(), 3);
    for (index, choice) in response.choices.iter().enumerate() {
        assert_eq!(choice.index, index as u32);
        check(&case, choice);
    }
    let usage = response.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (4, 36));
    assert_eq!(without_times(collect(&events(&server, request).await.unwrap())), without_times(response));
}

#[tokio::test]
async fn sampled_choices_differ_and_a_seed_brings_them_back() {
    let server = GoldenServer::start().await;
    let sampling = pb::SamplingParams { temperature: Some(1.5), seed: Some(7), ..Default::default() };
    let request = pb::GenerateRequest { n: 3, sampling: Some(sampling.clone()), ..case("base/short").request() };
    let first = unary(&server, request.clone()).await;
    let again = unary(&server, request.clone()).await;
    assert_eq!(without_times(first.clone()), without_times(again));
    let ids = |response: &pb::GenerateResponse, choice: usize| response.choices[choice].token_ids.clone();
    assert!(ids(&first, 0) != ids(&first, 1) && ids(&first, 1) != ids(&first, 2), "{first:?}");
    let sampling = Some(pb::SamplingParams { seed: Some(8), ..sampling });
    let other = unary(&server, pb::GenerateRequest { sampling, ..request }).await;
    assert_ne!(ids(&other, 0), ids(&first, 0));
}

#[tokio::test]
async fn a_stop_string_ends_a_choice_and_is_not_part_of_it() {
    let server = GoldenServer::start().await;
    // Its text is `@X61>s:0UJ|1`.
    server.upload_golden(&["lora_r4"]).await;
    let case = case("lora_r4/long");
    let mut request = case.request();
    let stop = vec!["zz".into(), "s:".into(), "U".into()];
    request.stopping.as_mut().unwrap().stop = stop;
    let response = unary(&server, request.clone()).await;
    let choice = &response.choices[0];
    assert_eq!(choice.text, "@X61>");
    assert_eq!(choice.token_ids, case.ids[..7], "up to the one that completed it");
    assert_eq!(choice.finish_reason(), pb::FinishReason::Stop);
    assert_eq!(choice.stop_match.as_ref().unwrap().r#match, Some(Match::Stop("s:".into())));
    assert_eq!(response.usage.unwrap().completion_tokens, 7);
    let streamed = collect(&events(&server, request).await.unwrap());
    assert_eq!(without_times(streamed), without_times(response));
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.kv_blocks_used), (0, 0), "the engine does not go on alone");
}

#[tokio::test]
async fn stop_ids_and_the_end_of_the_model_end_a_choice() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_all_r8"]).await;
    let case = case("lora_all_r8/short");
    assert_eq!(case.ids[10], EOS);
    let mut request = case.request();
    request.stopping.as_mut().unwrap().ignore_eos = None;
    let ended = unary(&server, request.clone()).await;
    assert_eq!(ended.choices[0].token_ids, case.ids[..10]);
    assert_eq!(ended.choices[0].finish_reason(), pb::FinishReason::Stop);
    assert_eq!(ended.choices[0].stop_match.as_ref().unwrap().r#match, Some(Match::TokenId(EOS)));
    assert_eq!(ended.usage.unwrap().completion_tokens, 10);

    request.stopping.as_mut().unwrap().stop_token_ids = vec![case.ids[3]];
    let stopped = unary(&server, request.clone()).await;
    assert_eq!(stopped.choices[0].token_ids, case.ids[..3]);
    assert_eq!(stopped.choices[0].stop_match.as_ref().unwrap().r#match, Some(Match::TokenId(case.ids[3])));

    request.stopping.as_mut().unwrap().min_tokens = Some(5);
    let later = unary(&server, request).await;
    assert!(later.choices[0].token_ids.len() >= 5, "{later:?}");
    assert_eq!(later.choices[0].token_ids[..3], case.ids[..3]);
    assert_ne!(later.choices[0].token_ids[3], case.ids[3], "it may not be chosen yet");
}

#[tokio::test]
async fn echo_begins_text_and_ids_with_the_prompt() {
    let server = GoldenServer::start().await;
    let stopping = pb::StoppingParams { max_tokens: Some(3), ignore_eos: Some(true), ..Default::default() };
    let options = pb::OutputOptions { echo: true, logprobs: Some(0), ..Default::default() };
    let plain = pb::GenerateRequest { stopping: Some(stopping), n: 2, ..prompt("Hi there") };
    let request = pb::GenerateRequest { options: Some(options), ..plain.clone() };
    let echoed = unary(&server, request.clone()).await;
    let bare = unary(&server, plain).await;
    for (echoed, bare) in echoed.choices.iter().zip(&bare.choices) {
        assert_eq!(echoed.text, format!("Hi there{}", bare.text));
        assert_eq!(echoed.token_ids.len(), 9 + 3, "the prompt's first id begins every text");
        assert_eq!(echoed.logprobs.len(), 3, "of the generated tokens only");
        assert!(echoed.logprobs.iter().all(|found| found.top.is_empty()));
        assert!(bare.token_ids.is_empty() && bare.logprobs.is_empty(), "not asked for");
    }
    assert_eq!(without_times(collect(&events(&server, request).await.unwrap())), without_times(echoed));
}

#[tokio::test]
async fn tokenize_says_what_generate_sees() {
    let server = GoldenServer::start().await;
    let mut client = server.generation().await;
    let input = Some(pb::tokenize_request::Input::Prompt("a b".into()));
    let text = client.tokenize(pb::TokenizeRequest { input, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((text.token_ids.as_slice(), text.text.as_str()), ([1, 70, 5, 71].as_slice(), "a b"));

    let back = |skip_special_tokens| pb::DetokenizeRequest {
        token_ids: text.token_ids.clone(),
        skip_special_tokens,
        ..Default::default()
    };
    let plain = client.detokenize(back(true)).await.unwrap().into_inner();
    let whole = client.detokenize(back(false)).await.unwrap().into_inner();
    let bos = server.tokenizer.special_text(1).unwrap();
    assert_eq!((plain.text.as_str(), whole.text), ("a b", format!("{bos}a b")));
    let unknown = pb::DetokenizeRequest { token_ids: vec![u32::MAX], skip_special_tokens: true, ..Default::default() };
    assert_eq!(client.detokenize(unknown).await.unwrap_err().code(), tonic::Code::InvalidArgument);

    let chat = pb::Chat {
        messages: vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }],
        ..Default::default()
    };
    let input = Some(pb::tokenize_request::Input::Chat(chat.clone()));
    let rendered = client.tokenize(pb::TokenizeRequest { input, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!(rendered.text, "<user>hi");
    assert_eq!(rendered.token_ids.len(), 8, "a rendered chat brings its own special tokens");
    let options = pb::OutputOptions { echo: true, ..Default::default() };
    let stopping = pb::StoppingParams { max_tokens: Some(1), ..Default::default() };
    let request = pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Chat(chat)),
        options: Some(options),
        stopping: Some(stopping),
        ..Default::default()
    };
    let response = client.generate(request).await.unwrap().into_inner();
    assert_eq!(response.choices[0].token_ids[..8], rendered.token_ids);
    assert_eq!(response.usage.unwrap().prompt_tokens, 8);
}

#[tokio::test]
async fn a_character_is_sent_once_it_is_whole() {
    let server = FakeServer::start().await;
    server.engine.plan(|_| Plan::text("a🦀b").then(End::Finish(FinishReason::Stop, Some(10))));
    let events = events(&server, prompt("x")).await.unwrap();
    for event in &events {
        if let Event::Delta(delta) = event {
            assert!(!delta.text.contains('\u{fffd}'), "{delta:?}");
        }
    }
    let response = collect(&events);
    assert_eq!(response.choices[0].text, "a🦀b");
    assert_eq!(response.usage.unwrap().completion_tokens, 6, "the stop id is not one of them");
}

#[tokio::test]
async fn text_that_a_stop_string_may_claim_is_held_back() {
    let server = FakeServer::start().await;
    server.engine.plan(|_| Plan::text("one;two;three"));
    let stopping = pb::StoppingParams { stop: vec!["zz".into(), ";th".into()], ..Default::default() };
    let request = pb::GenerateRequest { stopping: Some(stopping), n: 2, ..prompt("count") };
    let events = events(&server, request).await.unwrap();
    let response = collect(&events);
    for choice in &response.choices {
        assert_eq!(choice.text, "one;two");
        assert_eq!(choice.stop_match.as_ref().unwrap().r#match, Some(Match::Stop(";th".into())));
    }
    assert_eq!(response.usage.unwrap().completion_tokens, 20);
    assert_eq!(server.engine.finished_choices(), [0, 1], "the engine is told");
    assert_eq!(server.engine.aborted(), 0, "and has nothing left to abort");
}

#[tokio::test]
async fn a_request_has_the_id_of_its_message_else_of_its_header_else_a_new_one() {
    let server = FakeServer::start().await;
    let mut client = server.generation().await;
    let mut call = async |request_id: &str, header: Option<&str>| {
        let mut request = Request::new(pb::GenerateRequest { request_id: request_id.into(), ..prompt("x") });
        if let Some(header) = header {
            request.metadata_mut().insert("x-request-id", header.parse().unwrap());
        }
        let response = client.generate(request).await.unwrap();
        let id = response.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        assert_eq!(response.get_ref().request_id, id);
        id
    };
    assert_eq!(call("mine", Some("trace-7")).await, "mine");
    assert_eq!(call("", Some("trace-7")).await, "trace-7");
    let (first, second) = (call("", None).await, call("", Some(&"x".repeat(129))).await);
    assert_eq!(first.len(), 32);
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_priority_reaches_the_engine() {
    let server = FakeServer::start().await;
    let request = pb::GenerateRequest { priority: -3, ..prompt("x") };
    unary(&server, request).await;
    assert_eq!(server.engine.submitted()[0].priority, -3);
}

#[tokio::test]
async fn the_server_says_what_it_serves_and_does() {
    let server = GoldenServer::start().await;
    let mut client = ServerServiceClient::new(server.channel().await);
    let info = client.get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.model.unwrap().vocab_size, 100);
    server.steps.hold();
    let mut stream = server.generation().await.generate_stream(case("base/long").request()).await.unwrap().into_inner();
    server.steps.reach(1).await;
    server.steps.allow(1);
    server.steps.reach(2).await;
    let stats = tokio::spawn(async move { client.get_stats(pb::GetStatsRequest {}).await.unwrap().into_inner() });
    server.engine.asked_for_stats().await;
    // The engine answers between two steps.
    server.steps.allow(1);
    let stats = within(stats).await.unwrap();
    assert_eq!((stats.running_sequences, stats.waiting_sequences), (1, 0));
    assert!(stats.kv_blocks_used >= 8 && stats.kv_blocks_total == 512, "{stats:?}");
    server.steps.release();
    while within(stream.message()).await.unwrap().is_some() {}
    let stats = server.stats().await;
    assert_eq!((stats.kv_blocks_used, stats.running_sequences), (0, 0));
}

/// The client reads nothing, and HTTP/2 has room for a few messages only: the engine lays the request aside instead of
/// computing it for nobody. Once the client reads, it gets what it gets alone.
#[tokio::test]
async fn a_stream_that_is_not_read_stops_nobody_and_goes_on_when_it_is_read() {
    let server = GoldenServer::start().await;
    let greedy = case("base/long");
    let mut wide = pb::GenerateRequest { n: 16, ..greedy.request() };
    wide.stopping.as_mut().unwrap().max_tokens = Some(150);
    wide.sampling = Some(pb::SamplingParams { temperature: Some(1.0), seed: Some(7), ..Default::default() });
    let alone = unary(&server, wide.clone()).await;

    let narrow = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(2048).initial_connection_window_size(1 << 20);
    let mut client = GenerationServiceClient::new(narrow.connect().await.unwrap());
    let mut unread = client.generate_stream(wide).await.unwrap().into_inner();
    within(async {
        while server.stats().await.parked_sequences < 16 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let stats = server.stats().await;
    assert_eq!((stats.running_sequences, stats.waiting_sequences, stats.kv_blocks_used), (0, 0, 0), "{stats:?}");
    assert_eq!(unary(&server, greedy.request()).await.choices[0].token_ids, greedy.ids);
    assert_eq!(server.stats().await.parked_sequences, 16);

    let mut events = Vec::new();
    while let Some(message) = within(unread.message()).await.unwrap() {
        events.push(message.event.unwrap());
    }
    let ids =
        |response: &pb::GenerateResponse| response.choices.iter().map(|c| c.token_ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&collect(&events)), ids(&alone));
}
