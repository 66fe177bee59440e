//! Completions and chats that are given as a whole.

use polydelta::grpc::pb;
use serde_json::{Value, json};

use super::client::{ask, get, post, send};
use super::golden::{Case, GoldenServer, case};
use super::harness::{BASE, Server};

const PATH: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The request that must give a case's ids.
fn request(case: &Case, model: &str) -> Value {
    json!({"model": model, "prompt": case.prompt, "max_tokens": case.ids.len(), "ignore_eos": true, "temperature": 0,
        "logprobs": 5, "return_token_ids": true})
}

async fn over_grpc(server: &Server, request: pb::GenerateRequest) -> pb::GenerateResponse {
    server.generation().await.generate(request).await.unwrap().into_inner()
}

/// Numbers of the wire are those of gRPC, to the last bit.
fn f32s(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_what_grpc_gives_whatever_the_model_is_called() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4"]).await;
    for (name, models) in [
        ("base/short", vec![BASE.to_owned()]),
        ("lora_r4/short", vec!["lora_r4".to_owned(), format!("{BASE}:lora_r4")]),
    ] {
        let case = case(name);
        let expected = over_grpc(&server, case.request()).await.choices.remove(0);
        for model in models {
            let answer = ask(server.address, PATH, &request(&case, &model)).await;
            assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!(model)));
            let choice = &answer["choices"][0];
            assert_eq!(choice["token_ids"], json!(case.ids));
            assert_eq!(choice["prompt_token_ids"], json!(case.prompt));
            assert_eq!(choice["text"], expected.text);
            assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("length"), &Value::Null));
            let logprobs: Vec<f32> = expected.logprobs.iter().map(|token| token.logprob).collect();
            assert_eq!(f32s(&choice["logprobs"]["token_logprobs"]), logprobs);
            let texts: Vec<_> = expected.logprobs.iter().map(|token| token.text.as_str()).collect();
            assert_eq!(choice["logprobs"]["tokens"], json!(texts));
            let usage = &answer["usage"];
            assert_eq!(
                (&usage["prompt_tokens"], &usage["completion_tokens"]),
                (&json!(case.prompt.len()), &json!(case.ids.len()))
            );
            assert_eq!(usage["total_tokens"], json!(case.prompt.len() + case.ids.len()));
        }
    }
    let answer = ask(server.address, PATH, &json!({"adapter": "lora_r4", "prompt": "x", "max_tokens": 1})).await;
    assert_eq!((&answer["model"], &answer["adapter"]), (&json!(BASE), &json!("lora_r4")));
    assert_eq!(answer["adapter_version"].as_str().unwrap().len(), 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mix_is_that_of_grpc() {
    let server = GoldenServer::start().await;
    server.upload_golden(&["lora_r4", "lora_all_r8"]).await;
    let part = |adapter: &str, weight| pb::MixPart { adapter: adapter.into(), weight, ..Default::default() };
    let case = case("base/short");
    let mix = vec![part("lora_r4", 0.5), part("lora_all_r8", 0.25)];
    let expected = over_grpc(&server, pb::GenerateRequest { adapter: String::new(), mix, ..case.request() }).await;
    let mut asked = request(&case, BASE);
    asked["mix"] = json!([{"adapter": "lora_r4", "weight": 0.5}, {"adapter": "lora_all_r8", "weight": 0.25}]);
    let answer = ask(server.address, PATH, &asked).await;
    assert_eq!(answer["choices"][0]["token_ids"], json!(expected.choices[0].token_ids));
    assert_eq!(answer["adapter_version"], expected.adapter_version);
    assert_eq!(answer["mix"][1]["adapter"], "lora_all_r8");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echo_with_logprobs_scores_the_prompt() {
    let server = GoldenServer::start().await;
    let case = case("base/short");
    let mut grpc = case.request();
    grpc.stopping.as_mut().unwrap().max_tokens = Some(0);
    grpc.options = Some(pb::OutputOptions { prompt_logprobs: Some(1), ..Default::default() });
    let expected = over_grpc(&server, grpc).await.prompt_logprobs;
    // As lm-eval's local-completions asks, and with a token more, as its newer versions do.
    for max_tokens in [0, 1] {
        let asked = json!({"model": BASE, "prompt": [case.prompt], "temperature": 0, "max_tokens": max_tokens,
            "logprobs": 1, "echo": true, "seed": 1234});
        let choice = &ask(server.address, PATH, &asked).await["choices"][0];
        let logprobs = &choice["logprobs"];
        let count = case.prompt.len() + max_tokens;
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
        }
        assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        for (index, token) in expected.iter().enumerate() {
            let place = index + 1;
            assert_eq!(logprobs["token_logprobs"][place].as_f64().unwrap() as f32, token.logprob);
            let best = logprobs["top_logprobs"][place].as_object().unwrap();
            assert_eq!(best[&token.top[0].text].as_f64().unwrap() as f32, token.top[0].logprob);
            assert!(best.contains_key(&token.text) && best.len() <= 2);
        }
        // Each token begins where the text before it ends.
        let (text, offsets) = (choice["text"].as_str().unwrap(), logprobs["text_offset"].as_array().unwrap());
        let texts: String = logprobs["tokens"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        assert!(texts.starts_with(text) || text.starts_with(&texts), "{text:?} {texts:?}");
        assert!(offsets.windows(2).all(|pair| pair[0].as_u64() <= pair[1].as_u64()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_logprobs_have_vllms_shape_too() {
    let server = GoldenServer::start().await;
    let case = case("base/short");
    let mut asked = request(&case, BASE);
    asked["prompt_logprobs"] = json!(1);
    let choice = &ask(server.address, PATH, &asked).await["choices"][0];
    let prompt = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((prompt.len(), &prompt[0]), (case.prompt.len(), &Value::Null));
    for (token, id) in prompt.iter().zip(&case.prompt).skip(1) {
        assert!(token[id.to_string()]["logprob"].is_f64() && token[id.to_string()]["decoded_token"].is_string());
        assert!(token.as_object().unwrap().values().any(|token| token["rank"] == 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_prompts_have_n_choices_each_in_order() {
    let server = GoldenServer::start().await;
    let asked = json!({"prompt": ["ab", "cde"], "n": 2, "max_tokens": 3, "seed": 7, "temperature": 1.5,
        "return_token_ids": true, "ignore_eos": true});
    let answer = ask(server.address, PATH, &asked).await;
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let lengths: Vec<_> = choices.iter().map(|choice| choice["prompt_token_ids"].as_array().unwrap().len()).collect();
    assert_eq!(lengths, [3, 3, 4, 4]);
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(7), &json!(12)));
    for (index, prompt) in ["ab", "cde"].into_iter().enumerate() {
        let mut alone = asked.clone();
        alone["prompt"] = json!(prompt);
        let alone = ask(server.address, PATH, &alone).await;
        for choice in 0..2 {
            assert_eq!(alone["choices"][choice]["token_ids"], choices[2 * index + choice]["token_ids"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_rendered_with_the_template_and_answered() {
    let server = GoldenServer::start().await;
    let asked = json!({"model": BASE, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_completion_tokens": 3, "temperature": 0, "logprobs": true, "top_logprobs": 2, "ignore_eos": true,
        "user": "me", "tools": [], "tool_choice": "none", "response_format": {"type": "text"}});
    let answer = ask(server.address, CHAT, &asked).await;
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    let rendered = pb::GenerateRequest {
        input: Some(pb::generate_request::Input::Chat(pb::Chat {
            messages: vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }],
            ..Default::default()
        })),
        sampling: Some(pb::SamplingParams { temperature: Some(0.0), ..Default::default() }),
        stopping: Some(pb::StoppingParams { max_tokens: Some(3), ignore_eos: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let expected = over_grpc(&server, rendered).await;
    assert_eq!(choice["message"]["content"], expected.choices[0].text);
    assert_eq!(answer["usage"]["prompt_tokens"], expected.usage.unwrap().prompt_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_choice_and_is_named() {
    let server = GoldenServer::start().await;
    let case = case("base/short");
    let mut asked = request(&case, BASE);
    asked["stop_token_ids"] = json!([case.ids[1]]);
    let choice = &ask(server.address, PATH, &asked).await["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(case.ids[1])));
    let whole = ask(server.address, PATH, &request(&case, BASE)).await;
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(2).take(1).collect();
    let mut asked = request(&case, BASE);
    asked["stop"] = json!(stop);
    let choice = &ask(server.address, PATH, &asked).await["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    assert_eq!(choice["text"].as_str(), text.split(&stop).next());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_an_id_and_a_receipt_where_one_is_wanted() {
    let server = GoldenServer::start().await;
    let mut request = post(PATH, &json!({"prompt": "ab", "max_tokens": 2, "receipt": true}));
    request.headers_mut().insert("x-request-id", "mine-7".parse().unwrap());
    let answer = send(server.address, request).await;
    assert_eq!(answer.headers["x-request-id"], "mine-7");
    let document = answer.json();
    assert_eq!(document["id"], "cmpl-mine-7");
    assert!(document["receipt"].as_str().unwrap().contains("polydelta"), "{document}");
    let other = send(server.address, get("/health")).await;
    assert_eq!(other.headers["x-request-id"].len(), 32);
}
