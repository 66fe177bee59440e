//! Answers that come as events.

use std::time::Duration;

use http_body_util::BodyExt;
use polydelta::config::TransportConfig;
use polydelta::grpc::pb;
use serde_json::{Value, json};

use super::client::{ask, get, open, post, send};
use super::golden::{GoldenServer, case};
use super::harness::{BASE, Options, transport, within};

const PATH: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The chunks of a stream that ends well.
async fn chunks(server: &GoldenServer, path: &str, body: &Value) -> Vec<Value> {
    let mut events = send(server.address, post(path, body)).await.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// What the chunks of one choice say of a field, put together.
fn texts<'a>(chunks: &'a [Value], index: usize, field: impl Fn(&'a Value) -> &'a Value) -> String {
    let of_choice = |chunk: &'a Value| chunk["choices"].as_array().unwrap().first();
    let choices = chunks.iter().filter_map(of_choice).filter(|choice| choice["index"] == index);
    choices.map(|choice| field(choice).as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chunks_of_a_stream_add_up_to_the_document() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    let case = case("lora_r4/short");
    let mut asked = json!({"model": "lora_r4", "prompt": [case.prompt, [5, 6]], "n": 2, "max_tokens": 6, "seed": 3,
        "temperature": 1.0, "ignore_eos": true, "logprobs": 2, "echo": true, "return_token_ids": true});
    let whole = ask(server.address, PATH, &asked).await;
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let chunks = chunks(&server, PATH, &asked).await;
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "text_completion"));
    assert_eq!(chunks[0]["adapter_version"], whole["adapter_version"]);
    for index in 0..4 {
        let expected = &whole["choices"][index];
        assert_eq!(texts(chunks, index, |choice| &choice["text"]), expected["text"].as_str().unwrap());
        let mine = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let mine: Vec<_> = mine.collect();
        let joined = |list: &str| {
            let parts = mine.iter().filter_map(|choice| choice["logprobs"][list].as_array());
            parts.flatten().cloned().collect::<Vec<_>>()
        };
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(joined(list)), expected["logprobs"][list], "{list} of {index}");
        }
        assert_eq!(mine.last().unwrap()["finish_reason"], "length");
        assert!(mine[..mine.len() - 1].iter().all(|choice| choice["finish_reason"].is_null()));
        assert_eq!(mine[0]["prompt_token_ids"], expected["prompt_token_ids"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_says_whose_turn_it_is_first() {
    let server = GoldenServer::start().await;
    let mut asked = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0,
        "ignore_eos": true});
    let whole = ask(server.address, CHAT, &asked).await;
    asked["stream"] = json!(true);
    let chunks = chunks(&server, CHAT, &asked).await;
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
    let text = texts(&chunks, 0, |choice| &choice["delta"]["content"]);
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_requests() {
    let server = GoldenServer::start().await;
    server.steps.hold();
    let asked = json!({"prompt": ["ab", "cd"], "max_tokens": 100, "ignore_eos": true, "stream": true});
    let (response, connection) = open(server.address, post(PATH, &asked)).await;
    server.engine.submitted(2).await;
    drop(response);
    connection.abort();
    server.steps.allow(1);
    server.engine.aborted(2).await;
    // One that waits for a document is ended as well.
    let asked = json!({"prompt": "ab", "max_tokens": 100, "ignore_eos": true});
    let address = server.address;
    let waits = tokio::spawn(async move { send(address, post(PATH, &asked)).await });
    server.engine.submitted(3).await;
    waits.abort();
    server.engine.aborted(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_left() {
    let transport = TransportConfig { stream_stall_timeout: Duration::from_millis(20), ..transport() };
    let server = GoldenServer::with(Options { transport, ..Options::default() }).await;
    // Far more than sockets hold: not all of it can end by itself.
    let asked = json!({"prompt": vec!["ab"; 14], "n": 8, "max_tokens": 240, "ignore_eos": true, "stream": true,
        "logprobs": 20, "temperature": 1});
    let (response, _connection) = open(server.address, post(PATH, &asked)).await;
    server.engine.aborted(1).await;
    drop(response);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_servers_end_cuts_says_so() {
    let mut server = GoldenServer::start().await;
    server.steps.hold();
    let asked = json!({"prompt": "ab", "max_tokens": 100, "ignore_eos": true, "stream": true});
    let (response, _connection) = open(server.address, post(PATH, &asked)).await;
    server.engine.submitted(1).await;
    server.lifecycle.drain();
    let ready = send(server.address, get("/ready")).await;
    assert_eq!((ready.status.as_u16(), send(server.address, get("/health")).await.status.as_u16()), (503, 200));
    let refused = send(server.address, post(PATH, &json!({"prompt": "x"}))).await;
    assert_eq!(refused.error(), (503, "server_draining".to_owned(), None));
    server.lifecycle.cut();
    let said = within(response.into_body().collect()).await.unwrap().to_bytes();
    let said = String::from_utf8(said.to_vec()).unwrap();
    let error: Value = serde_json::from_str(said.trim().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "server_draining");
    server.steps.release();
    server.server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_http_share_an_address_and_what_runs() {
    let server = GoldenServer::start().await;
    server.steps.hold();
    let asked = json!({"model": BASE, "prompt": "ab", "max_tokens": 2, "ignore_eos": true, "temperature": 0});
    let address = server.address;
    let over_http = tokio::spawn(async move { ask(address, PATH, &asked).await });
    let mut client = server.generation().await;
    let request = pb::GenerateRequest {
        stopping: Some(pb::StoppingParams { max_tokens: Some(2), ignore_eos: Some(true), ..Default::default() }),
        sampling: Some(pb::SamplingParams { temperature: Some(0.0), ..Default::default() }),
        ..super::harness::prompt("ab")
    };
    let over_grpc = tokio::spawn(async move { client.generate(request).await.unwrap().into_inner() });
    server.engine.submitted(2).await;
    server.steps.release();
    let (over_http, over_grpc) = (over_http.await.unwrap(), over_grpc.await.unwrap());
    assert_eq!(over_http["choices"][0]["text"], over_grpc.choices[0].text);
}
