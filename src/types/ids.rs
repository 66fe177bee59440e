//! Identifiers. Each is a newtype, so that an adapter's name can never be passed where its version is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a client writes to choose an adapter: an alias of an [`AdapterVersion`].
///
/// One part, or two with a `/` between them as in `org/name`, each of the form
/// `[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?`. `Foo` and `foo` are two names, and names are sorted by their bytes.
/// A name never becomes part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterName(Arc<str>);

/// A name outside the allowed form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("adapter name {name:?} is not {}", AdapterName::RULE)]
pub struct InvalidAdapterName {
    /// The offending text, shortened to [`AdapterName::MAX_LEN`] characters.
    pub name: String,
}

impl AdapterName {
    /// Most bytes a name may have: two parts and the `/` between them.
    pub const MAX_LEN: usize = 2 * Self::MAX_PART_LEN + 1;

    /// Most bytes of one part.
    const MAX_PART_LEN: usize = 64;

    /// The rule in words, as it follows "expected" or "is not".
    pub const RULE: &str = "a name of the form [A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?, or two of them with a / \
                            between, as in org/name";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_part(text: &str) -> bool {
        let edge = |byte: &u8| byte.is_ascii_alphanumeric();
        let inner = |byte: &u8| edge(byte) || matches!(byte, b'.' | b'_' | b'-');
        let bytes = text.as_bytes();
        bytes.len() <= Self::MAX_PART_LEN
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(inner)
    }
}

impl FromStr for AdapterName {
    type Err = InvalidAdapterName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A second `/` is left in the last part, which may have none.
        let valid = match text.split_once('/') {
            Some((organization, name)) => Self::is_part(organization) && Self::is_part(name),
            None => Self::is_part(text),
        };
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidAdapterName { name: text.chars().take(Self::MAX_LEN).collect() })
        }
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The content digest of an adapter: sha256 over the sorted (path, size, sha256) of its config and weight files.
///
/// It is immutable and keys residency, leases and the KV prefix cache; two uploads of the same bytes are one version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterVersion(pub [u8; 32]);

/// Text that is not 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an adapter version is 64 lower-case hexadecimal digits")]
pub struct InvalidAdapterVersion;

/// Gives a type of 32 bytes its text: 64 lower-case hexadecimal digits, one spelling for one digest, since people and
/// scripts compare digests as texts.
macro_rules! digest_text {
    ($name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::types::InvalidAdapterVersion;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut digest = [0u8; 32];
                match hex::decode_to_slice(text, &mut digest) {
                    Ok(()) if !text.bytes().any(|byte| byte.is_ascii_uppercase()) => Ok(Self(digest)),
                    Ok(()) | Err(_) => Err($crate::types::InvalidAdapterVersion),
                }
            }
        }
    };
}
pub(crate) use digest_text;

digest_text!(AdapterVersion);

/// The content digest of a base model: its tensors' names, types, shapes and every byte of them. Two fine-tunes of one
/// architecture differ in it. How a checkpoint is cut into files, and its config.json, do not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BaseDigest(pub [u8; 32]);

impl BaseDigest {
    /// Enough of it to tell bases apart, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

digest_text!(BaseDigest);

/// A place for one adapter on the device. `Option<AdapterSlot>` everywhere: `None` is the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterSlot(pub u32);

impl AdapterSlot {
    /// The slot as an index into per-slot tables.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One block of the paged KV cache: `block_size` consecutive token places in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The block as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One admitted request, unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence the scheduler knows: a choice of a request, or an adapter's prompt embeddings being prefilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_allow_list() {
        let longest = "x".repeat(64);
        let two_longest = format!("{longest}/{longest}");
        for good in
            ["a", "0", "sql-v2", "a.b_c-d", "A", "Qwen2.5-SQL", "Org/Name", "a/b", "a..b", &longest, &two_longest]
        {
            let name = good.parse::<AdapterName>().unwrap();
            assert_eq!((name.as_str(), name.to_string().as_str()), (good, good));
        }
        let (long, long_part) = ("x".repeat(65), format!("a/{}", "x".repeat(65)));
        let bad = [
            "", "-a", "a-", ".", "..", "../x", "/abs", "a b", "a\0", "é", "а", "a/b/c", "a//b", "a/", "/", "a/..",
            "../a", "a/-b", "a-/b", "a ", " a", "a\n", "a\\b", "a/b ", "ﬁ", &long, &long_part,
        ];
        for bad in bad {
            let error = bad.parse::<AdapterName>().unwrap_err();
            assert!(error.to_string().contains("[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"), "{error}");
        }
    }

    #[test]
    fn names_tell_cases_apart_and_are_sorted_by_bytes() {
        let name = |text: &str| text.parse::<AdapterName>().unwrap();
        assert_ne!(name("Foo"), name("foo"));
        let mut names = ["foo", "a/b", "Foo", "a", "a.b", "A"].map(name);
        names.sort();
        assert_eq!(names.map(|name| name.to_string()), ["A", "Foo", "a", "a.b", "a/b", "foo"]);
    }

    #[test]
    fn a_version_prints_and_parses_to_itself() {
        let version = AdapterVersion(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(version.to_string().parse(), Ok(version));
        assert!("AB".repeat(32).parse::<AdapterVersion>().is_err());
        assert!("0".repeat(63).parse::<AdapterVersion>().is_err());
    }
}
