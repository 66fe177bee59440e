use proptest::prelude::*;
use prost::Message;

use super::super::pb;
use super::super::server_info::{ModelInfo, ServerInfo, ServerLimits};
use super::*;
use crate::adapters::{AdapterInfo, AdapterState, Expected, ResidencyStats, StoredAdapter, VersionStatus};
use crate::admission::{
    AdapterChoice, ChoiceDelta, DeltaChoice, GenerationDefaults, GenerationInfo, Limits, OutputLogprob, OutputToken,
    ServingDelta, StopMatch, Timings, TopToken,
};
use crate::engine::EngineStats;
use crate::types::generate::{ChatMessage, OutputOptions, PromptInput, SamplingInput, StoppingInput, TemplateValue};
use crate::types::{AdapterFacts, AdapterTask, ClientKey, DeltaGroup, FinishReason, OpClass, Usage, VirtualTokens};
use pb::generate_request::Input;
use pb::generate_stream_response::Event;

mod deltas;

const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn version() -> AdapterVersion {
    DIGEST.parse().unwrap()
}

fn prompt(text: &str) -> pb::GenerateRequest {
    pb::GenerateRequest { input: Some(Input::Prompt(text.to_owned())), ..Default::default() }
}

/// A request with everything in it.
fn full() -> pb::GenerateRequest {
    pb::GenerateRequest {
        request_id: "trace-7".into(),
        adapter: "sql".into(),
        adapter_version: DIGEST.into(),
        input: Some(Input::TokenIds(pb::TokenIds { ids: vec![1, 2, 3] })),
        sampling: Some(pb::SamplingParams {
            temperature: Some(0.5),
            top_k: Some(1),
            top_p: Some(0.25),
            min_p: Some(0.125),
            seed: Some(u64::MAX),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(-1.5),
            frequency_penalty: Some(2.0),
            logit_bias: [(9, 1.0), (2, -1.0), (5, 0.0)].into(),
        }),
        stopping: Some(pb::StoppingParams {
            max_tokens: Some(7),
            min_tokens: Some(3),
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![4, 4],
            ignore_eos: Some(true),
        }),
        options: Some(pb::OutputOptions {
            logprobs: Some(2),
            echo: true,
            token_ids: true,
            prompt_logprobs: Some(1),
            receipt: true,
        }),
        n: 3,
        priority: -4,
        cache_salt: "team".into(),
        mix: Vec::new(),
        inline_adapter: None,
    }
}

#[test]
fn every_field_of_a_request_arrives() {
    let request = generate_request(full()).unwrap();
    assert_eq!(request.request_id, "trace-7");
    let adapter = AdapterChoice { name: "sql".parse().unwrap(), version: Some(version()) };
    assert_eq!(request.delta, DeltaChoice::Adapter(adapter));
    let input = request.input;
    assert_eq!(input.prompt, PromptInput::TokenIds(vec![1, 2, 3]));
    let sampling = SamplingInput {
        temperature: Some(0.5),
        top_k: Some(1),
        top_p: Some(0.25),
        min_p: Some(0.125),
        seed: Some(u64::MAX),
        repetition_penalty: Some(1.5),
        presence_penalty: Some(-1.5),
        frequency_penalty: Some(2.0),
        logit_bias: vec![(2, -1.0), (5, 0.0), (9, 1.0)],
    };
    assert_eq!(input.sampling, sampling, "and the bias is in order of id");
    let stopping = StoppingInput {
        max_tokens: Some(7),
        min_tokens: Some(3),
        stop: vec!["a".into(), "b".into()],
        stop_token_ids: vec![4, 4],
        ignore_eos: Some(true),
    };
    assert_eq!(input.stopping, stopping);
    assert_eq!(
        input.options,
        OutputOptions { logprobs: Some(2), prompt_logprobs: Some(1), echo: true, token_ids: true, receipt: true }
    );
    assert_eq!((input.choices, input.priority, input.cache_salt.as_str()), (3, -4, "team"));
}

