//! Small real tokenizers for tests.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use super::error::TokenizerError;
use super::settings::TokenizerSettings;
use super::tokenizer::Tokenizer;

/// The settings of a folder, which may have a `config.json`.
pub(super) fn settings_in(dir: &Path) -> Result<TokenizerSettings, TokenizerError> {
    let config = std::fs::read(dir.join("config.json")).unwrap_or_else(|_| b"{}".to_vec());
    TokenizerSettings::from_dir(dir, &serde_json::from_slice(&config).unwrap())
}

fn shared(cell: &'static OnceLock<Arc<Tokenizer>>, json: impl FnOnce() -> Value) -> Arc<Tokenizer> {
    cell.get_or_init(|| {
        let bytes = serde_json::to_vec(&json()).unwrap();
        Arc::new(Tokenizer::from_bytes(&bytes).unwrap())
    })
    .clone()
}

fn vocabulary(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect()
}

fn added(vocabulary: &Map<String, Value>) -> Value {
    let first = vocabulary.len();
    let token = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    json!([token(first, "<tool call>", false), token(first + 1, "<s>", true), token(first + 2, "</s>", true)])
}

fn with_bos(vocabulary: &Map<String, Value>) -> Value {
    let id = vocabulary.len() + 1;
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}}})
}

/// GPT-2 style: 256 byte tokens and a few merges.
pub(super) fn byte_level_json() -> Value {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let letters = (0..256).map(|byte| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap().to_string()
    });
    let merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "w"], ["o", "r"], ["Ã", "©"]];
    let tokens: Vec<String> = letters.chain(merges.iter().map(|pair| pair.concat())).collect();
    let vocab = vocabulary(tokens);
    json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added(&vocab), "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": with_bos(&vocab),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}})
}

/// Llama 2 style: byte fallback, the meta space as a normalizer.
fn sentencepiece_json() -> Value {
    let merges =
        [["l", "l"], ["h", "e"], ["he", "ll"], ["▁", "w"], ["▁w", "or"], ["o", "r"], ["▁", "hell"], ["▁hell", "o"]];
    let tokens: Vec<String> = ["<unk>".to_owned()]
        .into_iter()
        .chain((0..256).map(|byte| format!("<0x{byte:02X}>")))
        .chain("▁abcdefghijklmnopqrstuvwxyz\u{fffd}é".chars().map(String::from))
        .chain(merges.iter().map(|pair| pair.concat()))
        .collect();
    let vocab = vocabulary(tokens);
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added(&vocab),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": with_bos(&vocab),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges}})
}

/// T5 style: the meta space in the decoder.
fn metaspace_json() -> Value {
    let mut json = sentencepiece_json();
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] = metaspace.clone();
    json["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]});
    json
}

/// Byte-level with a second decoder behind it.
fn opaque_json() -> Value {
    let mut json = byte_level_json();
    json["decoder"] = json!({"type": "Sequence", "decoders": [json["decoder"], {"type": "Fuse"}]});
    json
}

pub(crate) fn byte_level() -> Arc<Tokenizer> {
    static CELL: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    shared(&CELL, byte_level_json)
}

pub(super) fn sentencepiece() -> Arc<Tokenizer> {
    static CELL: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    shared(&CELL, sentencepiece_json)
}

pub(super) fn metaspace() -> Arc<Tokenizer> {
    static CELL: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    shared(&CELL, metaspace_json)
}

pub(super) fn opaque() -> Arc<Tokenizer> {
    static CELL: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    shared(&CELL, opaque_json)
}
