//! The file that binds a name to a version, and keeps what that compiled to and for which base. It carries a checksum
//! of its own; its file name is the digest of the adapter's name, so that no client's text is ever part of a path.
//!
//! Format 1 knew neither base nor facts. It is read for ever, and rewritten as format 2 when something changes. Format 3
//! is for adapters with a chat template of their own, format 4 for those with tokens of their own: a version of the server
//! that knows only earlier ones takes such an adapter for what it is, one of a later version, leaves it alone and serves the
//! others.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::files::{CONFIG_FILE, OPTIONAL_FILES, StoredFile, WEIGHTS_FILE, version_of};
use super::super::stored::{Compiled, StoredAdapter};
use super::seal::{self, SealError};
use crate::types::{AdapterFacts, AdapterName, Sha256Digest};

/// The highest that this version reads.
pub(super) const FORMAT: u32 = WITH_OWN_TOKENS;
const PLAIN: u32 = 2;
const WITH_CHAT_TEMPLATE: u32 = 3;
const WITH_OWN_TOKENS: u32 = 4;
/// A manifest of four files is far below this.
pub(super) const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Ends the name of a manifest.
pub(super) const EXTENSION: &str = ".json";
/// Ends the name of a manifest that is being written.
pub(super) const TEMPORARY: &str = ".tmp";
const KIND: &str = "manifest";

#[derive(Serialize, Deserialize)]
struct Body {
    name: String,
    version: String,
    files: Vec<File>,
    created_ms: u64,
    pinned: bool,
    /// Not in format 1, nor before the version was compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compiled: Option<CompiledBody>,
}

