//! The envelope of the store's small files: `{"format":F,"body":…,"checksum":"…"}`. The checksum covers the bytes of the
//! body as they stand in the file, so that a torn or flipped file is told from a good one, and a later version may add
//! fields to the body that an earlier one skips.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::types::Sha256Digest;

/// Why a small file is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// Not JSON of the expected form.
    #[error("not of the expected form: {0}")]
    Json(#[from] serde_json::Error),
    /// Not as this module writes it.
    #[error("the envelope is damaged")]
    Envelope,
    /// Sealed as it is, but the body is not of the expected form.
    #[error("the body is not of the expected form: {0}")]
    Body(serde_json::Error),
    /// Other bytes than were sealed.
    #[error("the checksum does not match")]
    Checksum,
}

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

const BODY: &[u8] = b",\"body\":";
const CHECKSUM: &[u8] = b",\"checksum\":\"";
const END: &[u8] = b"\"}";

/// The format a file says it has, whatever else is in it.
pub(super) fn format_of(bytes: &[u8]) -> Result<u32, SealError> {
    Ok(serde_json::from_slice::<Probe>(bytes)?.format)
}

/// `kind` is part of the checksum: a file of one kind never passes for one of another.
pub(super) fn seal(kind: &str, format: u32, body: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(body)?;
    let checksum = checksum(kind, format, &body).to_string();
    let mut bytes = prefix(format);
    for part in [&body, CHECKSUM, checksum.as_bytes(), END] {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// The body of a file of this kind and format.
pub(super) fn open<'a, T: Deserialize<'a>>(kind: &str, format: u32, bytes: &'a [u8]) -> Result<T, SealError> {
    let body = bytes.strip_prefix(prefix(format).as_slice()).and_then(|rest| rest.strip_suffix(END));
    let (body, written) = body
        .and_then(|rest| rest.split_at_checked(rest.len().checked_sub(64)?))
        .and_then(|(body, written)| Some((body.strip_suffix(CHECKSUM)?, written)))
        .ok_or(SealError::Envelope)?;
    if checksum(kind, format, body).to_string().as_bytes() != written {
        return Err(SealError::Checksum);
    }
    serde_json::from_slice(body).map_err(SealError::Body)
}

/// The body without regard to its checksum, for what proves itself by other means.
pub(super) fn open_damaged<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    #[derive(Deserialize)]
    struct Envelope<T> {
        body: T,
    }
    serde_json::from_slice::<Envelope<T>>(bytes).ok().map(|envelope| envelope.body)
}

fn prefix(format: u32) -> Vec<u8> {
    let mut prefix = format!("{{\"format\":{format}").into_bytes();
    prefix.extend_from_slice(BODY);
    prefix
}

fn checksum(kind: &str, format: u32, body: &[u8]) -> Sha256Digest {
    let mut hasher = Sha256::new();
    hasher.update(format!("polydelta {kind} {format}\0"));
    hasher.update(body);
    Sha256Digest(hasher.finalize().into())
}
