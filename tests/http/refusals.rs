//! What is refused, and how it is said.

use http::{Method, Request};
use serde_json::{Value, json};

use super::client::{get, post, send};
use super::golden::GoldenServer;
use super::harness::BASE;

const PATH: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_has_is_never_the_base() {
    let server = GoldenServer::start().await;
    for model in ["nobody", "tiny", "tiny/base:", "tiny/base:nobody", "no such name!"] {
        let answer = send(server.address, post(PATH, &json!({"model": model, "prompt": "x"}))).await;
        assert_eq!(answer.error(), (404, "model_not_found".to_owned(), Some("model".to_owned())), "{model}");
    }
    let answer = send(server.address, post(PATH, &json!({"adapter": "nobody", "prompt": "x"}))).await;
    assert_eq!((answer.status.as_u16(), answer.error().1), (404, "model_not_found".to_owned()));
    assert_eq!(server.engine.submits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_refused_by_name() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    let (text, chat) = (json!({"prompt": "x"}), json!({"messages": [{"role": "user", "content": "x"}]}));
    for (path, with, code, param) in [
        (PATH, json!({"foo": 1}), "unknown_field", "foo"),
        (PATH, json!({"suffix": "x"}), "unsupported_field", "suffix"),
        (PATH, json!({"best_of": 2}), "unsupported_field", "best_of"),
        (PATH, json!({"guided_regex": "x"}), "unsupported_field", "guided_regex"),
        (PATH, json!({"temperature": -1}), "invalid_field", "temperature"),
        (PATH, json!({"temperature": "hot"}), "invalid_field", "temperature"),
        (PATH, json!({"n": 0}), "invalid_field", "n"),
        (PATH, json!({"n": 1000}), "invalid_field", "n"),
        (PATH, json!({"logprobs": 1000}), "invalid_field", "logprobs"),
        (PATH, json!({"max_tokens": 0}), "invalid_field", "max_tokens"),
        (PATH, json!({"max_tokens": 1000}), "context_length_exceeded", "max_tokens"),
        (PATH, json!({"prompt": [1000]}), "invalid_field", "prompt[0]"),
        (PATH, json!({"prompt": null}), "invalid_field", "prompt"),
        (PATH, json!({"model": "lora_r4", "mix": [{"adapter": "lora_r4", "weight": 1}]}), "invalid_field", "mix"),
        (PATH, json!({"adapter_version": "00"}), "invalid_field", "adapter_version"),
        (CHAT, json!({"tools": [{"type": "function"}]}), "unsupported_field", "tools"),
        (CHAT, json!({"response_format": {"type": "json_object"}}), "unsupported_field", "response_format"),
        (CHAT, json!({"messages": []}), "invalid_field", "messages"),
        (CHAT, json!({"messages": [{"role": "nobody", "content": "x"}]}), "chat_refused", "messages"),
        (CHAT, json!({"top_logprobs": 2}), "invalid_field", "top_logprobs"),
        (CHAT, json!({"logprobs": true, "top_logprobs": 1000}), "invalid_field", "logprobs"),
    ] {
        let mut asked = if path == CHAT { chat.clone() } else { text.clone() };
        asked.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        let answer = send(server.address, post(path, &asked)).await;
        assert_eq!(answer.error(), (400, code.to_owned(), Some(param.to_owned())), "{with}");
    }
    assert_eq!(server.engine.submits(), 0);
}

/// A browser sends forms and texts for any page without asking first.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_json_is_not_read() {
    let server = GoldenServer::start().await;
    let body = json!({"prompt": "x"});
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let mut request = post(PATH, &body);
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        assert_eq!(send(server.address, request).await.error(), (415, "content_type".to_owned(), None));
    }
    let mut request = post(PATH, &Value::Null);
    *request.body_mut() = "{\"prompt\":".into();
    assert_eq!(send(server.address, request).await.error(), (400, "invalid_json".to_owned(), None));
    let mut request = post(PATH, &Value::Null);
    *request.body_mut() = vec![b' '; 5 << 20].into();
    assert_eq!(send(server.address, request).await.error(), (413, "message_too_large".to_owned(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_are_not_there_say_so() {
    let server = GoldenServer::start().await;
    assert_eq!(send(server.address, get("/v1/nothing")).await.error(), (404, "no_route".to_owned(), None));
    assert_eq!(send(server.address, get(PATH)).await.error(), (405, "method_not_allowed".to_owned(), None));
    let preflight =
        Request::builder().method(Method::OPTIONS).uri(PATH).header("host", "x").header("origin", "http://y");
    let preflight = send(server.address, preflight.body(Default::default()).unwrap()).await;
    assert_eq!(preflight.status.as_u16(), 405);
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
    assert_eq!(send(server.address, get("/v1/models/nobody")).await.error().1, "model_not_found");
    let model = send(server.address, get(&format!("/v1/models/{BASE}"))).await;
    assert_eq!(model.json()["id"], BASE);
}
