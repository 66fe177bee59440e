//! The tokens of a tokenizer that was saved with an adapter, as its files say: `added_tokens` of `tokenizer.json`, and
//! `added_tokens_decoder` and `eos_token` of `tokenizer_config.json`. The rest of them is the base's, or nobody's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;

use super::own_tokens_error::{OwnTokensError, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::files::{self, MAX_SETTINGS_BYTES, MAX_TOKENIZER_BYTES};

/// Most entries of a file that are read; Gemma 3 has 6,414.
const MAX_ENTRIES: usize = 1 << 16;

/// Added tokens by their ids, whoever has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedTokens {
    /// In the order of their ids. Two may claim one id: then they are of different files.
    pub(super) added: Vec<(u32, AddedToken)>,
    /// The token that ends an answer.
    pub(super) eos: Option<String>,
}

/// What is read of `tokenizer.json`, and what is kept of one.
#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Entries,
    /// Not transformers', which has it in the other file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eos_token: Option<String>,
}

/// What is read of `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, Described>,
    #[serde(default)]
    eos_token: Option<Named>,
}

/// As transformers 4 writes a token that has a name, and as 5 does.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Object { content: String },
    Text(String),
}

#[derive(Serialize, Deserialize)]
struct Entry {
    id: u32,
    #[serde(flatten)]
    token: Described,
}

#[derive(Serialize, Deserialize)]
struct Described {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// As the library has it where the file does not say.
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl From<Described> for AddedToken {
    fn from(described: Described) -> Self {
        let Described { content, single_word, lstrip, rstrip, normalized, special } = described;
        let token = Self::from(content, special).single_word(single_word).lstrip(lstrip).rstrip(rstrip);
        match normalized {
            Some(normalized) => token.normalized(normalized),
            None => token,
        }
    }
}

impl From<AddedToken> for Described {
    fn from(token: AddedToken) -> Self {
        let AddedToken { content, single_word, lstrip, rstrip, normalized, special } = token;
        Self { content, single_word, lstrip, rstrip, normalized: Some(normalized), special }
    }
}

/// So many at most.
#[derive(Default, Serialize)]
#[serde(transparent)]
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens")
            }

            fn visit_unit<E>(self) -> Result<Entries, E> {
                Ok(Entries::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Entries, A::Error> {
                let mut read = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if read.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format_args!("more than {MAX_ENTRIES} tokens")));
                    }
                    read.push(entry);
                }
                Ok(Entries(read))
            }
        }

        deserializer.deserialize_any(Bounded)
    }
}

impl SavedTokens {
    /// What the files of an adapter's tokenizer say; `None` where there is neither. An empty file is none.
    ///
    /// # Errors
    /// [`OwnTokensError::File`].
    pub fn read(tokenizer: Option<&[u8]>, config: Option<&[u8]>) -> Result<Option<Self>, OwnTokensError> {
        let File { added_tokens, eos_token } = read(TOKENIZER_FILE, tokenizer)?.unwrap_or_default();
        let Config { added_tokens_decoder, eos_token: named } =
            read(TOKENIZER_CONFIG_FILE, config)?.unwrap_or_default();
        let mut added: BTreeMap<(u32, String), AddedToken> = BTreeMap::new();
        for Entry { id, token } in added_tokens.0 {
            match added.entry((id, token.content.clone())) {
                Slot::Vacant(new) => drop(new.insert(token.into())),
                Slot::Occupied(_) => return Err(OwnTokensError::Repeated { token: token.content }),
            }
        }
        // Where both describe a token the config goes first, as it does for transformers.
        added.extend(added_tokens_decoder.into_iter().map(|(id, token)| ((id, token.content.clone()), token.into())));
        let eos = named.map(|named| match named {
            Named::Object { content } | Named::Text(content) => content,
        });
        let there = tokenizer.is_some_and(|file| !file.is_empty()) || config.is_some_and(|file| !file.is_empty());
        let added = added.into_iter().map(|((id, _), token)| (id, token)).collect();
        Ok(there.then_some(Self { added, eos: eos.or(eos_token) }))
    }

    /// The same of a folder.
    ///
    /// # Errors
    /// [`OwnTokensError::File`].
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, OwnTokensError> {
        let bytes = |name: &'static str, max| {
            let failed = |error: std::io::Error| OwnTokensError::File { file: name, reason: error.to_string() };
            files::read_if_there(&dir.join(name), max).map_err(failed)
        };
        let tokenizer = bytes(TOKENIZER_FILE, MAX_TOKENIZER_BYTES)?;
        let config = bytes(TOKENIZER_CONFIG_FILE, MAX_SETTINGS_BYTES)?;
        Self::read(tokenizer.as_deref(), config.as_deref())
    }

    /// No token was added, by whomever.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
    }

    /// Text of the token that ends an answer, where the tokenizer names one.
    #[must_use]
    pub fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// A `tokenizer.json` that says this and no more: the same tokens are the same bytes.
    ///
    /// # Errors
    /// [`OwnTokensError::File`], which the writer of JSON never gives for this.
    pub fn to_file(&self) -> Result<Vec<u8>, OwnTokensError> {
        let entries = self.added.iter().map(|(id, token)| Entry { id: *id, token: token.clone().into() });
        let file = File { added_tokens: Entries(entries.collect()), eos_token: self.eos.clone() };
        serde_json::to_vec(&file)
            .map_err(|error| OwnTokensError::File { file: TOKENIZER_FILE, reason: error.to_string() })
    }
}

fn read<T: for<'de> Deserialize<'de>>(file: &'static str, bytes: Option<&[u8]>) -> Result<Option<T>, OwnTokensError> {
    let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
    let failed = |error: serde_json::Error| OwnTokensError::File { file, reason: error.to_string() };
    serde_json::from_slice(bytes).map(Some).map_err(failed)
}
