//! Requests that are refused for what they ask: INVALID_ARGUMENT, naming the field, before anything is done for them.

use polydelta::grpc::pb;
use tonic::Code;
use tonic_types::StatusExt;

use super::files::AdapterFiles;
use super::golden::{CONTEXT, GoldenServer};
use super::harness::{Options, defaults, field, metadata, prompt, refusal};
use pb::generate_request::Input;

const VOCABULARY: u32 = 100;

fn ids(ids: Vec<u32>) -> pb::GenerateRequest {
    pb::GenerateRequest { input: Some(Input::TokenIds(pb::TokenIds { ids })), ..Default::default() }
}

fn chat(messages: &[(&str, &str)]) -> pb::GenerateRequest {
    let message = |(role, content): &(&str, &str)| pb::ChatMessage { role: (*role).into(), content: (*content).into() };
    let messages = messages.iter().map(message).collect();
    pb::GenerateRequest { input: Some(Input::Chat(pb::Chat { messages, ..Default::default() })), ..Default::default() }
}

fn sampling(change: impl Fn(&mut pb::SamplingParams)) -> pb::GenerateRequest {
    let mut sampling = pb::SamplingParams::default();
    change(&mut sampling);
    pb::GenerateRequest { sampling: Some(sampling), ..prompt("x") }
}

fn stopping(change: impl Fn(&mut pb::StoppingParams)) -> pb::GenerateRequest {
    let mut stopping = pb::StoppingParams::default();
    change(&mut stopping);
    pb::GenerateRequest { stopping: Some(stopping), ..prompt("x") }
}

fn options(options: pb::OutputOptions) -> pb::GenerateRequest {
    pb::GenerateRequest { options: Some(options), ..prompt("x") }
}

/// Which field a request must be refused for.
fn bad_requests() -> Vec<(&'static str, pb::GenerateRequest)> {
    let limits = defaults().request_limits;
    let long = "x".repeat(limits.max_prompt_bytes as usize + 1);
    let version = "0".repeat(64);
    vec![
        ("input", pb::GenerateRequest::default()),
        ("adapter", pb::GenerateRequest { adapter: "../x".into(), ..prompt("x") }),
        ("adapter_version", pb::GenerateRequest { adapter: "a".into(), adapter_version: "v1".into(), ..prompt("x") }),
        ("adapter_version", pb::GenerateRequest { adapter_version: version, ..prompt("x") }),
        ("request_id", pb::GenerateRequest { request_id: "\u{e9}".into(), ..prompt("x") }),
        ("request_id", pb::GenerateRequest { request_id: "x".repeat(129), ..prompt("x") }),
        ("n", pb::GenerateRequest { n: limits.max_choices + 1, ..prompt("x") }),
        ("n", pb::GenerateRequest { n: u32::MAX, ..prompt("x") }),
        ("prompt", prompt(&long)),
        ("token_ids.ids", ids(vec![])),
        ("token_ids.ids[1]", ids(vec![99, VOCABULARY])),
        ("token_ids.ids[0]", ids(vec![u32::MAX])),
        ("chat.messages", chat(&[])),
        ("chat.messages", chat(&[("user", &long)])),
        ("chat.messages[1].role", chat(&[("user", "x"), ("", "y")])),
        ("chat.messages", chat(&[("nobody", "x")])),
        ("sampling.temperature", sampling(|s| s.temperature = Some(f32::NAN))),
        ("sampling.temperature", sampling(|s| s.temperature = Some(f32::INFINITY))),
        ("sampling.temperature", sampling(|s| s.temperature = Some(-0.1))),
        ("sampling.top_p", sampling(|s| s.top_p = Some(0.0))),
        ("sampling.top_p", sampling(|s| s.top_p = Some(1.01))),
        ("sampling.top_p", sampling(|s| s.top_p = Some(f32::NAN))),
        ("sampling.min_p", sampling(|s| s.min_p = Some(-0.1))),
        ("sampling.min_p", sampling(|s| s.min_p = Some(1.1))),
        ("sampling.repetition_penalty", sampling(|s| s.repetition_penalty = Some(0.0))),
        ("sampling.repetition_penalty", sampling(|s| s.repetition_penalty = Some(f32::INFINITY))),
        ("sampling.presence_penalty", sampling(|s| s.presence_penalty = Some(2.1))),
        ("sampling.presence_penalty", sampling(|s| s.presence_penalty = Some(f32::NAN))),
        ("sampling.frequency_penalty", sampling(|s| s.frequency_penalty = Some(-2.1))),
        ("sampling.logit_bias", sampling(|s| s.logit_bias.extend([(VOCABULARY, 1.0)]))),
        ("sampling.logit_bias", sampling(|s| s.logit_bias.extend([(1, 100.5)]))),
        ("sampling.logit_bias", sampling(|s| s.logit_bias.extend([(1, f32::NAN)]))),
        ("sampling.logit_bias", sampling(|s| s.logit_bias.extend((0..2000).map(|id| (id, 1.0))))),
        ("stopping.max_tokens", stopping(|s| s.max_tokens = Some(0))),
        ("stopping.max_tokens", stopping(|s| s.max_tokens = Some(CONTEXT))),
        ("stopping.max_tokens", stopping(|s| s.max_tokens = Some(u32::MAX))),
        ("stopping.min_tokens", stopping(|s| (s.max_tokens, s.min_tokens) = (Some(3), Some(4)))),
        ("stopping.min_tokens", stopping(|s| s.min_tokens = Some(u32::MAX))),
        ("stopping.stop[1]", stopping(|s| s.stop = vec!["a".into(), String::new()])),
        ("stopping.stop[0]", stopping(|s| s.stop = vec!["a".repeat(1 << 20)])),
        ("stopping.stop", stopping(|s| s.stop = vec!["a".into(); 5000])),
        ("stopping.stop_token_ids[0]", stopping(|s| s.stop_token_ids = vec![VOCABULARY])),
        ("stopping.stop_token_ids", stopping(|s| s.stop_token_ids = vec![1; 5000])),
        (
            "options.logprobs",
            options(pb::OutputOptions { logprobs: Some(limits.max_logprobs + 1), ..Default::default() }),
        ),
        (
            "options.prompt_logprobs",
            options(pb::OutputOptions { prompt_logprobs: Some(limits.max_logprobs + 1), ..Default::default() }),
        ),
    ]
}

