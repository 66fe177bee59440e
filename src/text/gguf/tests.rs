//! Vocabularies that llama.cpp's own package wrote, against the ids that transformers gives (`tools/gguf/vocabularies.py`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;
use crate::files::gguf::GgufHeader;
use crate::files::gguf::testing::{Value as Stored, write};

#[derive(Deserialize)]
struct Case(String, Vec<u32>, Vec<u32>, String);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn metadata(path: &Path) -> GgufMetadata {
    let file = File::open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    GgufHeader::read(&file, bytes).unwrap().metadata
}

fn read(metadata: &GgufMetadata) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(metadata, &TokenizerSettings::from_gguf(metadata)?)
}

#[test]
fn ids_and_texts_are_those_of_transformers_for_every_way_to_split_a_text() {
    let cases = fs::read(fixtures().join("vocabularies.json")).unwrap();
    let cases: std::collections::BTreeMap<String, Vec<Case>> = serde_json::from_slice(&cases).unwrap();
    assert_eq!(cases.len(), 6);
    for (name, cases) in cases {
        let tokenizer = read(&metadata(&fixtures().join(format!("{name}.vocabulary.gguf")))).unwrap();
        for Case(text, plain, whole, decoded) in cases {
            assert_eq!(tokenizer.encode(&text, false).unwrap(), plain, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(&text, true).unwrap(), whole, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&plain, false).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn names_kinds_and_templates_are_the_files() {
    let metadata = metadata(&fixtures().join("llama_bias.gguf"));
    let settings = TokenizerSettings::from_gguf(&metadata).unwrap();
    let named: Vec<_> = settings.variables().collect();
    assert_eq!(named, [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]);
    assert!(settings.chat_template().unwrap().contains("<|user|>"));
    let tokenizer = Tokenizer::from_gguf(&metadata, &settings).unwrap();
    assert_eq!(tokenizer.special_ids(), [0, 1, 2, 3]);
    assert!(tokenizer.token_id("[PAD99]").is_none(), "what fills the embedding up is no token");
    assert_eq!(tokenizer.encode("hello", false).unwrap(), [tokenizer.token_id("▁hello").unwrap()]);
}

/// A file of three byte tokens and an end, with changes.
fn changed(change: impl FnOnce(&mut Vec<(&'static str, Stored)>)) -> String {
    let texts = |texts: &[&str]| Stored::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    let mut values = vec![
        ("tokenizer.ggml.model", Stored::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Stored::Text("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "<e>"])),
        ("tokenizer.ggml.token_type", Stored::I32s(vec![1, 1, 1, 3])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        ("tokenizer.ggml.eos_token_id", Stored::U32(3)),
    ];
    change(&mut values);
    let file = tempfile::NamedTempFile::new().unwrap();
    write(file.path(), &values, &[]);
    match read(&metadata(file.path())) {
        Ok(_) => "served".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn set(values: &mut Vec<(&'static str, Stored)>, key: &'static str, value: Stored) {
    values.retain(|(name, _)| *name != key);
    values.push((key, value));
}

#[test]
fn what_is_not_known_or_does_not_fit_is_refused_by_its_key() {
    let text = |text: &str| Stored::Text(text.to_owned());
    let texts = |texts: &[&str]| Stored::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
    assert_eq!(changed(|_| ()), "served");
    let cases = [
        ("tokenizer.ggml.model", text("t5"), "\"t5\"; gpt2 and llama are served"),
        ("tokenizer.ggml.model", text("llama"), "it has no `tokenizer.ggml.scores`"),
        ("tokenizer.ggml.pre", text("falcon"), "\"falcon\"; served: gpt-2, llama-bpe"),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "a", "<e>"]), "tokens 0 and 2 are both \"a\""),
        ("tokenizer.ggml.tokens", text("a"), "expected a list of texts"),
        ("tokenizer.ggml.token_type", Stored::I32s(vec![1, 1]), "has 2 entries, there are 4 tokens"),
        ("tokenizer.ggml.token_type", Stored::I32s(vec![1, 1, 9, 3]), "token 2 is of the unknown kind 9"),
        ("tokenizer.ggml.merges", texts(&["ab"]), "merge 0 is \"ab\""),
        ("tokenizer.ggml.merges", texts(&["a "]), "merge 0 is \"a \""),
        ("tokenizer.ggml.merges", texts(&["a c"]), "merge 0 is \"a c\""),
        ("tokenizer.ggml.merges", texts(&["ab ab"]), "not two tokens that make a third"),
        ("tokenizer.ggml.eos_token_id", Stored::U32(4), "`tokenizer.ggml.eos_token_id` is 4, there are 4 tokens"),
        ("tokenizer.ggml.add_bos_token", Stored::Bool(true), "it has no `tokenizer.ggml.bos_token_id`"),
        ("tokenizer.ggml.add_space_prefix", Stored::Bool(true), "is true, which is not served for gpt2"),
        ("tokenizer.ggml.remove_extra_whitespaces", Stored::Bool(true), "is true, which is not served"),
        ("tokenizer.chat_template", Stored::U32(1), "`tokenizer.chat_template` is 1, expected a text"),
    ];
    for (key, value, words) in cases {
        let said = changed(|values| set(values, key, value));
        assert!(said.contains(words), "{key}: {said}");
    }
    let said = changed(|values| values.retain(|(key, _)| *key != "tokenizer.ggml.pre"));
    assert!(said.contains("\"none\""), "{said}");
}

#[test]
fn a_score_that_is_no_number_orders_merges_all_the_same() {
    let said = changed(|values| {
        set(values, "tokenizer.ggml.model", Stored::Text("llama".to_owned()));
        set(values, "tokenizer.ggml.add_bos_token", Stored::Bool(false));
        set(values, "tokenizer.ggml.scores", Stored::F32s(vec![f32::NAN, f32::NEG_INFINITY, -0.0, 0.0]));
    });
    assert_eq!(said, "served");
}
