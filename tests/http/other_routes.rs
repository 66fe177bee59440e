//! Models, tokens, embeddings, probes.

use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use polydelta::grpc::pb;
use polydelta::grpc::pb::pooling_service_client::PoolingServiceClient;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::client::{ask, get, post, send};
use super::golden::{CONTEXT, GoldenServer};
use super::harness::{BASE, within};

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_that_it_is_well_and_which_program_it_is() {
    let server = GoldenServer::start().await;
    for path in ["/health", "/ready", "/ping"] {
        assert_eq!(send(server.address, get(path)).await.status.as_u16(), 200, "{path}");
    }
    server.lifecycle.set_stuck(true);
    for path in ["/health", "/ready", "/ping"] {
        assert_eq!(send(server.address, get(path)).await.status.as_u16(), 503, "{path}");
    }
    let version = send(server.address, get("/version")).await;
    assert_eq!(version.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_the_base_and_its_adapters() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4", "dora"]).await;
    let models = send(server.address, get("/v1/models")).await.json();
    assert_eq!(models["object"], "list");
    let of =
        |field: &str| models["data"].as_array().unwrap().iter().map(|model| model[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), [BASE, "dora", "lora_r4"]);
    assert_eq!(of("parent"), [Value::Null, json!(BASE), json!(BASE)]);
    assert_eq!(of("max_model_len"), vec![json!(CONTEXT); 3]);
    for id in ["lora_r4", "tiny%2Fbase", "tiny/base:lora_r4"] {
        let model = send(server.address, get(&format!("/v1/models/{id}"))).await;
        assert_eq!(model.status.as_u16(), 200, "{id}");
        assert!(model.json()["id"] == BASE || model.json()["id"] == "lora_r4");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_tokens_and_tokens_texts() {
    let server = GoldenServer::start().await;
    let tokens = ask(server.address, "/tokenize", &json!({"model": BASE, "prompt": "ab"})).await;
    assert_eq!(tokens, json!({"count": 3, "max_model_len": CONTEXT, "tokens": [1, 70, 71], "token_strs": null}));
    let text = ask(server.address, "/detokenize", &json!({"tokens": [70, 71]})).await;
    assert_eq!(text, json!({"prompt": "ab"}));
    let chat = json!({"messages": [{"role": "user", "content": "ab"}]});
    let chat = ask(server.address, "/tokenize", &chat).await;
    let ids: Vec<u32> = chat["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let text = ask(server.address, "/detokenize", &json!({"tokens": ids})).await;
    assert_eq!(text["prompt"], "<user>ab");
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_those_of_grpc() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    let input = |text: &str| pb::PoolInput { input: Some(pb::pool_input::Input::Prompt(text.to_owned())) };
    let request = pb::EmbedRequest {
        adapter: "lora_r4".to_owned(),
        inputs: vec![input("ab"), input("cde")],
        normalize: true,
        dimensions: Some(4),
        ..Default::default()
    };
    let expected = PoolingServiceClient::new(server.channel().await).embed(request).await.unwrap().into_inner();
    let asked = json!({"model": "lora_r4", "input": ["ab", "cde"], "dimensions": 4});
    let answer = ask(server.address, "/v1/embeddings", &asked).await;
    for (index, expected) in expected.embeddings.iter().enumerate() {
        let found = answer["data"][index]["embedding"].as_array().unwrap();
        let found: Vec<f32> = found.iter().map(|number| number.as_f64().unwrap() as f32).collect();
        assert_eq!(found, expected.values);
    }
    assert_eq!(answer["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    let asked = json!({"model": "lora_r4", "input": "ab", "encoding_format": "base64"});
    let answer = ask(server.address, "/v1/embeddings", &asked).await;
    assert!(answer["data"][0]["embedding"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_http1_are_answered_alike_and_connections_are_used_again() {
    let server = GoldenServer::start().await;
    let asked = json!({"prompt": "ab", "max_tokens": 3, "temperature": 0, "ignore_eos": true});
    let choices = ask(server.address, "/v1/completions", &asked).await["choices"].clone();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut two, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut one, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let mut request = post("/v1/completions", &asked);
        *request.uri_mut() = "http://localhost/v1/completions".parse().unwrap();
        for answer in [
            within(two.send_request(request)).await.unwrap(),
            within(one.send_request(post("/v1/completions", &asked))).await.unwrap(),
        ] {
            assert_eq!(answer.status().as_u16(), 200);
            let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["choices"], choices);
        }
    }
}