#[tokio::test]
async fn bad_requests_name_their_field_in_both_calls_and_reach_no_engine() {
    let server = GoldenServer::start().await;
    let mut client = server.generation().await;
    for (at, request) in bad_requests() {
        let status = client.generate(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{at}: {status:?}");
        assert_eq!(field(&status), at, "{status:?}");
        let streamed = client.generate_stream(request).await.unwrap_err();
        assert_eq!(refusal(&streamed), refusal(&status));
        assert_eq!(streamed.message(), status.message());
    }
    assert_eq!(server.engine.submits(), 0);
    assert_eq!(server.gate.free_places(), 64);
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_told_with_its_numbers() {
    let server = GoldenServer::start().await;
    let adapter = server.upload("virtual", &AdapterFiles::golden("prompt_long")).await;
    assert!(adapter.virtual_tokens > 0, "{adapter:?}");
    let mut client = server.generation().await;
    let full = |count: u32| ids(vec![7; count as usize]);
    let with = |request: pb::GenerateRequest| pb::GenerateRequest { adapter: "virtual".into(), ..request };
    let tokens = |max_tokens| Some(pb::StoppingParams { max_tokens: Some(max_tokens), ..Default::default() });
    let short = CONTEXT - adapter.virtual_tokens;
    let cases = [
        ("token_ids.ids", full(CONTEXT), 0),
        ("prompt", prompt(&"x".repeat(CONTEXT as usize)), 0),
        ("token_ids.ids", with(full(short)), adapter.virtual_tokens),
        ("stopping.max_tokens", pb::GenerateRequest { stopping: tokens(11), ..full(CONTEXT - 10) }, 0),
        (
            "stopping.max_tokens",
            pb::GenerateRequest { stopping: tokens(11), ..with(full(short - 10)) },
            adapter.virtual_tokens,
        ),
    ];
    for (at, request, virtual_tokens) in cases {
        let status = client.generate(request).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "CONTEXT_LENGTH_EXCEEDED".into()), "{status:?}");
        assert_eq!(field(&status), at, "{status:?}");
        assert_eq!(metadata(&status, "virtual_tokens"), virtual_tokens.to_string());
        assert_eq!(metadata(&status, "context_length"), CONTEXT.to_string());
    }
    // What just fits is served, and unset max_tokens is what is left.
    for request in [full(CONTEXT - 10), with(full(short - 10))] {
        let stopping = pb::StoppingParams { ignore_eos: Some(true), ..Default::default() };
        let request = pb::GenerateRequest { stopping: Some(stopping), ..request };
        let response = client.generate(request).await.unwrap().into_inner();
        assert_eq!(response.usage.unwrap().completion_tokens, 10);
        assert_eq!(response.choices[0].finish_reason(), pb::FinishReason::Length);
    }
}

#[tokio::test]
async fn a_chat_without_a_template_cannot_be_answered() {
    let server = GoldenServer::with(Options { chat_template: None, ..Options::default() }).await;
    let mut client = server.generation().await;
    let generate = client.generate(chat(&[("user", "hi")])).await.unwrap_err();
    let messages = vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }];
    let input = Some(pb::tokenize_request::Input::Chat(pb::Chat { messages, ..Default::default() }));
    let tokenize = client.tokenize(pb::TokenizeRequest { input, ..Default::default() }).await.unwrap_err();
    for status in [generate, tokenize] {
        assert_eq!(refusal(&status), (Code::FailedPrecondition, "NO_CHAT_TEMPLATE".into()));
        assert!(status.get_details_precondition_failure().is_some());
    }
}

