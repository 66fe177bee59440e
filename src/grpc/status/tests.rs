use std::io;
use std::sync::Arc;

use tonic_types::{ErrorDetails, StatusExt};

use super::super::adapters::upload::BadUploadStream;
use super::super::convert::BadMessage;
use super::super::deadline::BadTimeout;
use super::super::page::BadPage;
use super::*;
use crate::adapters::{AdapterError, DiskFault, LoadFailure, UploadId};
use crate::admission::validate::Interval;
use crate::admission::{AdmissionError, GenerationError, InvalidRequest};
use crate::delta::DeltaError;
use crate::engine::{InstallError, StepError, SubmitError};
use crate::ops::OpsError;
use crate::scheduler::places::Holder;
use crate::text::{ChatError, OwnTokensError, TokenizerError};
use crate::types::{AdapterFault, AdapterVersion, BaseDigest, RequestFailure, Sha256Digest};
use crate::wire::Interrupted;

/// What holds for every status, whatever it says.
fn check(status: &Status) -> ErrorDetails {
    let details = status.check_error_details().expect("details decode");
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, DOMAIN);
    assert!(!info.reason.is_empty() && info.reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'));
    assert!(!status.message().is_empty(), "{}", info.reason);
    let fields = details.bad_request().map_or(&[][..], |bad| &bad.field_violations);
    assert!(fields.iter().all(|violation| !violation.field.is_empty() && !violation.description.is_empty()));
    match status.code() {
        Code::InvalidArgument => assert!(!fields.is_empty(), "{} names its field", info.reason),
        Code::NotFound | Code::AlreadyExists => {
            assert!(details.resource_info().is_some_and(|it| !it.resource_name.is_empty()), "{}", info.reason);
        }
        Code::FailedPrecondition => assert!(details.precondition_failure().is_some(), "{}", info.reason),
        // Either it helps to come back, and then it says when; or something is used up, and then it says what.
        Code::ResourceExhausted => {
            assert_ne!(details.retry_info().is_some(), details.quota_failure().is_some(), "{}", info.reason);
        }
        _ => {}
    }
    let pushback = status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap().to_owned());
    let delay = details.retry_info().map(|retry| retry.retry_delay.unwrap().as_millis().to_string());
    assert_eq!(pushback, delay, "{}", info.reason);
    let mut headers = http::HeaderMap::new();
    status.add_header(&mut headers).expect("it can be sent");
    let received = Status::from_header_map(&headers).unwrap();
    assert_eq!((received.code(), received.message()), (status.code(), status.message()));
    assert_eq!(received.get_error_details().error_info().unwrap().metadata, info.metadata);
    details
}

fn expect(status: &Status, code: Code, reason: &str) {
    let details = check(status);
    assert_eq!((status.code(), details.error_info().unwrap().reason.as_str()), (code, reason), "{}", status.message());
}

fn field(status: &Status) -> String {
    check(status).bad_request().unwrap().field_violations[0].field.clone()
}

fn metadata(status: &Status, key: &str) -> Option<String> {
    check(status).error_info().unwrap().metadata.get(key).cloned()
}

const V: AdapterVersion = AdapterVersion([7; 32]);

fn path() -> String {
    "adapter_model.safetensors".to_owned()
}

/// A load that fails of itself.
fn broken() -> InstallError {
    InstallError::Step(StepError::Panicked { message: "/secret/path".to_owned() })
}

fn io_error() -> io::Error {
    io::Error::other("/secret/path went wrong")
}