#[test]
fn what_is_unset_stays_unset() {
    let input = generate_request(prompt("")).unwrap().input;
    assert_eq!(input.prompt, PromptInput::Text(String::new()), "an empty text is a text");
    assert_eq!(input.sampling, SamplingInput::default());
    assert_eq!(input.stopping, StoppingInput::default());
    let zero = pb::SamplingParams { temperature: Some(0.0), top_k: Some(0), seed: Some(0), ..Default::default() };
    let sampling =
        generate_request(pb::GenerateRequest { sampling: Some(zero), ..prompt("x") }).unwrap().input.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (Some(0.0), Some(0), Some(0)));
    assert_eq!(sampling.top_p, None);
}

#[test]
fn the_forms_of_an_input_are_kept_apart() {
    let message = |role: &str| pb::ChatMessage { role: role.into(), content: "hi".into() };
    let chat = pb::Chat { messages: vec![message("system"), message("user")], ..Default::default() };
    let expected = |role: &str| ChatMessage { role: role.into(), content: "hi".into() };
    let expected = PromptInput::Chat(vec![expected("system"), expected("user")].into());
    let request = pb::GenerateRequest { input: Some(Input::Chat(chat.clone())), ..Default::default() };
    assert_eq!(generate_request(request).unwrap().input.prompt, expected);
    let tokenize = |input| tokenize_input(pb::TokenizeRequest { input, ..Default::default() });
    assert_eq!(tokenize(Some(pb::tokenize_request::Input::Chat(chat))), Ok((expected, DeltaChoice::Base)));
    let text = tokenize(Some(pb::tokenize_request::Input::Prompt("hi".into())));
    assert_eq!(text, Ok((PromptInput::Text("hi".into()), DeltaChoice::Base)));
    let input = Some(pb::tokenize_request::Input::Prompt("hi".into()));
    let named = pb::TokenizeRequest { input: input.clone(), adapter: "sql".into(), ..Default::default() };
    let sql = AdapterChoice { name: "sql".parse().unwrap(), version: None };
    assert_eq!(tokenize_input(named).unwrap().1, DeltaChoice::Adapter(sql));
    let nameless = pb::TokenizeRequest { input, adapter_version: "0".repeat(64), ..Default::default() };
    assert_eq!(tokenize_input(nameless), Err(BadMessage::VersionWithoutAdapter));
    assert_eq!(tokenize(None), Err(BadMessage::Missing { field: "input" }));
}

