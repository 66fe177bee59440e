//! A digest of log-probabilities.

use sha2::{Digest, Sha256};

use crate::types::Sha256Digest;

/// The sha256 of log-probabilities in order, each as the four bytes of an IEEE 754 binary32, lowest first: it is the same
/// where every one has the same bits.
#[derive(Clone, Debug, Default)]
pub struct LogprobHasher(Sha256);

impl LogprobHasher {
    /// One more.
    pub fn add(&mut self, logprob: f32) {
        self.0.update(logprob.to_bits().to_le_bytes());
    }

    /// Of all.
    #[must_use]
    pub fn digest(self) -> Sha256Digest {
        Sha256Digest(self.0.finalize().into())
    }
}
