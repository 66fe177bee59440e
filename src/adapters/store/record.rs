//! What a store knows of itself as a whole: the base that adapters of the first format belong to, since when objects
//! have had no name, and the digests of bases it was used with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::seal::{self, SealError};
use crate::types::{AdapterVersion, BaseDigest};

const KIND: &str = "record";
const FORMAT: u32 = 1;
/// Bases whose digests are kept.
const BASES: usize = 16;

/// Since when an object has had no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nameless {
    /// In ms since the Unix epoch.
    pub(super) since_ms: u64,
    /// It lost its name to something else than a request: it stays until a person decides.
    pub(super) keep: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Whose the adapters are that do not say themselves.
    pub(super) adopted: Option<BaseDigest>,
    pub(super) nameless: BTreeMap<AdapterVersion, Nameless>,
    /// Latest last: what identifies the files of a base, and the digest of their content.
    bases: Vec<(String, BaseDigest)>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    adopted: Option<String>,
    nameless: BTreeMap<String, (u64, bool)>,
    bases: Vec<(String, String)>,
}

impl Record {
    pub(super) fn base(&self, files: &str) -> Option<BaseDigest> {
        self.bases.iter().find(|(known, _)| known == files).map(|(_, digest)| *digest)
    }

    pub(super) fn remember_base(&mut self, files: String, digest: BaseDigest) {
        self.bases.retain(|(known, _)| *known != files);
        self.bases.push((files, digest));
        let surplus = self.bases.len().saturating_sub(BASES);
        self.bases.drain(..surplus);
    }

    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let body = Body {
            adopted: self.adopted.as_ref().map(ToString::to_string),
            nameless: self.nameless.iter().map(|(v, n)| (v.to_string(), (n.since_ms, n.keep))).collect(),
            bases: self.bases.iter().map(|(files, digest)| (files.clone(), digest.to_string())).collect(),
        };
        seal::seal(KIND, FORMAT, &body)
    }

    /// `Err(Some(format))`: a later version of the server wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match seal::format_of(bytes)? {
            FORMAT => {}
            newer => return Err(RecordError::Format(newer)),
        }
        let body: Body = seal::open(KIND, FORMAT, bytes)?;
        let digest = |text: &String| text.parse::<BaseDigest>().map_err(|_| RecordError::Digest);
        let nameless = |(version, (since_ms, keep)): (&String, &(u64, bool))| {
            let version = version.parse().map_err(|_| RecordError::Digest)?;
            Ok((version, Nameless { since_ms: *since_ms, keep: *keep }))
        };
        Ok(Self {
            adopted: body.adopted.as_ref().map(digest).transpose()?,
            nameless: body.nameless.iter().map(nameless).collect::<Result<_, RecordError>>()?,
            bases: body
                .bases
                .iter()
                .map(|(files, text)| Ok((files.clone(), digest(text)?)))
                .collect::<Result<_, RecordError>>()?,
        })
    }
}

/// Why a record is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("format {0} is not known to this version of the server")]
    Format(u32),
    #[error("a digest in it is none")]
    Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_written_and_forgets_the_oldest_base() {
        let mut record = Record { adopted: Some(BaseDigest([3; 32])), ..Record::default() };
        record.nameless.insert(AdapterVersion([1; 32]), Nameless { since_ms: 5, keep: true });
        for at in 0..=BASES as u8 {
            record.remember_base(format!("files {at}"), BaseDigest([at; 32]));
        }
        assert_eq!(record.base("files 0"), None);
        assert_eq!(record.base("files 16"), Some(BaseDigest([16; 32])));
        let mut bytes = record.encode().unwrap();
        assert_eq!(Record::decode(&bytes).unwrap(), record);
        bytes[40] ^= 1;
        assert!(Record::decode(&bytes).is_err());
    }
}
