//! Which base model is served: the digest of its weights, read while they are loaded, or remembered by the store from
//! an earlier start with the same files.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::base::OpenedBase;
use super::error::AppError;
use crate::adapters::FolderNames;
use crate::model::{Checkpoint, ModelError};
use crate::types::BaseDigest;

/// Smaller models are read again every time: that takes no longer than writing down that they were read.
const REMEMBERED_FROM: u64 = 64 << 20;

/// The digest of a base, known or on its way.
pub(super) struct BaseIdentity {
    checkpoint: Arc<Checkpoint>,
    store: Arc<FolderNames>,
    work: Work,
}

enum Work {
    Known(BaseDigest),
    /// `sign`: of the files when reading began; `None`: not to be remembered.
    Reading {
        reader: JoinHandle<Result<BaseDigest, ModelError>>,
        sign: Option<String>,
    },
}

impl BaseIdentity {
    /// Begin to read the weights beside whatever the caller does next, unless the store knows these files.
    ///
    /// # Errors
    /// Of the files, or of the system that refuses a thread.
    pub(super) fn begin(base: &OpenedBase, store: Arc<FolderNames>, threads: usize) -> Result<Self, AppError> {
        let checkpoint = Arc::clone(&base.checkpoint);
        let sign = match checkpoint.bytes() {
            REMEMBERED_FROM.. => Some(checkpoint.files_sign()?),
            _ => None,
        };
        if let Some(known) = sign.as_ref().and_then(|sign| store.known_base(sign)) {
            return Ok(Self { checkpoint, store, work: Work::Known(known) });
        }
        let weights = Arc::clone(&checkpoint);
        let reader = std::thread::Builder::new().name("base-digest".to_owned());
        let reader = reader.spawn(move || weights.content_digest(threads)).map_err(AppError::Runtime)?;
        Ok(Self { checkpoint, store, work: Work::Reading { reader, sign } })
    }

    /// Wait for the digest. It is remembered where the files are still those it was begun with. Blocks.
    ///
    /// # Errors
    /// Of the files.
    pub(super) fn finish(self) -> Result<BaseDigest, AppError> {
        let Self { checkpoint, store, work } = self;
        let (reader, sign) = match work {
            Work::Known(digest) => return Ok(digest),
            Work::Reading { reader, sign } => (reader, sign),
        };
        let ended = || ModelError::Read {
            path: checkpoint.path().to_owned(),
            source: std::io::Error::other("its reader has ended"),
        };
        let digest = reader.join().map_err(|_| ended())??;
        if let Some(sign) = sign.filter(|sign| checkpoint.files_sign().is_ok_and(|now| now == *sign))
            && let Err(error) = store.remember_base(sign, digest)
        {
            tracing::warn!(%error, "the digest of the base could not be kept: the next start reads it again");
        }
        Ok(digest)
    }
}