#[derive(Serialize, Deserialize)]
struct File {
    path: String,
    size: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct CompiledBody {
    base: String,
    /// Bytes of one number of A and B on the device that the facts count with.
    weight_bytes: usize,
    facts: AdapterFacts,
}

/// Why a manifest is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("format {0} is none that was ever written")]
    UnknownFormat(u32),
    #[error("format {0} is of a later version of the server")]
    NewerFormat(u32),
    #[error("{0} is not valid")]
    Field(&'static str),
    #[error("the file's name is not the digest of the adapter's name")]
    Misplaced,
}

/// The file name of a name's manifest.
pub(super) fn file_name(name: &AdapterName) -> String {
    format!("{}{EXTENSION}", Sha256Digest::of(name.as_str().as_bytes()))
}

/// Has it the form of a manifest's file name?
pub(super) fn is_file_name(text: &str) -> bool {
    text.strip_suffix(EXTENSION).is_some_and(|digest| digest.parse::<Sha256Digest>().is_ok())
}

pub(super) fn encode(adapter: &StoredAdapter) -> serde_json::Result<Vec<u8>> {
    let file = |file: &StoredFile| File { path: file.path.clone(), size: file.size, sha256: file.sha256.to_string() };
    let body = Body {
        name: adapter.name.as_str().to_owned(),
        version: adapter.version.to_string(),
        files: adapter.files.iter().map(file).collect(),
        created_ms: adapter.created_ms,
        pinned: adapter.pinned,
        compiled: adapter.compiled.as_ref().map(compiled_body),
    };
    let format = match (adapter.own_tokens(), adapter.chat_template()) {
        (Some(_), _) => WITH_OWN_TOKENS,
        (None, Some(_)) => WITH_CHAT_TEMPLATE,
        (None, None) => PLAIN,
    };
    seal::seal(KIND, format, &body)
}

fn compiled_body(compiled: &Compiled) -> CompiledBody {
    let Compiled { base, weight_bytes, facts } = compiled;
    CompiledBody { base: base.to_string(), weight_bytes: *weight_bytes, facts: facts.as_ref().clone() }
}

pub(super) fn decode(bytes: &[u8], found_as: &str) -> Result<StoredAdapter, ManifestError> {
    let body = match seal::format_of(bytes)? {
        1 => first_format::body(bytes)?,
        format @ (PLAIN | WITH_CHAT_TEMPLATE | WITH_OWN_TOKENS) => match seal::open::<Body>(KIND, format, bytes) {
            // As it was written, and not in words that this version knows, such as those of a later kind of delta.
            Err(SealError::Body(_)) => return Err(ManifestError::NewerFormat(format)),
            opened => opened?,
        },
        0 => return Err(ManifestError::UnknownFormat(0)),
        newer => return Err(ManifestError::NewerFormat(newer)),
    };
    stored(body, found_as)
}

/// The binding in a manifest whose checksum fails, where its name still belongs to the file's name and its files to
/// its version: both are digests, so what they say is what was written. The rest of it may be wrong.
pub(super) fn salvage(bytes: &[u8], found_as: &str) -> Option<StoredAdapter> {
    let body = seal::open_damaged::<Body>(bytes)?;
    let found = stored(Body { compiled: None, ..body }, found_as).ok()?;
    Some(StoredAdapter { pinned: false, ..found })
}

fn stored(body: Body, found_as: &str) -> Result<StoredAdapter, ManifestError> {
    let Body { name, version, files, created_ms, pinned, compiled } = body;
    let name: AdapterName = name.parse().map_err(|_| ManifestError::Field("name"))?;
    if file_name(&name) != found_as {
        return Err(ManifestError::Misplaced);
    }
    let files = files
        .into_iter()
        .map(|File { path, size, sha256 }| Ok(StoredFile { path, size, sha256: sha256.parse()? }))
        .collect::<Result<Vec<_>, crate::types::InvalidAdapterVersion>>()
        .map_err(|_| ManifestError::Field("files.sha256"))?;
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    let optional = paths.strip_prefix(&[CONFIG_FILE, WEIGHTS_FILE]);
    // Sorted, so that a set of files has one list.
    if !optional
        .is_some_and(|paths| paths.is_sorted_by(|a, b| a < b) && paths.iter().all(|path| OPTIONAL_FILES.contains(path)))
    {
        return Err(ManifestError::Field("files.path"));
    }
    let version = version.parse().map_err(|_| ManifestError::Field("version"))?;
    if version_of(&files) != version {
        return Err(ManifestError::Field("version"));
    }
    let compiled = match compiled {
        Some(CompiledBody { base, weight_bytes, facts }) => {
            let base = base.parse().map_err(|_| ManifestError::Field("compiled.base"))?;
            Some(Compiled { base, weight_bytes, facts: Arc::new(facts) })
        }
        None => None,
    };
    Ok(StoredAdapter { name, version, files, created_ms, pinned, compiled })
}

/// As the first version wrote it: the checksum is over the body as that version's fields serialize.
mod first_format {
    use super::{Body, File, SealError};
    use crate::types::Sha256Digest;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Manifest {
        pub(super) format: u32,
        pub(super) body: FirstBody,
        pub(super) checksum: String,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct FirstBody {
        pub(super) name: String,
        pub(super) version: String,
        pub(super) files: Vec<File>,
        pub(super) created_ms: u64,
        pub(super) pinned: bool,
    }

    pub(super) fn checksum(body: &FirstBody) -> serde_json::Result<String> {
        let mut bytes = b"polydelta manifest 1\0".to_vec();
        bytes.extend_from_slice(&serde_json::to_vec(body)?);
        Ok(Sha256Digest::of(&bytes).to_string())
    }

    pub(super) fn body(bytes: &[u8]) -> Result<Body, SealError> {
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        if checksum(&manifest.body)? != manifest.checksum {
            return Err(SealError::Checksum);
        }
        let FirstBody { name, version, files, created_ms, pinned } = manifest.body;
        Ok(Body { name, version, files, created_ms, pinned, compiled: None })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::super::files::{CHAT_TEMPLATE_FILE, TOKENIZER_FILE};
    use super::*;
    use crate::types::{AdapterTask, BaseDigest, DeltaGroup, OpClass, VirtualTokens};

    pub(in super::super) fn adapter(name: &str) -> StoredAdapter {
        let file = |path: &str, fill| StoredFile { path: path.into(), size: 3, sha256: Sha256Digest([fill; 32]) };
        let files = vec![file(CONFIG_FILE, 1), file(WEIGHTS_FILE, 2)];
        let version = version_of(&files);
        let created_ms = 1_700_000_000_000;
        StoredAdapter { name: name.parse().unwrap(), version, files, created_ms, pinned: true, compiled: None }
    }

    /// With a chat template of its own.
    fn chatting(name: &str) -> StoredAdapter {
        let mut adapter = adapter(name);
        let sha256 = Sha256Digest([3; 32]);
        adapter.files.push(StoredFile { path: CHAT_TEMPLATE_FILE.into(), size: 5, sha256 });
        StoredAdapter { version: version_of(&adapter.files), ..adapter }
    }

    /// With tokens of its own.
    fn speaking(name: &str) -> StoredAdapter {
        let mut adapter = adapter(name);
        let sha256 = Sha256Digest([4; 32]);
        adapter.files.push(StoredFile { path: TOKENIZER_FILE.into(), size: 6, sha256 });
        StoredAdapter { version: version_of(&adapter.files), ..adapter }
    }

    fn compiled() -> Compiled {
        let facts = AdapterFacts {
            kind: "prefix tuning".into(),
            group: Some(DeltaGroup::Addition),
            task: AdapterTask::SequenceClassification { labels: 3 },
            min_rank: 4,
            max_rank: 8,
            ops: [(OpClass::LowRank, 14), (OpClass::Prefix, 1)].into(),
            targets: vec!["q".into(), "lm_head".into()],
            device_bytes: 1234,
            parameters: 617,
            virtual_tokens: Some(VirtualTokens { count: 16, saved_kv: true }),
            invocation_tokens: vec![5, 6],
            keeps_base_kv: true,
            base_layers: 3,
            vocab_size: Some(103),
            unknown_fields: vec!["later".into()],
        };
        Compiled { base: BaseDigest([7; 32]), weight_bytes: 2, facts: Arc::new(facts) }
    }

    /// What the first version of the server wrote for an adapter.
    pub(in super::super) fn first_version(adapter: &StoredAdapter) -> Vec<u8> {
        let file = |f: &StoredFile| File { path: f.path.clone(), size: f.size, sha256: f.sha256.to_string() };
        let body = first_format::FirstBody {
            name: adapter.name.to_string(),
            version: adapter.version.to_string(),
            files: adapter.files.iter().map(file).collect(),
            created_ms: adapter.created_ms,
            pinned: adapter.pinned,
        };
        let checksum = first_format::checksum(&body).unwrap();
        serde_json::to_vec(&first_format::Manifest { format: 1, body, checksum }).unwrap()
    }

    #[test]
    fn a_manifest_reads_back_as_written() {
        let plain = [None, Some(compiled())].map(|compiled| StoredAdapter { compiled, ..adapter("sql-v2") });
        let mut both = chatting("sql-v2");
        both.files.extend(speaking("sql-v2").files.pop());
        both.version = version_of(&both.files);
        for adapter in plain.into_iter().chain([chatting("sql-v2"), speaking("sql-v2"), both.clone()]) {
            assert_eq!(decode(&encode(&adapter).unwrap(), &file_name(&adapter.name)).unwrap(), adapter);
        }
        both.files.swap(2, 3);
        let refused = decode(&encode(&both).unwrap(), &file_name(&both.name));
        assert!(matches!(refused, Err(ManifestError::Field("files.path"))), "in another order");
    }

    /// The bytes are those of a store that the first version has written.
    #[test]
    fn a_manifest_of_the_first_format_is_read() {
        let stored = concat!(
            "{\"format\":1,\"body\":{\"name\":\"sql-v2\",\"version\":\"VERSION\",\"files\":[",
            "{\"path\":\"adapter_config.json\",\"size\":3,\"sha256\":\"ONES\"},",
            "{\"path\":\"adapter_model.safetensors\",\"size\":3,\"sha256\":\"TWOS\"}],",
            "\"created_ms\":1700000000000,\"pinned\":true},\"checksum\":\"CHECKSUM\"}"
        );
        let adapter = adapter("sql-v2");
        let first = String::from_utf8(first_version(&adapter)).unwrap();
        let checksum = first.rsplit('"').nth(1).unwrap().to_owned();
        let stored = stored
            .replace("VERSION", &adapter.version.to_string())
            .replace("ONES", &"01".repeat(32))
            .replace("TWOS", &"02".repeat(32))
            .replace("CHECKSUM", &checksum);
        assert_eq!(first, stored);
        assert_eq!(decode(stored.as_bytes(), &file_name(&adapter.name)).unwrap(), adapter);
    }

    #[test]
    fn a_manifest_under_another_name_is_refused() {
        let bytes = encode(&adapter("a")).unwrap();
        let result = decode(&bytes, &file_name(&"b".parse().unwrap()));
        assert!(matches!(result, Err(ManifestError::Misplaced)));
    }

    #[test]
    fn a_manifest_of_a_newer_format_is_refused_as_such_whatever_is_in_it() {
        let text = String::from_utf8(encode(&adapter("a")).unwrap()).unwrap();
        for newer in [text.replacen("\"format\":2", "\"format\":5", 1), r#"{"new":[],"format":5}"#.to_owned()] {
            assert!(matches!(decode(newer.as_bytes(), ""), Err(ManifestError::NewerFormat(5))));
        }
    }

    #[test]
    fn files_that_not_every_adapter_has_are_told_by_the_format_and_nothing_else_is() {
        let format = |adapter: &StoredAdapter| seal::format_of(&encode(adapter).unwrap()).unwrap();
        assert_eq!(
            (format(&adapter("a")), format(&chatting("a")), format(&speaking("a"))),
            (2, 3, 4),
            "an earlier server leaves the latter two alone"
        );
    }

    #[test]
    fn a_kind_of_delta_that_is_not_known_is_of_a_later_version_and_no_damage() {
        let adapter = StoredAdapter { compiled: Some(compiled()), ..adapter("a") };
        let text = String::from_utf8(encode(&adapter).unwrap()).unwrap().replace("Prefix", "Rotation");
        let body = text.strip_prefix("{\"format\":2,\"body\":").unwrap().rsplit_once(",\"checksum\"").unwrap().0;
        let later: serde_json::Value = serde_json::from_str(body).unwrap();
        let bytes = seal::seal(KIND, FORMAT, &later).unwrap();
        assert!(matches!(decode(&bytes, &file_name(&adapter.name)), Err(ManifestError::NewerFormat(FORMAT))));
    }

    #[test]
    fn fields_that_a_later_version_adds_are_skipped() {
        let adapter = StoredAdapter { compiled: Some(compiled()), ..adapter("a") };
        let text = String::from_utf8(encode(&adapter).unwrap()).unwrap();
        let body = text.strip_prefix("{\"format\":2,\"body\":{").unwrap().rsplit_once(",\"checksum\"").unwrap().0;
        let added: serde_json::Value = serde_json::from_str(&format!("{{\"later\":1,{body}")).unwrap();
        let bytes = seal::seal(KIND, FORMAT, &added).unwrap();
        assert_eq!(decode(&bytes, &file_name(&adapter.name)).unwrap(), adapter);
    }

    #[test]
    fn what_proves_itself_is_salvaged_and_nothing_else() {
        let adapter = StoredAdapter { compiled: Some(compiled()), ..adapter("a") };
        let text = String::from_utf8(encode(&adapter).unwrap()).unwrap();
        let flip = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
        let found = salvage(&flip("1700000000000", "1700000000001"), &file_name(&adapter.name)).unwrap();
        assert_eq!((found.version, found.pinned, found.compiled), (adapter.version, false, None));
        for bytes in [flip("\"a\"", "\"b\""), flip("0101", "0100"), flip("\"size\":3", "\"size\":4")] {
            assert!(salvage(&bytes, &file_name(&adapter.name)).is_none());
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_goes_unnoticed(byte in any::<prop::sample::Index>(), bit in 0u8..8) {
            let adapter = StoredAdapter { compiled: Some(compiled()), ..adapter("a") };
            for mut bytes in [encode(&adapter).unwrap(), encode(&chatting("a")).unwrap(), first_version(&adapter)] {
                let index = byte.index(bytes.len());
                bytes[index] ^= 1 << bit;
                prop_assert!(decode(&bytes, &file_name(&adapter.name)).is_err());
            }
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(decode(&bytes, "x").is_err());
            prop_assert!(salvage(&bytes, "x").is_none());
        }
    }
}
