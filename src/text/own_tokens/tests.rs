use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::chat::ChatTemplate;
use super::super::choice::ChoiceText;
use super::super::detokenizer::Detokenizer;
use super::super::fixtures::{byte_level, metaspace, opaque, sentencepiece, settings_in};
use super::super::settings::TokenizerSettings;
use super::*;
use crate::types::generate::{Chat, ChatMessage};

/// What transformers made of tokenizers that were saved with tokens added to them (`tools/text/own.py`).
const EXPECTED: [(&str, &str, &str); 2] = [
    (
        "bytes",
        include_str!("../../../tests/fixtures/tokenizers/bytes/tokenizer.json"),
        include_str!("../../../tests/fixtures/tokenizers/bytes/own.json"),
    ),
    (
        "pieces",
        include_str!("../../../tests/fixtures/tokenizers/pieces/tokenizer.json"),
        include_str!("../../../tests/fixtures/tokenizers/pieces/own.json"),
    ),
];

/// An adapter's tokenizer as it was saved, and what it does.
struct Case {
    name: String,
    base: Arc<Tokenizer>,
    settings: TokenizerSettings,
    template: Arc<ChatTemplate>,
    /// `tokenizer.json` and `tokenizer_config.json`.
    saved: [Vec<u8>; 2],
    own: OwnTokens,
    tokenizer: Arc<Tokenizer>,
    expected: Value,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, written, expected) in EXPECTED {
        let expected: Value = serde_json::from_str(expected).unwrap();
        for base in expected["bases"].as_array().unwrap() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("tokenizer.json"), written).unwrap();
            for (name, content) in base["files"].as_object().unwrap() {
                std::fs::write(dir.path().join(name), content.to_string()).unwrap();
            }
            let settings = settings_in(dir.path()).unwrap();
            let tokenizer = Arc::new(Tokenizer::from_dir(dir.path(), &settings).unwrap());
            let template = ChatTemplate::new(expected["template"].as_str().unwrap(), &settings, &tokenizer).unwrap();
            let template = Arc::new(template);
            for case in base["cases"].as_array().unwrap() {
                let name = format!("{kind}, {}: {}", base["name"].as_str().unwrap(), case["name"].as_str().unwrap());
                let mut file: Value = serde_json::from_str(written).unwrap();
                file["added_tokens"] = case["added_tokens"].clone();
                let saved = [file, case["tokenizer_config"].clone()].map(|file| file.to_string().into_bytes());
                let own = own_of(&tokenizer, &saved).unwrap().unwrap();
                let with_own = Arc::new(tokenizer.with_tokens(&own).unwrap());
                cases.push(Case {
                    name,
                    base: Arc::clone(&tokenizer),
                    settings: settings.clone(),
                    template: Arc::clone(&template),
                    saved,
                    own,
                    tokenizer: with_own,
                    expected: case.clone(),
                });
            }
        }
    }
    cases
}

fn own_of(base: &Tokenizer, [tokenizer, config]: &[Vec<u8>; 2]) -> Result<Option<OwnTokens>, OwnTokensError> {
    OwnTokens::beside(base, SavedTokens::read(Some(tokenizer), Some(config))?.unwrap_or_default())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// What a stream of ids becomes, with what is left at its end.
fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
    let (mut detokenizer, mut text) = (Detokenizer::new(Arc::clone(tokenizer), skip_special, &[]), String::new());
    ids.iter().for_each(|id| detokenizer.push(*id, &mut text).unwrap());
    detokenizer.finish(&mut text).unwrap();
    text
}

