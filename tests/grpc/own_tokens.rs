//! Adapters that bring the tokenizer they were trained with: their texts are read and written with their own tokens, and
//! nobody else's are.

use polydelta::adapters::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use polydelta::grpc::pb;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::fakes::{FakeServer, Plan};
use super::files::{AdapterFiles, header_frame};
use super::generation::{check, unary};
use super::golden::{GoldenServer, case};
use super::harness::{Options, Server, field, metadata, prompt, refusal, tokenizer};
use super::vocabulary;

fn token(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "normalized": false, "lstrip": false, "rstrip": false,
        "single_word": false})
}

/// `tokenizer.json` with these tokens and with all else that one has, which is the base's.
fn file(tokens: &[Value]) -> Vec<u8> {
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]});
    json!({"version": "1.0", "added_tokens": tokens, "model": model}).to_string().into_bytes()
}

/// Those of the golden base, and three of an adapter of 103 rows.
fn of_golden() -> Vec<u8> {
    file(&[
        token(0, "<pad>", true),
        token(1, "<s>", true),
        token(2, "</s>", true),
        token(100, "<tool>", true),
        token(101, "<arg>", false),
        token(102, "<end>", true),
    ])
}

fn with_tokens() -> AdapterFiles {
    let config = json!({"eos_token": "<end>", "tokenizer_class": "LlamaTokenizer"});
    let files = vocabulary::files("saved").chat_template(b"{{ messages[0].content }}");
    files.with(TOKENIZER_FILE, of_golden()).with(TOKENIZER_CONFIG_FILE, config.to_string())
}

fn sampling(id: u32) -> Option<pb::SamplingParams> {
    Some(pb::SamplingParams { logit_bias: [(id, 100.0)].into(), ..Default::default() })
}

/// An answer of the adapter that would be this token for ever.
fn always(id: u32) -> pb::GenerateRequest {
    let stopping = pb::StoppingParams { max_tokens: Some(4), ..Default::default() };
    let options = pb::OutputOptions { token_ids: true, ..Default::default() };
    pb::GenerateRequest {
        adapter: "saved".into(),
        sampling: sampling(id),
        stopping: Some(stopping),
        options: Some(options),
        ..prompt("a<tool>b")
    }
}

async fn ids(server: &Server, adapter: &str, text: &str) -> Vec<u32> {
    let input = Some(pb::tokenize_request::Input::Prompt(text.to_owned()));
    let request = pb::TokenizeRequest { input, adapter: adapter.to_owned(), ..Default::default() };
    server.generation().await.tokenize(request).await.unwrap().into_inner().token_ids
}

async fn text(server: &Server, adapter: &str, token_ids: &[u32], skip_special_tokens: bool) -> String {
    let (token_ids, adapter) = (token_ids.to_vec(), adapter.to_owned());
    let request = pb::DetokenizeRequest { token_ids, skip_special_tokens, adapter, ..Default::default() };
    server.generation().await.detokenize(request).await.unwrap().into_inner().text
}

#[tokio::test]
async fn an_answer_to_a_text_with_added_tokens_is_the_one_of_transformers_and_peft() {
    let server = GoldenServer::start().await;
    let uploaded = server.upload("saved", &with_tokens()).await;
    assert_eq!((uploaded.vocab_size, uploaded.has_own_tokens), (103, true));
    for name in ["saved/short", "saved/long"] {
        let case = vocabulary::case(name);
        let content = text(&server, "saved", &case.prompt, false).await;
        assert!(content.contains("<tool>") && content.contains("<end>"), "{content:?}");
        let chat = pb::Chat {
            messages: vec![pb::ChatMessage { role: "user".into(), content: content.clone() }],
            allow_special_tokens: true,
            ..Default::default()
        };
        let input = Some(pb::generate_request::Input::Chat(chat));
        let mut request = pb::GenerateRequest { input, ..case.request() };
        request.options.as_mut().unwrap().echo = true;
        let answer = unary(&server, request).await.choices.remove(0);
        let said = text(&server, "saved", &case.ids, true).await;
        assert_eq!(answer.text, format!("{content}{said}"));
        assert_eq!(answer.token_ids, [case.prompt.clone(), case.ids.clone()].concat(), "{name}");
        check(&case, &unary(&server, case.request()).await.choices[0]);
    }
}

