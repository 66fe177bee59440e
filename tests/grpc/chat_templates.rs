//! Adapters that bring a chat template: chats for them are what transformers makes of the tokenizer saved with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polydelta::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, StoreLimits, WEIGHTS_FILE};
use polydelta::cli::{Saved, bring};
use polydelta::config::{AdapterSource, Environment};
use polydelta::grpc::pb;
use polydelta::text::{Tokenizer, TokenizerSettings};
use polydelta::types::Sha256Digest;
use serde::Deserialize;
use serde_json::Value;
use tonic::{Code, Status};

use super::fakes::FakeServer;
use super::files::{AdapterFiles, header_frame};
use super::harness::{Options, field, refusal};

/// Made by `tools/text/adapters.py`.
#[derive(Deserialize)]
struct Expected {
    base: Base,
    adapters: Vec<Case>,
}

#[derive(Deserialize)]
struct Base {
    /// Beside its tokenizer.json.
    files: BTreeMap<String, Value>,
    chat_template: String,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    files: BTreeMap<String, String>,
    /// The template is not the base's.
    own: bool,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<(String, String)>,
    text: String,
    ids: Vec<u32>,
}

impl Chat {
    fn message(&self) -> pb::Chat {
        let message =
            |(role, content): &(String, String)| pb::ChatMessage { role: role.clone(), content: content.clone() };
        pb::Chat { messages: self.messages.iter().map(message).collect(), ..Default::default() }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/bytes")
}

impl Expected {
    fn read() -> Self {
        serde_json::from_slice(&fs::read(fixtures().join("adapters.json")).unwrap()).unwrap()
    }