#[test]
fn the_variables_of_a_template_are_kept_with_their_kinds() {
    use prost_types::value::Kind;
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let entries = |fields: Vec<(&str, Kind)>| prost_types::Struct {
        fields: fields.into_iter().map(|(name, kind)| (name.to_owned(), value(kind))).collect(),
    };
    let inner = entries(vec![("k", Kind::NumberValue(2.0))]);
    let list = prost_types::ListValue { values: vec![value(Kind::BoolValue(true)), prost_types::Value { kind: None }] };
    let template_kwargs = entries(vec![
        ("b", Kind::StringValue("x".into())),
        ("a", Kind::NullValue(0)),
        ("c", Kind::ListValue(list)),
        ("d", Kind::StructValue(inner)),
    ]);
    let chat = pb::Chat { template_kwargs: Some(template_kwargs), allow_special_tokens: true, ..Default::default() };
    let input = Some(pb::tokenize_request::Input::Chat(chat));
    let Ok((PromptInput::Chat(chat), DeltaChoice::Base)) =
        tokenize_input(pb::TokenizeRequest { input, ..Default::default() })
    else {
        panic!("a chat")
    };
    assert!(chat.allow_special_tokens);
    let expected = [
        ("a", TemplateValue::Null),
        ("b", TemplateValue::Text("x".into())),
        ("c", TemplateValue::List(vec![TemplateValue::Bool(true), TemplateValue::Null])),
        ("d", TemplateValue::Map(vec![("k".into(), TemplateValue::Number(2.0))])),
    ];
    assert_eq!(chat.template_kwargs, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn messages_without_meaning_are_refused_by_field() {
    let cases: [(pb::GenerateRequest, &str); 9] = [
        (pb::GenerateRequest::default(), "input"),
        (pb::GenerateRequest { adapter: "Not A Name".into(), ..prompt("x") }, "adapter"),
        (pb::GenerateRequest { adapter: "../../etc".into(), ..prompt("x") }, "adapter"),
        (pb::GenerateRequest { adapter: "a".repeat(65), ..prompt("x") }, "adapter"),
        (pb::GenerateRequest { adapter: "a".into(), adapter_version: "1".into(), ..prompt("x") }, "adapter_version"),
        (
            pb::GenerateRequest { adapter: "a".into(), adapter_version: DIGEST.to_uppercase(), ..prompt("x") },
            "adapter_version",
        ),
        (pb::GenerateRequest { adapter_version: DIGEST.into(), ..prompt("x") }, "adapter_version"),
        (pb::GenerateRequest { request_id: "é".into(), ..prompt("x") }, "request_id"),
        (pb::GenerateRequest { request_id: "x".repeat(129), ..prompt("x") }, "request_id"),
    ];
    for (message, field) in cases {
        let bad = generate_request(message.clone()).unwrap_err();
        assert_eq!(bad.field(), field, "{message:?}");
        assert!(bad.to_string().starts_with(field), "{bad}");
    }
}

#[test]
fn a_refused_name_is_not_repeated_at_length() {
    let message = pb::GenerateRequest { adapter: "X".repeat(1 << 20), ..prompt("x") };
    assert!(generate_request(message).unwrap_err().to_string().len() < 300);
}

fn info(adapter: bool) -> GenerationInfo {
    let delta = match adapter {
        true => ServingDelta::Adapter { name: "sql".parse().unwrap(), version: version() },
        false => ServingDelta::Base,
    };
    GenerationInfo { request_id: "r".into(), active_from: adapter.then_some(3), delta, choices: 2 }
}

fn token(id: u32, logprob: Option<f32>) -> OutputToken {
    let top = |id, logprob, text: &str| TopToken { id, logprob, text: text.into() };
    let logprob = logprob.map(|logprob| OutputLogprob {
        logprob,
        text: "hi".into(),
        top: vec![top(id, logprob, "hi"), top(0, -9.0, "no")],
    });
    OutputToken { id, logprob }
}

#[test]
fn a_stream_begins_with_who_serves_it() {
    let Some(Event::Started(with)) = started(&info(true)).event else { panic!("started") };
    assert_eq!((with.request_id.as_str(), with.adapter.as_str(), with.adapter_version.as_str()), ("r", "sql", DIGEST));
    let Some(Event::Started(base)) = started(&info(false)).event else { panic!("started") };
    assert_eq!((base.adapter.as_str(), base.adapter_version.as_str()), ("", ""));
    assert_eq!((with.active_from, base.active_from), (Some(3), None));
}

#[test]
fn a_delta_says_what_was_asked_for() {
    let made = |finish| ChoiceDelta {
        index: 1,
        text: "hi".into(),
        tokens: vec![token(5, Some(-0.5)), token(6, None)],
        finish,
    };
    let of = |finish, token_ids| match delta(made(finish), token_ids).event {
        Some(Event::Delta(delta)) => delta,
        other => panic!("{other:?}"),
    };
    let running = of(None, true);
    assert_eq!((running.index, running.text.as_str(), &running.token_ids[..]), (1, "hi", &[5, 6][..]));
    let top = |token_id, logprob, text: &str| pb::TopLogprob { token_id, logprob, text: text.into() };
    let logprob = pb::TokenLogprob {
        token_id: 5,
        logprob: -0.5,
        top: vec![top(5, -0.5, "hi"), top(0, -9.0, "no")],
        text: "hi".into(),
    };
    assert_eq!(running.logprobs, [logprob]);
    assert_eq!((running.finish_reason(), running.stop_match), (pb::FinishReason::Unspecified, None));
    assert!(of(None, false).token_ids.is_empty());
    let length = of(Some((FinishReason::Length, None)), false);
    assert_eq!((length.finish_reason(), length.stop_match), (pb::FinishReason::Length, None));
    for (stop, matched) in [
        (StopMatch::Text("END".into()), pb::stop_match::Match::Stop("END".into())),
        (StopMatch::Token(7), pb::stop_match::Match::TokenId(7)),
    ] {
        let stopped = of(Some((FinishReason::Stop, Some(stop))), false);
        assert_eq!(stopped.finish_reason(), pb::FinishReason::Stop);
        assert_eq!(stopped.stop_match.unwrap().r#match, Some(matched));
    }
}

const USAGE: Usage = Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: 2 };

fn measured() -> Timings {
    let us = Duration::from_micros;
    Timings { queue: us(1500), prefill: us(2500), decode: us(10_000), total: us(14_000) }
}

#[test]
fn a_unary_response_is_its_stream_put_together() {
    let deltas = [
        ChoiceDelta { index: 1, text: "b".into(), tokens: vec![token(1, Some(-0.5))], finish: None },
        ChoiceDelta { index: 0, text: "a".into(), tokens: vec![token(2, Some(-1.0))], finish: None },
        ChoiceDelta {
            index: 1,
            text: "c".into(),
            tokens: vec![token(3, Some(-1.5))],
            finish: Some((FinishReason::Length, None)),
        },
        ChoiceDelta {
            index: 0,
            text: String::new(),
            tokens: vec![],
            finish: Some((FinishReason::Stop, Some(StopMatch::Token(9)))),
        },
    ];
    let mut collected = Collected::new(&info(true), true);
    deltas.iter().cloned().for_each(|delta| collected.add(delta));
    let response = collected.finish(USAGE, measured(), None);
    assert_eq!((response.adapter.as_str(), response.adapter_version.as_str()), ("sql", DIGEST));
    let [first, second] = &response.choices[..] else { panic!("two choices") };
    assert_eq!((first.index, first.text.as_str(), &first.token_ids[..]), (0, "a", &[2][..]));
    assert_eq!((second.index, second.text.as_str(), &second.token_ids[..]), (1, "bc", &[1, 3][..]));
    assert_eq!(second.logprobs.iter().map(|one| one.logprob).collect::<Vec<_>>(), [-0.5, -1.5]);
    assert_eq!((first.finish_reason(), second.finish_reason()), (pb::FinishReason::Stop, pb::FinishReason::Length));
    assert_eq!(first.stop_match.as_ref().unwrap().r#match, Some(pb::stop_match::Match::TokenId(9)));
    let usage = pb::Usage { prompt_tokens: 5, completion_tokens: 3, cached_tokens: 2 };
    let timings = pb::Timings { queue_ms: 1.5, prefill_ms: 2.5, decode_ms: 10.0, total_ms: 14.0 };
    assert_eq!((response.usage, response.timings), (Some(usage), Some(timings)));
    let Some(Event::Finished(last)) = finished(USAGE, measured(), None).event else { panic!("finished") };
    assert_eq!((last.usage, last.timings), (Some(usage), Some(timings)), "as the stream says it");
    let mut bare = Collected::new(&info(false), false);
    deltas.into_iter().for_each(|delta| bare.add(delta));
    assert!(bare.finish(USAGE, measured(), None).choices.iter().all(|choice| choice.token_ids.is_empty()));
}

#[test]
fn an_upload_header_says_what_the_name_must_be() {
    let header = |change: fn(&mut pb::UploadHeader)| {
        let files = vec![pb::UploadFile { path: "adapter_config.json".into(), size: 3, sha256: DIGEST.into() }];
        let mut header = pb::UploadHeader { name: "sql".into(), files, ..Default::default() };
        change(&mut header);
        upload_header(header, ClientKey::LOCAL)
    };
    let plain = header(|_| ()).unwrap();
    assert_eq!((plain.name.as_str(), plain.expected, plain.upload_id), ("sql", Expected::Any, None));
    assert_eq!((plain.files[0].path.as_str(), plain.files[0].size), ("adapter_config.json", 3));
    assert_eq!((plain.validate_only, plain.pin), (false, false));
    assert_eq!(header(|h| h.expected_version = Some(String::new())).unwrap().expected, Expected::Absent);
    let expected = header(|h| h.expected_version = Some(DIGEST.into())).unwrap().expected;
    assert_eq!(expected, Expected::Version(version()));
    let flags = header(|h| (h.validate_only, h.pin, h.upload_id) = (true, true, "id:1".into())).unwrap();
    assert_eq!((flags.validate_only, flags.pin, flags.upload_id.unwrap().to_string()), (true, true, "id:1".to_owned()));
    let field = |change| header(change).unwrap_err().field();
    assert_eq!(field(|h| h.name = "..".into()), "header.name");
    assert_eq!(field(|h| h.expected_version = Some("x".into())), "header.expected_version");
    assert_eq!(field(|h| h.upload_id = "a b".into()), "header.upload_id");
    assert_eq!(expected_for_delete(None), Ok(Expected::Any));
    assert_eq!(expected_for_delete(Some(DIGEST)), Ok(Expected::Version(version())));
    assert_eq!(expected_for_delete(Some("")).unwrap_err().field(), "expected_version");
}

#[test]
fn an_adapter_is_described_in_full_once_it_is_compiled() {
    let stored = StoredAdapter {
        name: "sql".parse().unwrap(),
        version: version(),
        files: Vec::new(),
        created_ms: 1_700_000_000_250,
        pinned: true,
        compiled: None,
    };
    let facts = AdapterFacts {
        kind: "prefix tuning".into(),
        group: Some(DeltaGroup::Addition),
        task: AdapterTask::Generation,
        min_rank: 4,
        max_rank: 8,
        targets: vec!["q".into(), "v".into()],
        unknown_fields: vec!["use_of_next_year".into()],
        ops: [(OpClass::Prefix, 1), (OpClass::LowRank, 14)].into(),
        device_bytes: 1000,
        parameters: 500,
        virtual_tokens: Some(VirtualTokens { count: 20, saved_kv: true }),
        invocation_tokens: vec![7, 8],
        keeps_base_kv: true,
        base_layers: 3,
        vocab_size: Some(103),
    };
    let info = |state, facts: Option<AdapterFacts>| AdapterInfo {
        stored: stored.clone(),
        status: VersionStatus {
            state,
            facts: facts.map(std::sync::Arc::new),
            leases: 3,
            last_error: Some("the disk".into()),
            slot: None,
        },
        base: None,
        mismatch: None,
    };
    let message = adapter(&info(AdapterState::Resident, Some(facts)));
    assert_eq!(
        (message.name.as_str(), message.version.as_str(), message.kind.as_str(), message.group.as_str()),
        ("sql", DIGEST, "prefix tuning", "addition")
    );
    assert_eq!((message.state(), message.pinned, message.active_requests), (pb::AdapterState::Resident, true, 3));
    assert_eq!(
        (message.max_rank, message.parameters, message.device_bytes, message.virtual_tokens),
        (8, 500, 1000, 20)
    );
    assert_eq!((message.min_rank, &message.invocation_tokens[..], message.keeps_base_kv), (4, &[7, 8][..], true));
    assert_eq!(
        (message.targets.as_slice(), message.unknown_fields.len()),
        (["q".to_owned(), "v".to_owned()].as_slice(), 1)
    );
    let ops: Vec<_> = message.ops.iter().map(|op| (op.op_class.as_str(), op.count)).collect();
    assert_eq!(ops, [("LowRank", 14), ("Prefix", 1)]);
    assert_eq!(message.last_error, "the disk");
    let created = message.create_time.unwrap();
    assert_eq!((created.seconds, created.nanos), (1_700_000_000, 250_000_000));
    for (state, wanted) in [
        (AdapterState::Stored, pb::AdapterState::Stored),
        (AdapterState::Loading, pb::AdapterState::Loading),
        (AdapterState::Evicting, pb::AdapterState::Evicting),
    ] {
        let message = adapter(&info(state, None));
        assert_eq!((message.state(), message.kind.as_str(), message.device_bytes), (wanted, "", 0));
    }
}

#[test]
fn statistics_and_limits_arrive_field_by_field() {
    let engine = EngineStats {
        running: 1,
        waiting: 2,
        parked: 13,
        parties: 17,
        rows_held_back: 18,
        kv_blocks_used: 3,
        kv_blocks_total: 4,
        steps: 5,
        failed_steps: 6,
        preemptions: 7,
        prefix_queries: 8,
        prefix_hits: 9,
        shared_layer_hits: 19,
        tokens_computed: 10,
        steps_by_distinct_adapters: vec![1, 0, 4, 0],
    };
    let adapters = ResidencyStats { resident: 12, ..ResidencyStats::default() };
    let message = stats(engine, 11, &adapters, Duration::from_millis(1500));
    let expected = pb::GetStatsResponse {
        running_sequences: 1,
        waiting_sequences: 2,
        parked_sequences: 13,
        parties: 17,
        rows_held_back: 18,
        kv_blocks_used: 3,
        kv_blocks_total: 4,
        steps: 5,
        failed_steps: 6,
        preemptions: 7,
        prefix_queries: 8,
        prefix_hits: 9,
        shared_layer_hits: 19,
        tokens_computed: 10,
        max_distinct_adapters: 2,
        steps_by_distinct_adapters: vec![1, 0, 4, 0],
        adapters_registered: 11,
        adapters_resident: 12,
        uptime_seconds: 1.5,
    };
    assert_eq!(message, expected);
    let limits = ServerLimits { max_choices: 4, max_prompt_bytes: usize::MAX, ..ServerLimits::default() };
    let model = ModelInfo { context_length: usize::MAX, has_chat_template: true, ..ModelInfo::default() };
    let message = server_info(&ServerInfo { limits, model, ..ServerInfo::default() });
    assert_eq!(message.version, env!("CARGO_PKG_VERSION"));
    let (limits, model) = (message.limits.unwrap(), message.model.unwrap());
    assert_eq!((limits.max_choices, limits.max_prompt_bytes), (4, u64::MAX));
    assert_eq!((model.context_length, model.has_chat_template), (u32::MAX, true), "a count too wide says at least");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Damaged bytes become a message or none, a message becomes a request or a refusal, and a refusal says where.
    #[test]
    fn damaged_bytes_end_in_a_request_or_a_refusal(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = full().encode_to_vec();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len()));
        }
        let Ok(message) = pb::GenerateRequest::decode(&bytes[..]) else { return Ok(()) };
        match generate_request(message) {
            Err(bad) => prop_assert!(!bad.field().is_empty()),
            Ok(request) => match limits().check(&request.input) {
                Err(invalid) => prop_assert!(!invalid.field().is_empty()),
                Ok(()) => drop(limits().resolve(&request.input, 3, 0)),
            },
        }
    }
}

fn limits() -> Limits {
    Limits {
        context_length: 100,
        vocab_size: 10,
        hidden_size: 8,
        default_max_tokens: 10,
        max_choices: 4,
        max_prompt_bytes: 100,
        max_stop_strings: 4,
        max_stop_bytes: 10,
        max_logprobs: 5,
        max_priority: 10,
        max_inline_adapter_bytes: 0,
        defaults: GenerationDefaults::default(),
    }
}