#[tokio::test]
async fn texts_have_an_adapters_own_tokens_and_those_of_others_do_not() {
    let server = GoldenServer::start().await;
    server.upload("saved", &with_tokens()).await;
    server.upload_golden(&["lora_r4"]).await;
    let text_of_all = "a<tool>b <arg></s>";
    let letters = |text: &str| text.bytes().map(|byte| u32::from(byte - b' ') + 5).collect::<Vec<_>>();
    let own = ids(&server, "saved", text_of_all).await;
    assert_eq!(own, [&[1][..], &letters("a"), &[100], &letters("b "), &[101, 2]].concat());
    let of_base = [&[1][..], &letters("a<tool>b <arg>"), &[2]].concat();
    assert_eq!(ids(&server, "", text_of_all).await, of_base);
    assert_eq!(ids(&server, "lora_r4", text_of_all).await, of_base);
    assert_eq!(text(&server, "saved", &own, false).await, format!("<s>{text_of_all}"));
    assert_eq!(text(&server, "saved", &own, true).await, "ab <arg>");
    // To the base they are ids of nothing.
    let request = pb::DetokenizeRequest { token_ids: own.clone(), ..Default::default() };
    let status = server.generation().await.detokenize(request).await.unwrap_err();
    assert_eq!((status.code(), field(&status)), (Code::InvalidArgument, "token_ids[2]".into()));
    // Their text or their ids: one answer.
    let as_text = pb::GenerateRequest { adapter: "saved".into(), ..prompt(text_of_all) };
    let input = Some(pb::generate_request::Input::TokenIds(pb::TokenIds { ids: own }));
    let as_ids = pb::GenerateRequest { input, ..as_text.clone() };
    assert_eq!(unary(&server, as_text).await.choices, unary(&server, as_ids).await.choices);
    // A chat's client writes text, unless it says otherwise.
    let chat = |allow_special_tokens| {
        let messages = vec![pb::ChatMessage { role: "user".into(), content: "<tool><arg>".into() }];
        let input =
            Some(pb::tokenize_request::Input::Chat(pb::Chat { messages, allow_special_tokens, ..Default::default() }));
        pb::TokenizeRequest { input, adapter: "saved".into(), ..Default::default() }
    };
    let mut client = server.generation().await;
    let sanitized = client.tokenize(chat(false)).await.unwrap().into_inner().token_ids;
    assert_eq!(sanitized, [&letters("<tool>")[..], &[101]].concat());
    assert_eq!(client.tokenize(chat(true)).await.unwrap().into_inner().token_ids, [100, 101]);
}

#[tokio::test]
async fn answers_are_written_with_own_tokens_and_end_at_them() {
    let server = GoldenServer::start().await;
    server.upload("saved", &with_tokens()).await;
    let answer = async |request| unary(&server, request).await.choices.remove(0);
    let plain = answer(always(101)).await;
    assert_eq!((plain.text.as_str(), plain.token_ids), ("<arg><arg><arg><arg>", vec![101; 4]));
    // A special one is no part of the text, and has a text of its own.
    let mut special = always(100);
    special.options.as_mut().unwrap().logprobs = Some(1);
    let special = answer(special).await;
    assert_eq!((special.text.as_str(), special.token_ids), ("", vec![100; 4]));
    assert!(special.logprobs.len() == 4 && special.logprobs.iter().all(|token| token.text == "<tool>"));
    // To stop at, by text and by id.
    for (id, stop) in [(100, "<tool>"), (101, "<arg>"), (101, "g>")] {
        let mut request = always(id);
        request.stopping.as_mut().unwrap().stop = vec![stop.into()];
        let stopped = answer(request).await;
        assert_eq!(stopped.finish_reason(), pb::FinishReason::Stop, "{stop}");
        assert_eq!(stopped.text, if stop == "g>" { "<ar" } else { "" });
        let mut request = always(id);
        request.stopping.as_mut().unwrap().stop_token_ids = vec![id];
        let stopped = answer(request).await;
        assert_eq!((stopped.finish_reason(), stopped.text.as_str()), (pb::FinishReason::Stop, ""));
    }
    // The token that its tokenizer says ends an answer, unless the request does not want it to.
    let ended = answer(always(102)).await;
    assert_eq!((ended.finish_reason(), ended.token_ids.len()), (pb::FinishReason::Stop, 0));
    let mut ignoring = always(102);
    ignoring.stopping.as_mut().unwrap().ignore_eos = Some(true);
    assert_eq!(answer(ignoring).await.token_ids, [102; 4]);
    // Uploaded without its tokenizer it goes on, and the base's end is an end as ever.
    server.upload("saved", &vocabulary::files("saved")).await;
    assert_eq!(answer(always(102)).await.token_ids, [102; 4]);
    assert_eq!(answer(always(2)).await.finish_reason(), pb::FinishReason::Stop);
}

