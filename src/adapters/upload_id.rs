//! How clients name an upload.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An upload id outside `[A-Za-z0-9._:-]{1,128}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upload_id {upload_id:?} is not of the form [A-Za-z0-9._:-]{{1,128}}")]
pub struct InvalidUploadId {
    /// As given, shortened to 128 characters.
    pub upload_id: String,
}

/// A client's name for one upload: the key of resumption and idempotency. `[A-Za-z0-9._:-]{1,128}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(Arc<str>);

impl UploadId {
    /// Most characters of an id.
    pub const MAX_LEN: usize = 128;

    /// An id no client can write, for an upload that was given none.
    pub(super) fn anonymous(number: u64) -> Self {
        Self(format!("~{number}").into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UploadId {
    type Err = InvalidUploadId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
        if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidUploadId { upload_id: text.chars().take(Self::MAX_LEN).collect() })
        }
    }
}
