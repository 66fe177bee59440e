//! The file that binds a name to a version. It carries a checksum of its own, so that a torn or flipped one is told
//! from a good one; its file name is the digest of the adapter's name, so that no client's text is ever part of a path.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::files::{CONFIG_FILE, Sha256Digest, StoredFile, WEIGHTS_FILE, version_of};
use super::StoredAdapter;
use crate::types::AdapterName;

const FORMAT: u32 = 1;
/// A manifest of two files is far below this.
pub(super) const MAX_MANIFEST_BYTES: u64 = 16 << 10;
/// Ends the name of a manifest.
pub(super) const EXTENSION: &str = ".json";
/// Ends the name of a manifest that is being written.
pub(super) const TEMPORARY: &str = ".tmp";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    body: Body,
    /// sha256 of the body as this module writes it.
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    version: String,
    files: Vec<File>,
    created_ms: u64,
    pinned: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    size: u64,
    sha256: String,
}

/// Why a manifest is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    #[error("format {0} is not known to this version of the server")]
    Format(u32),
    #[error("the checksum does not match")]
    Checksum,
    #[error("{0} is not valid")]
    Field(&'static str),
    #[error("the file's name is not the digest of the adapter's name")]
    Misplaced,
}

/// The file name of a name's manifest.
pub(super) fn file_name(name: &AdapterName) -> String {
    format!("{}{EXTENSION}", Sha256Digest::of(name.as_str().as_bytes()))
}

fn checksum(body: &Body) -> serde_json::Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(b"polydelta manifest 1\0");
    hasher.update(serde_json::to_vec(body)?);
    Ok(Sha256Digest(hasher.finalize().into()).to_string())
}

pub(super) fn encode(adapter: &StoredAdapter) -> serde_json::Result<Vec<u8>> {
    let file =
        |file: &StoredFile| File { path: file.path.clone(), size: file.size, sha256: file.sha256.to_string() };
    let body = Body {
        name: adapter.name.as_str().to_owned(),
        version: adapter.version.to_string(),
        files: adapter.files.iter().map(file).collect(),
        created_ms: adapter.created_ms,
        pinned: adapter.pinned,
    };
    let checksum = checksum(&body)?;
    serde_json::to_vec(&Manifest { format: FORMAT, body, checksum })
}

pub(super) fn decode(bytes: &[u8], found_as: &str) -> Result<StoredAdapter, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(bytes)?;
    if manifest.format != FORMAT {
        return Err(ManifestError::Format(manifest.format));
    }
    if checksum(&manifest.body)? != manifest.checksum {
        return Err(ManifestError::Checksum);
    }
    let Body { name, version, files, created_ms, pinned } = manifest.body;
    let name: AdapterName = name.parse().map_err(|_| ManifestError::Field("name"))?;
    if file_name(&name) != found_as {
        return Err(ManifestError::Misplaced);
    }
    let files = files
        .into_iter()
        .map(|File { path, size, sha256 }| Ok(StoredFile { path, size, sha256: sha256.parse()? }))
        .collect::<Result<Vec<_>, crate::types::InvalidAdapterVersion>>()
        .map_err(|_| ManifestError::Field("files.sha256"))?;
    if !files.iter().map(|file| file.path.as_str()).eq([CONFIG_FILE, WEIGHTS_FILE]) {
        return Err(ManifestError::Field("files.path"));
    }
    let version = version.parse().map_err(|_| ManifestError::Field("version"))?;
    if version_of(&files) != version {
        return Err(ManifestError::Field("version"));
    }
    Ok(StoredAdapter { name, version, files, created_ms, pinned })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn adapter(name: &str) -> StoredAdapter {
        let file = |path: &str, fill| StoredFile { path: path.into(), size: 3, sha256: Sha256Digest([fill; 32]) };
        let files = vec![file(CONFIG_FILE, 1), file(WEIGHTS_FILE, 2)];
        let version = version_of(&files);
        StoredAdapter { name: name.parse().unwrap(), version, files, created_ms: 1_700_000_000_000, pinned: true }
    }

    #[test]
    fn a_manifest_reads_back_as_written() {
        let adapter = adapter("sql-v2");
        assert_eq!(decode(&encode(&adapter).unwrap(), &file_name(&adapter.name)).unwrap(), adapter);
    }

    #[test]
    fn a_manifest_under_another_name_is_refused() {
        let bytes = encode(&adapter("a")).unwrap();
        let result = decode(&bytes, &file_name(&"b".parse().unwrap()));
        assert!(matches!(result, Err(ManifestError::Misplaced)));
    }

    #[test]
    fn a_manifest_of_a_newer_format_is_refused_as_such() {
        let text = String::from_utf8(encode(&adapter("a")).unwrap()).unwrap();
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        assert!(matches!(decode(newer.as_bytes(), ""), Err(ManifestError::Format(2))));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_goes_unnoticed(byte in any::<prop::sample::Index>(), bit in 0u8..8) {
            let adapter = adapter("a");
            let mut bytes = encode(&adapter).unwrap();
            let index = byte.index(bytes.len());
            bytes[index] ^= 1 << bit;
            prop_assert!(decode(&bytes, &file_name(&adapter.name)).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(decode(&bytes, "x").is_err());
        }
    }
}
