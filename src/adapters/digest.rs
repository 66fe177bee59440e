//! The sha256 of a file.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::types::{AdapterVersion, InvalidAdapterVersion};

/// A sha256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest(pub [u8; 32]);

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256Digest({self})")
    }
}

impl FromStr for Sha256Digest {
    type Err = InvalidAdapterVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Same form as a version: 64 lower-case hexadecimal digits.
        text.parse::<AdapterVersion>().map(|version| Self(version.0))
    }
}

impl Sha256Digest {
    /// Digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}
