//! Which pieces are put together, and in which order.

use std::collections::HashMap;

use tokenizers::models::bpe::Vocab;

use super::error::GgufTokenizerError;
use super::vocabulary::Vocabulary;
use crate::files::gguf::GgufMetadata;

const MERGES: &str = "tokenizer.ggml.merges";
/// Most characters of a piece that others are put together to. sentencepiece makes none of more than 16 unless it is
/// told to; what is longer is looked for in a text as it is, or not at all.
const MAX_MERGED_CHARS: usize = 512;

/// Two pieces each, as the file has them. Both of them, and what they make, are in the vocabulary: the library copies them
/// into room for its longest token.
pub(super) fn written(metadata: &GgufMetadata, ids: &Vocab) -> Result<Vec<(String, String)>, GgufTokenizerError> {
    let merges = metadata.texts(MERGES)?.ok_or_else(|| metadata.wrong(MERGES, "a list of texts"))?;
    let pair = |(index, merge): (usize, &str)| {
        // The first piece may be a space itself, but not empty.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let space = merge[first..].find(' ').map(|at| first + at);
        let pieces = space.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        let makes_one = |(first, second): &(String, String)| {
            [first, second, &format!("{first}{second}")].into_iter().all(|piece| ids.contains_key(piece))
        };
        pieces.filter(makes_one).ok_or_else(|| {
            let found = merge.chars().take(64).collect();
            GgufTokenizerError::Merge { index, found }
        })
    };
    merges.into_iter().enumerate().map(pair).collect()
}

/// A pair of pieces that make a third.
struct Merge<'a> {
    first: &'a str,
    second: &'a str,
    /// Of the third.
    score: f64,
    /// Characters of the two.
    chars: (usize, usize),
}

/// Every way to put a piece together from two others, the best score first: `generate_merges` of transformers.
pub(super) fn of_scores(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<(String, String)> {
    let ids: HashMap<&str, u32> = vocabulary.of_model().map(|(id, token)| (token, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in vocabulary.of_model() {
        // Adding 0 makes a negative 0 the other one: they are equal in Python.
        let score = scores[id as usize] + 0.0;
        let count = token.chars().count();
        if count > MAX_MERGED_CHARS {
            continue;
        }
        let cuts = token.char_indices().enumerate().skip(1);
        let mut own: Vec<_> = cuts
            .filter_map(|(chars, (at, _))| {
                let (first, second) = token.split_at(at);
                let chars = (chars, count - chars);
                Some(((ids.get(first)?, ids.get(second)?), Merge { first, second, score, chars }))
            })
            .collect();
        own.sort_by_key(|(pair, _)| *pair);
        merges.extend(own.into_iter().map(|(_, merge)| merge));
    }
    merges.sort_by(|a: &Merge<'_>, b| b.score.total_cmp(&a.score).then(b.chars.cmp(&a.chars)));
    merges.into_iter().map(|merge| (merge.first.to_owned(), merge.second.to_owned())).collect()
}