    async fn serve(&self) -> FakeServer {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        for (name, content) in &self.base.files {
            fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let model = self.base.files.get("config.json").and_then(Value::as_object).cloned().unwrap_or_default();
        let settings = TokenizerSettings::from_dir(folder.path(), &model).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_dir(folder.path(), &settings).unwrap());
        let digest = Sha256Digest::of(self.base.chat_template.as_bytes());
        let options = Options {
            chat_template: Some(self.base.chat_template.clone().into()),
            store: StoreLimits { base_chat_templates: vec![digest], ..StoreLimits::default() },
            ..Options::default()
        };
        FakeServer::speaking(options, tokenizer, settings).await
    }
}

impl Case {
    /// The adapter as a client brings it from the folder it was saved in.
    fn files(&self) -> AdapterFiles {
        let folder = tempfile::tempdir().unwrap();
        let plain = AdapterFiles::opaque("{}", &self.name);
        for (name, content) in [(CONFIG_FILE, &plain.config), (WEIGHTS_FILE, &plain.weights)] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        for (name, content) in &self.files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let brought =
            bring(&AdapterSource::Dir(folder.path().to_owned()), Saved::ALL, &Environment::default()).unwrap();
        AdapterFiles { chat_template: brought.chat_template().map(<[u8]>::to_vec), ..plain }
    }
}

#[tokio::test]
async fn a_chat_for_an_adapter_is_what_transformers_makes_of_the_tokenizer_saved_with_it() {
    let expected = Expected::read();
    let server = expected.serve().await;
    let mut client = server.generation().await;
    for (at, case) in expected.adapters.iter().enumerate() {
        let files = case.files();
        let name = format!("a{at}");
        let response = server.send(files.frames(files.header(&name))).await.unwrap();
        let adapter = response.adapter.unwrap();
        assert_eq!(adapter.has_chat_template, case.own, "{}", case.name);
        let kept = server.stored("objects").join(&adapter.version).join(CHAT_TEMPLATE_FILE);
        assert_eq!(kept.is_file(), case.own, "{}", case.name);
        for chat in &case.chats {
            let input = Some(pb::tokenize_request::Input::Chat(chat.message()));
            let request = pb::TokenizeRequest { input, adapter: name.clone(), ..Default::default() };
            let found = client.tokenize(request).await.unwrap().into_inner();
            assert_eq!((found.token_ids, found.text), (chat.ids.clone(), chat.text.clone()), "{}", case.name);
        }
        let chat = &case.chats[0];
        let request = pb::GenerateRequest {
            adapter: name.clone(),
            input: Some(pb::generate_request::Input::Chat(chat.message())),
            ..Default::default()
        };
        client.generate(request).await.unwrap();
        assert_eq!(server.engine.submitted()[at].prompt[..], chat.ids, "{}", case.name);
    }
}

/// The text of a chat, as it is tokenized for an adapter.
async fn text(server: &FakeServer, adapter: &str, version: &str) -> Result<String, Status> {
    let messages = vec![pb::ChatMessage { role: "user".into(), content: "hi".into() }];
    let input = Some(pb::tokenize_request::Input::Chat(pb::Chat { messages, ..Default::default() }));
    let (adapter, adapter_version) = (adapter.to_owned(), version.to_owned());
    let request = pb::TokenizeRequest { input, adapter, adapter_version, ..Default::default() };
    server.generation().await.tokenize(request).await.map(|answer| answer.into_inner().text)
}

#[test]
fn another_template_is_another_version_that_is_there_after_a_restart() {
    let options = Options::default();
    // A runtime that ends takes its server with it, and the lock on the store.
    let life = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let [plain, own] = life().block_on(async {
        let server = FakeServer::with(options.clone()).await;
        let plain = AdapterFiles::opaque("{}", "weights");
        let own = plain.clone().chat_template(b"own:{{ messages[0].content }}");
        let versions = [server.upload("plain", &plain).await.version, server.upload("own", &own).await.version];
        assert_eq!(text(&server, "own", &versions[1]).await.unwrap(), "own:hi");
        versions
    });
    assert_ne!(plain, own);
    life().block_on(async {
        let server = FakeServer::with(options.clone()).await;
        assert_eq!(text(&server, "own", &own).await.unwrap(), "own:hi");
        assert_eq!(text(&server, "plain", "").await.unwrap(), "<user>hi");
        assert_eq!(text(&server, "own", &plain).await.unwrap_err().code(), Code::Aborted);
    });
    // Damage on the disk is told by name, and ends nothing else.
    life().block_on(async {
        let server = FakeServer::with(options).await;
        fs::write(server.stored("objects").join(&own).join(CHAT_TEMPLATE_FILE), b"own:{{ messages[0].CONTENT }}")
            .unwrap();
        let corrupt = text(&server, "own", "").await.unwrap_err();
        assert_eq!(refusal(&corrupt), (Code::DataLoss, "ADAPTER_CORRUPT".into()));
        assert_eq!(text(&server, "plain", "").await.unwrap(), "<user>hi");
    });
}

#[tokio::test]
async fn a_template_that_is_not_taken_is_named_before_the_weights_are_sent() {
    let server = FakeServer::start().await;
    let files = AdapterFiles::opaque("{}", "weights").chat_template(b"{{ messages | nonesuch }}");
    let header = pb::UploadHeader { chat_template: files.chat_template.clone().unwrap(), ..files.header("a") };
    let status = server.send(vec![header_frame(header)]).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_CHAT_TEMPLATE".into()));
    assert_eq!(field(&status), CHAT_TEMPLATE_FILE);
    assert!(status.message().contains("nonesuch"), "{status:?}");
    assert!(server.registry.is_empty());
}

#[tokio::test]
async fn an_upload_with_a_template_goes_on_where_it_broke_off() {
    let server = FakeServer::start().await;
    let files = AdapterFiles::opaque("{}", "weights").chat_template(&b"x".repeat(2500));
    let header = || pb::UploadHeader { upload_id: "u".into(), ..files.header("a") };
    let mut frames = files.frames(header());
    let rest = frames.split_off(4);
    let status = server.send(frames).await.unwrap_err();
    assert_eq!(refusal(&status).1, "TRUNCATED");
    let request = pb::GetUploadRequest { upload_id: "u".into() };
    let upload = server.adapters().await.get_upload(request).await.unwrap().into_inner().upload.unwrap();
    let committed: Vec<_> = upload.files.iter().map(|file| file.committed_size).collect();
    assert_eq!(committed, [2, 7, 1000]);
    let frames = [header_frame(header())].into_iter().chain(rest).collect();
    assert!(server.send(frames).await.unwrap().adapter.unwrap().has_chat_template);
}