#[test]
fn texts_are_read_and_written_as_transformers_does_with_the_tokenizer_that_was_saved() {
    let cases = cases();
    assert_eq!(cases.len(), 63, "three bases and four, nine adapters each");
    for Case { name, tokenizer, expected, .. } in &cases {
        for probe in expected["probes"].as_array().unwrap() {
            let text = probe["text"].as_str().unwrap();
            let found = tokenizer.encode(text, true).unwrap();
            assert_eq!(found, ids(&probe["ids"]), "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&probe["bare"]), "{name}: {text:?}");
            assert_eq!(tokenizer.encode_at_most(text, true, found.len()).unwrap(), Some(found.clone()), "{name}");
            if let Some(most) = tokenizer.max_bytes(found.len() as u32) {
                assert!(text.len() as u64 <= most, "{name}: {text:?}");
            }
        }
        for read in expected["probes"].as_array().unwrap().iter().chain(expected["decoded"].as_array().unwrap()) {
            let found = ids(&read["ids"]);
            for (field, skip_special) in [("decoded", false), ("skipped", true)] {
                let text = read[field].as_str().unwrap();
                assert_eq!(tokenizer.decode(&found, skip_special).unwrap(), text, "{name}: {found:?}");
                assert_eq!(streamed(tokenizer, &found, skip_special), text, "{name}: {found:?} in pieces");
            }
        }
    }
}

#[test]
fn chats_have_the_adapters_control_tokens_and_its_end() {
    for Case { name, settings, template, tokenizer, own, expected, .. } in &cases() {
        let settings = settings.with_eos(own.saved.eos());
        let template = template.for_tokenizer(&settings, tokenizer).unwrap();
        assert_eq!(
            own.saved.eos().and_then(|eos| tokenizer.token_id(eos)),
            expected["eos"].as_u64().map(|id| id as u32)
        );
        for chat in expected["chats"].as_array().unwrap() {
            let content = chat["content"].as_str().unwrap().to_owned();
            let allow = chat["allow"].as_bool().unwrap();
            let message = ChatMessage { role: "user".to_owned(), content };
            let rendered = Chat { allow_special_tokens: allow, ..Chat::from(vec![message]) };
            let rendered = template.render(&rendered, std::time::UNIX_EPOCH).unwrap();
            match rendered.encode_at_most(tokenizer, usize::MAX) {
                Ok(found) => assert_eq!(found.unwrap(), ids(&chat["ids"]), "{name}: {chat}"),
                Err(error) => {
                    assert!(matches!(error, TokenizerError::Control { .. }) && chat["ids"].is_null(), "{chat}")
                }
            }
        }
    }
}

#[test]
fn what_is_kept_is_small_the_same_for_every_client_and_says_the_same_again() {
    for Case { name, base, saved, own, .. } in &cases() {
        let kept = own.to_file().unwrap();
        assert!(kept.len() < 2000 && kept.len() < saved[0].len() / 4, "{name}: {}", kept.len());
        let again = OwnTokens::beside(base, SavedTokens::read(Some(&kept), None).unwrap().unwrap()).unwrap();
        assert_eq!(again.as_ref(), Some(own), "{name}");
        // As the command line sends it.
        let reduced = SavedTokens::read(Some(&saved[0]), Some(&saved[1])).unwrap().unwrap().to_file().unwrap();
        let reduced = SavedTokens::read(Some(&reduced), None).unwrap().unwrap();
        assert_eq!(OwnTokens::beside(base, reduced).unwrap().unwrap().to_file().unwrap(), kept, "{name}");
    }
}

/// `added_tokens` beside nothing else.
fn saved(tokens: Value) -> SavedTokens {
    let file = json!({ "added_tokens": tokens }).to_string();
    SavedTokens::read(Some(file.as_bytes()), None).unwrap().unwrap()
}

fn token(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "normalized": false})
}