#[test]
fn requests_that_are_not_admitted() {
    use AdmissionError as E;
    let own = || Some("sql".parse().unwrap());
    let chat = |adapter, source| E::Chat { adapter, source };
    let tokens = Box::new(OwnTokensError::Repeated { token: "<a>".into() });
    let [one, other, adapter] = ["a", "b", "c"].map(|name| name.parse().unwrap());
    let cases = [
        (E::OwnTokensDiffer { one, other }, Code::FailedPrecondition, "OWN_TOKENS_DIFFER"),
        (E::OwnTokens { adapter, source: tokens }, Code::FailedPrecondition, "OWN_TOKENS_UNUSABLE"),
        (E::TooManyRequests { limit: 8 }, Code::ResourceExhausted, "QUEUE_FULL"),
        (E::EmptyPrompt { field: "chat.messages" }, Code::InvalidArgument, "EMPTY_PROMPT"),
        (E::NoChatTemplate, Code::FailedPrecondition, "NO_CHAT_TEMPLATE"),
        (chat(None, ChatError::Refused { message: "no system role".into() }), Code::InvalidArgument, "CHAT_REFUSED"),
        (chat(None, ChatError::Render { reason: "x".into() }), Code::FailedPrecondition, "CHAT_TEMPLATE_FAILED"),
        (chat(None, ChatError::Limit { limit: "x" }), Code::FailedPrecondition, "CHAT_TEMPLATE_LIMIT"),
        (chat(own(), ChatError::Refused { message: "no system role".into() }), Code::InvalidArgument, "CHAT_REFUSED"),
        (chat(own(), ChatError::Render { reason: "x".into() }), Code::FailedPrecondition, "CHAT_TEMPLATE_FAILED"),
        (chat(own(), ChatError::NotText), Code::FailedPrecondition, "CHAT_TEMPLATE_FAILED"),
        (chat(own(), ChatError::Limit { limit: "x" }), Code::FailedPrecondition, "CHAT_TEMPLATE_LIMIT"),
        (E::Tokenizer(TokenizerError::Control { token: "<s>".into() }), Code::InvalidArgument, "CONTROL_TOKEN"),
        (
            E::Tokenizer(TokenizerError::Encode { bytes: 1, reason: "x".into() }),
            Code::InvalidArgument,
            "TOKENIZER_FAILED",
        ),
        (
            E::Tokenizer(TokenizerError::Decode { count: 1, reason: "x".into() }),
            Code::InvalidArgument,
            "TOKENIZER_FAILED",
        ),
        (E::Adapter(AdapterError::NotFound { name: "sql".parse().unwrap() }), Code::NotFound, "ADAPTER_NOT_FOUND"),
        (E::Submit(SubmitError::QueueFull { queued: 8, limit: 8 }), Code::ResourceExhausted, "QUEUE_FULL"),
        (
            E::Submit(SubmitError::QueueShare { holder: Holder::Adapter, held: 7, limit: 8 }),
            Code::ResourceExhausted,
            "QUEUE_FULL",
        ),
        (E::ShareOfRequests { holder: Holder::Client, held: 7, limit: 8 }, Code::ResourceExhausted, "QUEUE_FULL"),
        (E::Submit(SubmitError::Stopped), Code::Unavailable, "SERVER_DRAINING"),
        (E::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    ];
    for (error, code, reason) in cases {
        expect(&of(&error), code, reason);
    }
    expect(&of(&SubmitError::Stopped), Code::Unavailable, "SERVER_DRAINING");
}

#[test]
fn requests_with_a_field_out_of_range_name_it_and_the_numbers() {
    use InvalidRequest as E;
    let interval = Interval { min: std::ops::Bound::Excluded(0.0), max: std::ops::Bound::Included(1.0) };
    let cases = [
        (E::NotFinite { field: "sampling.top_p", value: f32::NAN }, "INVALID_FIELD", "sampling.top_p"),
        (E::OutOfRange { field: "sampling.top_p", value: 2.0, interval }, "INVALID_FIELD", "sampling.top_p"),
        (E::TooLarge { field: "n", value: 9, max: 8 }, "INVALID_FIELD", "n"),
        (E::Priority { priority: -9, max: 8 }, "INVALID_FIELD", "priority"),
        (
            E::TextTooLong { field: "prompt", bytes: 900, more_than: 8, context_length: 8 },
            "CONTEXT_LENGTH_EXCEEDED",
            "prompt",
        ),
        (E::Zero { field: "stopping.max_tokens" }, "INVALID_FIELD", "stopping.max_tokens"),
        (E::TooMany { field: "stopping.stop", count: 9, max: 8 }, "INVALID_FIELD", "stopping.stop"),
        (E::TooLong { field: "stopping.stop[3]".into(), bytes: 9, max: 8 }, "INVALID_FIELD", "stopping.stop[3]"),
        (E::Empty { field: "chat.messages".into() }, "INVALID_FIELD", "chat.messages"),
        (E::Reserved { field: "chat.template_kwargs.x".into() }, "INVALID_FIELD", "chat.template_kwargs.x"),
        (
            E::TooDeep { field: "chat.template_kwargs.x".into(), depth: 9, max: 8 },
            "INVALID_FIELD",
            "chat.template_kwargs.x",
        ),
        (
            E::NotInVocabulary {
                field: "token_ids.ids[1]".into(),
                id: 9,
                token: Some("<|turn|>".into()),
                vocab_size: 8,
            },
            "INVALID_FIELD",
            "token_ids.ids[1]",
        ),
        (E::Repeated { field: "sampling.logit_bias", id: 7 }, "INVALID_FIELD", "sampling.logit_bias"),
        (E::MinTokens { min_tokens: 9, max_tokens: 8 }, "INVALID_FIELD", "stopping.min_tokens"),
        (E::NothingToSample { vocab_size: 8 }, "INVALID_FIELD", "stopping.stop_token_ids"),
        (E::TotalTokens { max_tokens: 9, choices: 8, max: 7 }, "INVALID_FIELD", "stopping.max_tokens"),
        (
            E::PromptTooLong { field: "prompt", prompt_tokens: 9, virtual_tokens: 1, context_length: 8 },
            "CONTEXT_LENGTH_EXCEEDED",
            "prompt",
        ),
        (
            E::MaxTokens { max_tokens: 9, prompt_tokens: Some(3), virtual_tokens: 1, context_length: 8 },
            "CONTEXT_LENGTH_EXCEEDED",
            "stopping.max_tokens",
        ),
    ];
    for (error, reason, wanted) in cases {
        let status = of(&AdmissionError::Invalid(error.clone()));
        expect(&status, Code::InvalidArgument, reason);
        assert_eq!(field(&status), wanted);
        assert_eq!(status.message(), error.to_string());
    }
    let of = |error| of(&AdmissionError::Invalid(error));
    let long = of(E::PromptTooLong { field: "prompt", prompt_tokens: 9, virtual_tokens: 1, context_length: 8 });
    let number = |key| metadata(&long, key);
    assert_eq!(number("prompt_tokens").as_deref(), Some("9"));
    assert_eq!((number("virtual_tokens").as_deref(), number("context_length").as_deref()), (Some("1"), Some("8")));
    let uncounted = of(E::MaxTokens { max_tokens: 9, prompt_tokens: None, virtual_tokens: 0, context_length: 8 });
    assert_eq!(metadata(&uncounted, "prompt_tokens"), None);
}

#[test]
fn what_ends_a_running_request() {
    let failed = |failure| of(&GenerationError::Failed(failure));
    expect(&failed(RequestFailure::Draining), Code::Unavailable, "SERVER_DRAINING");
    expect(&failed(RequestFailure::DeadlineExceeded), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    expect(&failed(RequestFailure::NonFinite), Code::Internal, "NON_FINITE");
    expect(&of(&GenerationError::EngineGone), Code::Unavailable, "SERVER_DRAINING");
    expect(&of(&Interrupted::Cut), Code::Unavailable, "SERVER_DRAINING");
    expect(&of(&Interrupted::DeadlineExceeded), Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    expect(&stalled(), Code::Aborted, "STREAM_STALLED");
    expect(&watcher_lagged(), Code::Aborted, "WATCH_LAGGED");
}

#[test]
fn messages_that_cannot_be_meant() {
    expect(&of(&BadMessage::Missing { field: "input" }), Code::InvalidArgument, "INVALID_FIELD");
    expect(&of(&BadMessage::VersionWithoutAdapter), Code::InvalidArgument, "INVALID_FIELD");
    expect(&of(&BadPage::BadToken), Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(field(&of(&BadPage::NegativeSize { given: -1 })), "page_size");
    expect(&of(&BadTimeout), Code::InvalidArgument, "INVALID_TIMEOUT");
}

/// A status as tonic sends it, and as it arrives.
fn normalized(status: &Status) -> Status {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    normalize(&mut headers);
    Status::from_header_map(&headers).unwrap()
}

#[test]
fn a_message_above_the_limit_is_resource_exhausted_as_everywhere_else() {
    for way in ["decoded", "encoded"] {
        let message = format!("Error, {way} message length too large: found 9 bytes, the limit is: 8 bytes");
        let status = Status::out_of_range(&message);
        expect(&normalized(&status), Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
        expect(&of_message_stream(status), Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
        assert_eq!(normalized(&Status::out_of_range(&message)).message(), message);
    }
}

#[test]
fn a_method_or_an_encoding_that_is_not_known_is_said_to_be() {
    expect(&normalized(&Status::unimplemented("")), Code::Unimplemented, "UNKNOWN_METHOD");
    expect(
        &normalized(&Status::unimplemented("Content is compressed with `gzip`")),
        Code::Unimplemented,
        "UNSUPPORTED",
    );
}

#[test]
fn what_a_handler_said_stays_as_it_is() {
    let ours = of(&AdapterError::WrongOffset { path: path(), expected: 100, got: 90 });
    for status in [ours, Status::internal("no"), Status::ok("")] {
        let after = normalized(&status);
        assert_eq!((after.code(), after.message()), (status.code(), status.message()));
        assert_eq!(after.details(), status.details());
    }
}

#[test]
fn texts_of_a_client_come_back_short() {
    let long = "é".repeat(1 << 20);
    let statuses = [
        of(&AdmissionError::Chat { adapter: None, source: ChatError::Refused { message: long.clone() } }),
        of(&DeltaError::UnknownTensor { tensor: long.clone(), kind: "LoRA", nearest: long.clone() }),
        of(&DeltaError::UnsupportedField { field: long.clone(), found: long.clone(), hint: "".into() }),
        of(&DeltaError::MissingTensor { module: long.clone(), missing: "lora_A.weight", found: long }),
    ];
    for status in statuses {
        check(&status);
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 8 << 10, "{bytes} bytes of trailers");
    }
}

#[test]
fn text_of_a_client_cannot_break_the_headers() {
    let hostile = "x\r\ngrpc-status: 0\r\n\u{0}\u{7f}🦀".to_owned();
    let status = of(&AdapterError::BadPath { path: hostile });
    check(&status);
}

mod adapters;