#[tokio::test]
async fn every_client_makes_the_same_version_of_a_tokenizer_and_none_of_the_bases() {
    let server = GoldenServer::start().await;
    let plain = vocabulary::files("saved");
    let version = async |files: &AdapterFiles| server.upload("a", files).await.version;
    let without = version(&plain).await;
    let of_base = file(&[token(1, "<s>", true), token(2, "</s>", true)]);
    let companion = plain.clone().with(TOKENIZER_FILE, of_base).with("special_tokens_map.json", "{}");
    assert_eq!(version(&companion).await, without, "the base's tokens are no part of an adapter");
    assert!(!server.upload("a", &companion).await.has_own_tokens);
    let whole = version(&plain.clone().with(TOKENIZER_FILE, of_golden())).await;
    assert_ne!(whole, without);
    // What is kept is what a client may send.
    let kept = std::fs::read(server.stored("objects").join(&whole).join(TOKENIZER_FILE)).unwrap();
    let said: Value = serde_json::from_slice(&kept).unwrap();
    let ids = said["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), [100, 101, 102]);
    assert_eq!(said.as_object().unwrap().len(), 1, "{said}");
    assert_eq!(version(&plain.clone().with(TOKENIZER_FILE, kept)).await, whole);
    let validated = {
        let files = plain.with(TOKENIZER_FILE, of_golden());
        let header = pb::UploadHeader { validate_only: true, ..files.header("b") };
        server.send(files.frames(header)).await.unwrap().adapter.unwrap()
    };
    assert_eq!((validated.version, validated.has_own_tokens), (whole, true));
}

#[tokio::test]
async fn a_tokenizer_that_does_not_go_with_base_and_rows_is_refused_by_the_name_of_its_token() {
    let server = GoldenServer::start().await;
    let refused = async |tokens: &[Value]| {
        let files = vocabulary::files("saved").with(TOKENIZER_FILE, file(tokens));
        let status = server.send(files.frames(files.header("a"))).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_TOKENIZER".into()), "{status:?}");
        assert_eq!(field(&status), TOKENIZER_FILE);
        status
    };
    let other_id = refused(&[token(100, "</s>", true)]).await;
    assert_eq!((metadata(&other_id, "token"), metadata(&other_id, "base_token_id")), ("</s>".into(), "2".into()));
    let taken = refused(&[token(2, "<new>", true)]).await;
    assert_eq!((metadata(&taken, "token"), metadata(&taken, "other")), ("<new>".into(), "</s>".into()));
    let no_row = refused(&[token(103, "<far>", true)]).await;
    assert_eq!((metadata(&no_row, "token"), metadata(&no_row, "vocab_size")), ("<far>".into(), "103".into()));
    refused(&[token(100, "", true)]).await;
    refused(&[token(100, "<a>", true), token(101, "<a>", true)]).await;
    assert!(server.registry.is_empty());
    let files = vocabulary::files("saved").with(TOKENIZER_CONFIG_FILE, "[");
    let status = server.send(files.frames(files.header("a"))).await.unwrap_err();
    assert_eq!((refusal(&status).1.as_str(), field(&status).as_str()), ("INVALID_TOKENIZER", TOKENIZER_CONFIG_FILE));
    // One that is too large is refused by what is declared, before any of it comes.
    let mut header = vocabulary::files("saved").with(TOKENIZER_FILE, "x").header("a");
    header.files.last_mut().unwrap().size = (64 << 20) + 1;
    let status = server.send(vec![header_frame(header)]).await.unwrap_err();
    assert_eq!((refusal(&status).1.as_str(), metadata(&status, "max").as_str()), ("UPLOAD_TOO_LARGE", "67108864"));
}

/// Of an adapter that looks like any other: its token is beyond the base's tokenizer and within its embedding.
fn opaque(weights: &str, own: &str) -> AdapterFiles {
    AdapterFiles::opaque("{}", weights).with(TOKENIZER_FILE, file(&[token(256, own, false)]))
}

async fn padded(options: Options, rows: u32) -> FakeServer {
    FakeServer::of_rows(options, tokenizer(|byte| Some(u32::from(byte)), &[]), Default::default(), rows).await
}

#[tokio::test]
async fn a_token_within_a_padded_embedding_is_served_and_one_without_a_row_is_named() {
    for (rows, served) in [(320, true), (256, false)] {
        let server = padded(Options::default(), rows).await;
        server.engine.plan(|_| Plan::ids(&[256, 104, 105]));
        assert!(server.upload("a", &opaque("weights", "<call>")).await.has_own_tokens);
        let request = pb::GenerateRequest { adapter: "a".into(), ..prompt("x<call>") };
        let answer = server.generation().await.generate(request.clone()).await;
        if served {
            assert_eq!(answer.unwrap().into_inner().choices[0].text, "<call>hi");
            assert_eq!(server.engine.submitted()[0].prompt[..], [120, 256]);
            // The base reads and writes the same ids without it.
            let of_base = pb::GenerateRequest { adapter: String::new(), ..request };
            let answer = server.generation().await.generate(of_base).await.unwrap().into_inner();
            assert_eq!(answer.choices[0].text, "hi");
            assert_eq!(server.engine.submitted()[1].prompt.len(), 7);
        } else {
            let status = answer.unwrap_err();
            assert_eq!((status.code(), field(&status)), (Code::InvalidArgument, "prompt".into()));
            assert_eq!(metadata(&status, "token"), "<call>");
        }
    }
}

#[tokio::test]
async fn the_parts_of_a_mix_that_bring_tokens_bring_the_same() {
    let server = padded(Options::default(), 320).await;
    server.upload("plain", &AdapterFiles::opaque("{}", "plain")).await;
    for (name, own) in [("one", "<call>"), ("same", "<call>"), ("other", "<tool>")] {
        server.upload(name, &opaque(name, own)).await;
    }
    let part = |adapter: &str| pb::MixPart { adapter: adapter.into(), weight: 0.5, ..Default::default() };
    let read = async |parts: [&str; 2]| -> Result<Vec<u32>, Status> {
        let input = Some(pb::tokenize_request::Input::Prompt("x<call>".into()));
        let request = pb::TokenizeRequest { input, mix: parts.map(part).into(), ..Default::default() };
        server.generation().await.tokenize(request).await.map(|answer| answer.into_inner().token_ids)
    };
    for parts in [["one", "same"], ["one", "plain"], ["plain", "same"]] {
        assert_eq!(read(parts).await.unwrap(), [120, 256], "{parts:?}");
    }
    let refused = read(["one", "other"]).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::FailedPrecondition, "OWN_TOKENS_DIFFER".into()));
}