#[test]
fn a_tokenizer_of_another_base_is_refused_by_the_name_of_its_token() {
    let base = byte_level();
    let next = base.vocab_size();
    let refused = |tokens: Value| OwnTokens::beside(&base, saved(tokens)).unwrap_err();
    let said = |tokens: Value| refused(tokens).to_string();
    let eos = base.token_id("</s>").unwrap();
    assert!(matches!(
        refused(json!([token(next, "</s>")])),
        OwnTokensError::OtherId { token, id, base_id } if token == "</s>" && (id as usize, base_id) == (next, eos)
    ));
    assert!(matches!(
        refused(json!([token(eos as usize, "<new>")])),
        OwnTokensError::Taken { token, other, .. } if token == "<new>" && other == "</s>"
    ));
    let of_model = refused(json!([token(0, "<new>")]));
    assert!(matches!(&of_model, OwnTokensError::Taken { other, .. } if *other == base.token(0).unwrap()), "{of_model}");
    assert!(said(json!([token(next, "")])).contains("is empty"));
    assert!(said(json!([token(next, "<a>"), token(next + 1, "<a>")])).contains("\"<a>\" is there twice"));
    assert!(said(json!([token(next, "<a>"), token(next, "<b>")])).contains("which \"<a>\" has too"));
    assert!(said(json!([token(next, &"x".repeat(1025))])).contains("1025 bytes"));
    let many = |count: usize| Value::Array((0..count).map(|at| token(next + at, &format!("<{at}>"))).collect());
    assert!(said(many(1025)).contains("1025 tokens are not the base's"));
    let most = OwnTokens::beside(&base, saved(many(1024))).unwrap().unwrap();
    assert_eq!(base.with_tokens(&most).unwrap().encode("<1023>", false).unwrap(), [next as u32 + 1023]);
    // Of what the file has besides, nothing is looked at.
    assert_eq!(OwnTokens::beside(&base, saved(json!([token(eos as usize, "</s>")]))).unwrap(), None);
}

#[test]
fn ids_are_those_of_rows() {
    let base = byte_level();
    let next = base.vocab_size();
    let own =
        OwnTokens::beside(&base, saved(json!([token(next + 2, "<a>"), token(next + 9, "<b>")]))).unwrap().unwrap();
    let rows = next as u32;
    // The base's embedding may have more rows than its tokenizer tokens; without rows of its own an adapter may have been
    // saved with more than that.
    assert!(own.check_rows(rows + 100, None).is_ok() && own.check_rows(rows, None).is_ok());
    assert!(own.check_rows(rows, Some(rows + 10)).is_ok());
    let refused = own.check_rows(rows, Some(rows + 9)).unwrap_err();
    assert!(matches!(&refused, OwnTokensError::NoRow { token, .. } if token == "<b>"), "{refused}");
    let far = OwnTokens::beside(&base, saved(json!([token(next + 1024, "<far>")]))).unwrap().unwrap();
    assert!(far.check_rows(rows, None).is_err());
}

