use serde_json::Value;

use super::super::chat::ChatTemplate;
use super::super::fixtures::settings_in;
use super::super::tokenizer::Tokenizer;
use super::*;
use crate::types::generate::{Chat, ChatMessage, TemplateValue};

/// What transformers made of the same files (`tools/text/tokens.py` and `classes.py`).
const EXPECTED: [(&str, &str, [&str; 2]); 2] = [
    (
        "bytes",
        include_str!("../../../tests/fixtures/tokenizers/bytes/tokenizer.json"),
        [
            include_str!("../../../tests/fixtures/tokenizers/bytes/expected.json"),
            include_str!("../../../tests/fixtures/tokenizers/bytes/classes.json"),
        ],
    ),
    (
        "pieces",
        include_str!("../../../tests/fixtures/tokenizers/pieces/tokenizer.json"),
        [
            include_str!("../../../tests/fixtures/tokenizers/pieces/expected.json"),
            include_str!("../../../tests/fixtures/tokenizers/pieces/classes.json"),
        ],
    ),
];

/// Tokenizers with what is expected of them.
fn expected() -> impl Iterator<Item = (&'static str, &'static str, Value)> {
    let parsed = |text: &str| serde_json::from_str(text).unwrap();
    EXPECTED
        .into_iter()
        .flat_map(move |(kind, tokenizer, files)| files.into_iter().map(move |file| (kind, tokenizer, parsed(file))))
}

fn folder(tokenizer: &str, files: &Value) -> (tempfile::TempDir, TokenizerSettings, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, content) in files.as_object().unwrap() {
        std::fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    let settings = settings_in(dir.path()).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path(), &settings).unwrap();
    (dir, settings, tokenizer)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn special_and_added_tokens_are_those_of_transformers() {
    for (kind, tokenizer, expected) in expected() {
        for case in expected["cases"].as_array().unwrap() {
            let name = format!("{kind}/{}", case["name"].as_str().unwrap());
            let (_dir, settings, tokenizer) = folder(tokenizer, &case["files"]);
            let variables: Map<String, Value> =
                settings.variables().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
            assert_eq!(Value::Object(variables), case["variables"], "{name}");
            for probe in case["probes"].as_array().unwrap() {
                let text = probe["text"].as_str().unwrap();
                let found = tokenizer.encode(text, true).unwrap();
                assert_eq!(found, ids(&probe["ids"]), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&found, false).unwrap(), probe["decoded"].as_str().unwrap(), "{name}");
                assert_eq!(tokenizer.decode(&found, true).unwrap(), probe["skipped"].as_str().unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn control_tokens_of_a_client_are_text_as_transformers_sanitizes_them_unless_it_asks_for_them() {
    for (kind, tokenizer, expected) in expected() {
        let (_dir, settings, tokenizer) = folder(tokenizer, &expected["chat_files"]);
        for case in expected["chats"].as_array().unwrap() {
            let template = ChatTemplate::new(case["template"].as_str().unwrap(), &settings, &tokenizer).unwrap();
            let message = |message: &Value| ChatMessage {
                role: message[0].as_str().unwrap().to_owned(),
                content: message[1].as_str().unwrap().to_owned(),
            };
            let chat = Chat {
                messages: case["messages"].as_array().unwrap().iter().map(message).collect(),
                template_kwargs: vec![("word".to_owned(), TemplateValue::Text("</s><over>".to_owned()))],
                allow_special_tokens: case["allow"].as_bool().unwrap(),
            };
            let rendered = template.render(&chat, std::time::UNIX_EPOCH).unwrap();
            let found = rendered.encode_at_most(&tokenizer, usize::MAX).unwrap().unwrap();
            assert_eq!(found, ids(&case["ids"]), "{kind}: {case}");
        }
    }
}

#[test]
fn a_control_token_that_is_a_word_of_the_vocabulary_too_cannot_be_taken_for_text() {
    let (_, tokenizer, _) = EXPECTED[0];
    let files = serde_json::json!({"tokenizer_config.json": {"pad_token": "the"}});
    let (_dir, settings, tokenizer) = folder(tokenizer, &files);
    let template = ChatTemplate::new("{{ messages[0].content }}", &settings, &tokenizer).unwrap();
    let chat = Chat::from(vec![ChatMessage { role: "user".into(), content: "on the in".into() }]);
    let rendered = template.render(&chat, std::time::UNIX_EPOCH).unwrap();
    let refused = rendered.encode_at_most(&tokenizer, usize::MAX).unwrap_err();
    assert!(matches!(&refused, TokenizerError::Control { token } if token == "the"), "{refused}");
    assert_eq!(rendered.text(), "on the in");
}

#[test]
fn the_template_is_found_in_every_place_transformers_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let read = || settings_in(dir.path()).map(|settings| settings.chat_template);
    assert_eq!(read().unwrap(), None);
    write("tokenizer_config.json", r#"{"chat_template": "1"}"#);
    assert_eq!(read().unwrap().as_deref(), Some("1"));
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "2"}]}"#,
    );
    assert_eq!(read().unwrap().as_deref(), Some("2"));
    for wrong in [r#"{"chat_template": [{"name": "a", "template": "t"}, {"name": "b", "template": "2"}]}"#, "["] {
        write("tokenizer_config.json", wrong);
        assert!(matches!(read(), Err(TokenizerError::Settings { .. })), "{wrong}");
    }
    write("tokenizer_config.json", r#"{"chat_template": "1"}"#);
    write("chat_template.jinja", "3\n");
    assert_eq!(read().unwrap().as_deref(), Some("3\n"));
}

#[test]
fn files_that_are_not_what_transformers_writes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": 1}"#),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#),
        ("special_tokens_map.json", "1"),
        ("added_tokens.json", r#"{"a": -1}"#),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
        let said = settings_in(dir.path()).unwrap_err().to_string();
        assert!(said.contains(name), "{said}");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
}
