//! Log-probabilities in the three shapes that clients know: that of chats, that of completions, and vLLM's of prompts.

use serde_json::{Map, Value, json};

use crate::admission::{OutputLogprob, OutputToken, TopToken};

/// JSON has no infinities; vLLM's stand-in for −∞.
const LEAST: f32 = -9999.0;

/// A token with what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) text: String,
    /// `None`: nothing stands before it.
    pub(super) logprob: Option<f32>,
    /// The most likely tokens, best first.
    pub(super) top: Vec<TopToken>,
    /// Characters of the choice's text before it.
    pub(super) offset: usize,
}

impl Entry {
    /// With so many alternatives at most.
    pub(super) fn new(token: &OutputToken, top: u32, offset: usize) -> Option<Self> {
        let OutputLogprob { logprob, text, top: all } = token.logprob.as_ref()?;
        let top = all.iter().take(top as usize).cloned().collect();
        Some(Self { id: token.id, text: text.clone(), logprob: Some(*logprob), top, offset })
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// How tokens are written: their text, or `token_id:7`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spelling {
    pub(super) as_ids: bool,
}

impl Spelling {
    fn of(self, id: u32, text: &str) -> String {
        if self.as_ids { format!("token_id:{id}") } else { text.to_owned() }
    }
}

/// `{"content": […]}`.
pub(super) fn of_chat(entries: &[Entry], spelling: Spelling) -> Value {
    let token = |id: u32, text: &str, logprob: f32| {
        // A part of a character has bytes of its own, which a text does not tell.
        let bytes = (!text.contains('\u{fffd}')).then(|| text.as_bytes().to_vec());
        let mut token = Map::new();
        token.insert("token".to_owned(), spelling.of(id, text).into());
        token.insert("logprob".to_owned(), finite(logprob).into());
        token.insert("bytes".to_owned(), bytes.map_or(Value::Null, Value::from));
        token
    };
    let one = |entry: &Entry| {
        let mut value = token(entry.id, &entry.text, entry.logprob.unwrap_or(LEAST));
        let top = entry.top.iter().map(|top| Value::Object(token(top.id, &top.text, top.logprob)));
        value.insert("top_logprobs".to_owned(), top.collect());
        Value::Object(value)
    };
    json!({ "content": entries.iter().map(one).collect::<Vec<_>>() })
}

/// Four lists of the same length.
pub(super) fn of_completion(entries: &[Entry], spelling: Spelling) -> Value {
    let top = |entry: &Entry| {
        let logprob = entry.logprob?;
        let mut top = Map::new();
        for TopToken { id, logprob, text } in &entry.top {
            // Two tokens may have one text; the likelier comes first.
            top.entry(spelling.of(*id, text)).or_insert_with(|| finite(*logprob).into());
        }
        top.entry(spelling.of(entry.id, &entry.text)).or_insert_with(|| finite(logprob).into());
        Some(top)
    };
    json!({
        "tokens": entries.iter().map(|entry| spelling.of(entry.id, &entry.text)).collect::<Vec<_>>(),
        "token_logprobs": entries.iter().map(|entry| entry.logprob.map(finite)).collect::<Vec<_>>(),
        "top_logprobs": entries.iter().map(top).collect::<Vec<_>>(),
        "text_offset": entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
    })
}

/// vLLM's `prompt_logprobs`: nothing of the first token, of each other one what it and the most likely ones are worth, by id.
pub(super) fn of_prompt(tokens: &[OutputToken], top: u32) -> Value {
    let one = |token: &OutputToken| {
        let logprob = token.logprob.as_ref()?;
        let mut by_id = Map::new();
        let value = |logprob: f32, rank: Option<usize>, text: &str| json!({ "logprob": finite(logprob), "rank": rank, "decoded_token": text });
        for (rank, other) in logprob.top.iter().take(top as usize).enumerate() {
            by_id.insert(other.id.to_string(), value(other.logprob, Some(rank + 1), &other.text));
        }
        // Where it is none of the most likely, how many are likelier is not known.
        by_id.entry(token.id.to_string()).or_insert_with(|| value(logprob.logprob, None, &logprob.text));
        Some(by_id)
    };
    let mut all = vec![None];
    all.extend(tokens.iter().map(one));
    json!(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: Spelling = Spelling { as_ids: false };

    fn top(id: u32, logprob: f32, text: &str) -> TopToken {
        TopToken { id, logprob, text: text.to_owned() }
    }

    fn entry(id: u32, text: &str, logprob: Option<f32>, top: Vec<TopToken>) -> Entry {
        Entry { id, text: text.to_owned(), logprob, top, offset: 0 }
    }

    #[test]
    fn a_chat_has_bytes_where_a_token_is_whole_characters() {
        let entries = [entry(7, "é", Some(-0.5), vec![top(8, -0.25, "\u{fffd}")])];
        let expected = json!({"content": [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
            {"token": "\u{fffd}", "logprob": -0.25, "bytes": null}]}]});
        assert_eq!(of_chat(&entries, TEXTS), expected);
    }

    #[test]
    fn a_completion_has_the_chosen_token_among_the_most_likely() {
        let entries = [
            entry(1, "a", None, Vec::new()),
            entry(2, "b", Some(f32::NEG_INFINITY), vec![top(3, -0.5, "c"), top(4, -1.5, "c")]),
        ];
        let expected = json!({"tokens": ["a", "b"], "token_logprobs": [null, -9999.0],
            "top_logprobs": [null, {"c": -0.5, "b": -9999.0}], "text_offset": [0, 0]});
        assert_eq!(of_completion(&entries, TEXTS), expected);
        let by_id = of_completion(&entries[1..], Spelling { as_ids: true });
        let likely = json!({"token_id:3": -0.5, "token_id:4": -1.5, "token_id:2": -9999.0});
        assert_eq!((&by_id["tokens"], &by_id["top_logprobs"][0]), (&json!(["token_id:2"]), &likely));
    }

    #[test]
    fn of_a_prompt_the_first_token_has_none_and_the_others_go_by_id() {
        let logprob =
            OutputLogprob { logprob: -2.0, text: "b".to_owned(), top: vec![top(3, -0.5, "c"), top(2, -2.0, "b")] };
        let tokens = [OutputToken { id: 2, logprob: Some(logprob) }];
        let best = json!({"logprob": -0.5, "rank": 1, "decoded_token": "c"});
        let unranked = json!({"logprob": -2.0, "rank": null, "decoded_token": "b"});
        assert_eq!(of_prompt(&tokens, 1), json!([null, {"3": best, "2": unranked}]));
        assert_eq!(of_prompt(&tokens, 2)[1]["2"]["rank"], 2);
    }
}