#[test]
fn files_that_are_not_what_transformers_writes_are_named() {
    let long = json!({ "added_tokens": vec![token(1, "x"); 70_000] }).to_string();
    for (tokenizer, config, file) in [
        (&b"["[..], &b""[..], "tokenizer.json"),
        (br#"{"added_tokens": {}}"#, b"", "tokenizer.json"),
        (br#"{"added_tokens": [{"id": -1, "content": "x"}]}"#, b"", "tokenizer.json"),
        (br#"{"added_tokens": [{"id": 1}]}"#, b"", "tokenizer.json"),
        (long.as_bytes(), b"", "more than 65536 tokens"),
        (b"{}", b"[", "tokenizer_config.json"),
        (b"{}", br#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#, "tokenizer_config.json"),
        (b"{}", br#"{"eos_token": 1}"#, "tokenizer_config.json"),
    ] {
        let said = SavedTokens::read(Some(tokenizer), Some(config)).unwrap_err().to_string();
        assert!(said.contains(file), "{said}");
    }
    assert_eq!(SavedTokens::read(None, None).unwrap(), None);
    assert_eq!(SavedTokens::read(Some(b""), Some(b"")).unwrap(), None, "an empty file is none");
    let null = SavedTokens::read(Some(br#"{"added_tokens": null}"#), Some(br#"{"eos_token": null}"#)).unwrap();
    assert_eq!(null, Some(SavedTokens::default()));
}

/// transformers 4 wrote tokens to the config too, and only there where it had no tokenizer.json.
#[test]
fn tokens_that_the_config_describes_are_as_it_says() {
    let base = byte_level();
    let next = base.vocab_size();
    let described = json!({"content": "<a>", "lstrip": true, "special": false, "normalized": false});
    let config = json!({
        "added_tokens_decoder": { next.to_string(): described },
        "eos_token": {"content": "<a>", "__type": "AddedToken"},
    });
    let config = config.to_string().into_bytes();
    let file = json!({ "added_tokens": [token(next, "<a>")] }).to_string().into_bytes();
    for tokenizer in [None, Some(file.as_slice())] {
        let saved = SavedTokens::read(tokenizer, Some(&config)).unwrap().unwrap();
        assert_eq!(saved.eos(), Some("<a>"));
        let own = OwnTokens::beside(&base, saved).unwrap().unwrap();
        let tokenizer = base.with_tokens(&own).unwrap();
        assert_eq!(tokenizer.encode("h  <a>", false).unwrap(), [base.token_id("h").unwrap(), next as u32]);
        assert!(!tokenizer.is_special(next as u32) && tokenizer.max_bytes(1).is_none());
    }
}

#[test]
fn a_stop_string_may_name_an_adapters_special_token() {
    let base = byte_level();
    let next = base.vocab_size();
    let plain = json!({"id": next + 1, "content": "<over>", "special": false, "normalized": false});
    let own = OwnTokens::beside(&base, saved(json!([token(next, "<end>"), plain]))).unwrap().unwrap();
    let tokenizer = Arc::new(base.with_tokens(&own).unwrap());
    assert_eq!(tokenizer.special_text(next as u32), Some("<end>"));
    for (stop, text) in [("<end>", "hello"), ("lo<end>", "hel"), ("<over>", "hello"), ("x", "hello<over>!")] {
        let mut choice = ChoiceText::new(Arc::clone(&tokenizer), &[], &[stop.to_owned()], 0);
        let mut out = String::new();
        for id in tokenizer.encode("hello<end><over>!", false).unwrap() {
            let delta = choice.push(id).unwrap();
            out += &delta.text;
            if delta.stop.is_some() {
                break;
            }
        }
        out += &choice.finish().unwrap().text;
        assert_eq!(out, text, "{stop}");
    }
    let choice = ChoiceText::new(tokenizer, &[], &[], 0);
    assert_eq!(choice.token_text(next as u32).unwrap(), "<end>");
}

proptest! {
    /// Beside tokens that do not occur, every text is what it is to the base.
    #[test]
    fn texts_without_own_tokens_are_the_bases(text in "[ -~éß日\n]{0,40}|<s>[a-z ]{0,8}</s>") {
        for base in [byte_level(), sentencepiece(), metaspace(), opaque()] {
            let tokens = json!([token(base.vocab_size(), "\u{e000}"), token(base.vocab_size() + 1, "\u{e001}x")]);
            let own = OwnTokens::beside(&base, saved(tokens)).unwrap().unwrap();
            let with_own = Arc::new(base.with_tokens(&own).unwrap());
            for add_special in [false, true] {
                let ids = base.encode(&text, add_special).unwrap();
                prop_assert_eq!(with_own.encode(&text, add_special).unwrap(), ids.clone());
                for skip_special in [false, true] {
                    let read = base.decode(&ids, skip_special).unwrap();
                    prop_assert_eq!(with_own.decode(&ids, skip_special).unwrap(), read);
                }
            }
        }
    }

    #[test]
    fn any_ids_with_own_tokens_stream_to_what_they_decode_to(
        seeds in prop::collection::vec(any::<u32>(), 0..24), skip_special: bool,
    ) {
        for base in [byte_level(), sentencepiece(), metaspace(), opaque()] {
            let next = base.vocab_size();
            let plain = |id: usize, content: &str| json!({"id": id, "content": content, "special": false});
            let contents = [(next + 1, " x"), (next + 2, "日 本"), (next + 3, "▁<0x41>")];
            let contents = contents.map(|(id, content)| plain(id, content)).into_iter();
            let tokens = Value::Array([token(next, "<a>")].into_iter().chain(contents).collect());
            let own = OwnTokens::beside(&base, saved(tokens)).unwrap().unwrap();
            let tokenizer = Arc::new(base.with_tokens(&own).unwrap());
            let ids: Vec<u32> = seeds.iter().map(|seed| match seed % 3 {
                0 => next as u32 + seed / 3 % 5,
                _ => seed / 3 % next as u32,
            }).collect();
            let whole = tokenizer.decode(&ids, skip_special).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids, skip_special), whole);
        }
    }
}