#[test]
fn own_tokens_are_there_after_a_restart_and_damage_is_told() {
    let options = Options::default();
    // A runtime that ends takes its server with it, and the lock on the store.
    let life = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let version = life().block_on(async {
        let server = padded(options.clone(), 320).await;
        let version = server.upload("a", &opaque("weights", "<call>")).await.version;
        assert_eq!(ids(&server, "a", "<call>").await, [256]);
        version
    });
    life().block_on(async {
        let server = padded(options.clone(), 320).await;
        let request = pb::GetAdapterRequest { name: "a".into() };
        let kept = server.adapters().await.get_adapter(request).await.unwrap().into_inner().adapter.unwrap();
        assert_eq!((&kept.version, kept.has_own_tokens), (&version, true));
        assert_eq!(ids(&server, "a", "<call>").await, [256]);
        assert_eq!(ids(&server, "", "<call>").await.len(), 6);
    });
    life().block_on(async {
        let server = padded(options, 320).await;
        let file = server.stored("objects").join(&version).join(TOKENIZER_FILE);
        let damaged = String::from_utf8(std::fs::read(&file).unwrap()).unwrap().replace("<call>", "<CALL>");
        std::fs::write(file, damaged).unwrap();
        let request = pb::GenerateRequest { adapter: "a".into(), ..prompt("x") };
        let corrupt = server.generation().await.generate(request).await.unwrap_err();
        assert_eq!(refusal(&corrupt), (Code::DataLoss, "ADAPTER_CORRUPT".into()));
        assert_eq!(ids(&server, "", "x").await, [120]);
    });
}

#[tokio::test]
async fn a_golden_adapter_with_the_bases_tokenizer_answers_as_it_did() {
    let server = GoldenServer::start().await;
    let case = case("lora_r4/short");
    let files = AdapterFiles::golden("lora_r4").with(TOKENIZER_FILE, file(&[token(1, "<s>", true)]));
    server.upload("lora_r4", &files).await;
    check(&case, &unary(&server, case.request()).await.choices[0]);
}