const FAULTS: &str = "{% if messages[0].content == 'fail' %}{{ messages[0].content.nothing() }}{% endif %}\
                      {% if messages[0].content == 'endless' %}{% for i in range(100000) %}{% for j in range(100000) %}\
                      {% endfor %}{% endfor %}{% endif %}\
                      {% if messages[0].content == 'raise' %}{{ raise_exception('not this') }}{% endif %}\
                      {{ messages[0].content }}{{ 'T' if enable_thinking is defined and enable_thinking }}{{ n }}";

#[tokio::test]
async fn a_template_at_fault_is_told_from_a_conversation_at_fault() {
    let server = GoldenServer::with(Options { chat_template: Some(FAULTS.into()), ..Options::default() }).await;
    let mut client = server.generation().await;
    for (content, code, reason) in [
        ("fail", Code::FailedPrecondition, "CHAT_TEMPLATE_FAILED"),
        ("endless", Code::FailedPrecondition, "CHAT_TEMPLATE_LIMIT"),
        ("raise", Code::InvalidArgument, "CHAT_REFUSED"),
    ] {
        let status = client.generate(chat(&[("user", content)])).await.unwrap_err();
        assert_eq!(refusal(&status), (code, reason.to_owned()));
        assert_eq!(status.get_details_precondition_failure().is_some(), code == Code::FailedPrecondition);
    }
}

#[tokio::test]
async fn a_chat_brings_variables_for_its_template() {
    use prost_types::value::Kind;
    let server = GoldenServer::with(Options { chat_template: Some(FAULTS.into()), ..Options::default() }).await;
    let mut client = server.generation().await;
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let mut tokenize = async |fields: Vec<(&str, Kind)>| {
        let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), value(kind))).collect();
        let messages = vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }];
        let template_kwargs = Some(prost_types::Struct { fields });
        let chat = pb::Chat { messages, template_kwargs, ..Default::default() };
        let input = Some(pb::tokenize_request::Input::Chat(chat));
        client
            .tokenize(pb::TokenizeRequest { input, ..Default::default() })
            .await
            .map(|answer| answer.into_inner().text)
    };
    assert_eq!(tokenize(vec![]).await.unwrap(), "hi");
    let given = vec![("enable_thinking", Kind::BoolValue(true)), ("n", Kind::NumberValue(3.0))];
    assert_eq!(tokenize(given).await.unwrap(), "hiT3");
    let refused = tokenize(vec![("messages", Kind::NullValue(0))]).await.unwrap_err();
    assert_eq!((refused.code(), field(&refused).as_str()), (Code::InvalidArgument, "chat.template_kwargs.messages"));
}

/// As transformers' `json.dumps` prints a tool: in the order in which its author wrote it.
#[tokio::test]
async fn tools_are_printed_in_the_order_in_which_they_are_written() {
    let template = "{{ messages[0].content }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}";
    let server = GoldenServer::with(Options { chat_template: Some(template.into()), ..Options::default() }).await;
    let mut client = server.generation().await;
    let mut tokenize = async |json: &str, fields: &[&str]| {
        let null = |name: &&str| ((*name).to_owned(), prost_types::Value { kind: None });
        let chat = pb::Chat {
            messages: vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }],
            template_kwargs: Some(prost_types::Struct { fields: fields.iter().map(null).collect() }),
            template_kwargs_json: json.to_owned(),
            ..Default::default()
        };
        let input = Some(pb::tokenize_request::Input::Chat(chat));
        let answer = client.tokenize(pb::TokenizeRequest { input, ..Default::default() }).await;
        answer.map(|answer| answer.into_inner().text)
    };
    let tool = r#"{"type": "function", "function": {"name": "sum", "args": [1, 2.5, null]}}"#;
    assert_eq!(tokenize(&format!("{{\"tools\": [{tool}]}}"), &[]).await.unwrap(), format!("hi{tool}"));
    for (json, fields) in [("[]", &[][..]), ("{", &[]), (r#"{"tools": []}"#, &["tools"])] {
        let refused = tokenize(json, fields).await.unwrap_err();
        assert_eq!(
            (refused.code(), field(&refused).as_str()),
            (Code::InvalidArgument, "chat.template_kwargs_json"),
            "{json}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_tokenized_names_its_field() {
    let server = GoldenServer::start().await;
    let mut client = server.generation().await;
    let status = client.tokenize(pb::TokenizeRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "input"));
    let long = "x".repeat(defaults().request_limits.max_prompt_bytes as usize + 1);
    let input = Some(pb::tokenize_request::Input::Prompt(long));
    let status = client.tokenize(pb::TokenizeRequest { input, ..Default::default() }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "prompt"));
}
