//! Uploads in progress: chunks in, verified files out.
//!
//! An upload is a *session* in memory and a folder under `staging/`. The folder's name is a number of ours, never
//! anything a client wrote. A session with an `upload_id` survives its stream and is resumed by a stream with the same
//! id and header, which takes over if the first still hangs; it ends when it has been idle too long, when the disk
//! fails, or when its content turns out wrong. Sessions do not survive the process: the store empties `staging/` when
//! it is opened.

mod desk;
mod head;
mod session;
mod staged;
mod stream;
mod table;

pub use head::{UploadHead, WeightsHead};
pub use session::FileProgress;
pub use staged::{Staged, TokenizerFiles};
pub use stream::UploadSession;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use self::desk::Desk;
use self::session::Session;
use super::error::AdapterError;
use super::files::{CheckedHeader, FileHeader, StoreLimits, UploadHeader};
use super::fs::StoreFs;
use super::published::Published;
use super::sync::lock;
use super::upload_id::UploadId;
use crate::types::{ClientKey, Sha256Digest};

/// The desk where uploads come in. Cheap to clone.
#[derive(Clone)]
pub struct Uploads {
    desk: Arc<Desk>,
}

/// The answer to an upload's header.
#[derive(Debug)]
pub enum Begin {
    /// Send chunks, each file from its committed offset on.
    Open(UploadSession),
    /// This very upload was finished before; nothing more to do.
    Finished(Box<Published>),
}

/// The answer to `GetUpload`.
#[derive(Clone, Debug)]
pub enum UploadStatus {
    /// In the order of the header.
    Open(Vec<FileProgress>),
    /// Published.
    Finished(Box<Published>),
}

impl Uploads {
    pub(super) fn new(staging: PathBuf, fs: Arc<dyn StoreFs>, limits: StoreLimits) -> Self {
        Self { desk: Arc::new(Desk::new(staging, fs, limits)) }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &StoreLimits {
        &self.desk.limits
    }

    /// Open or resume an upload whose header was checked, or recognise one that was finished; `check` has a say on
    /// all but the last. Nothing is created on disk before every limit is checked.
    pub(super) fn begin(
        &self,
        header: CheckedHeader,
        upload_id: Option<UploadId>,
        client: ClientKey,
        now: Instant,
        check: impl FnOnce() -> Result<(), AdapterError>,
    ) -> Result<Begin, AdapterError> {
        self.expire(now);
        let desk = &self.desk;
        let (session, fresh) = {
            let mut table = lock(&desk.table);
            let resumable = upload_id.is_some();
            let id = upload_id.unwrap_or_else(|| table.anonymous_id());
            if let Some(published) = table.finished(&id, &header)? {
                return Ok(Begin::Finished(Box::new(published)));
            }
            check()?;
            match table.open(&id, &header)? {
                Some(session) => (session, false),
                None => {
                    table.check_room(&header, client, &desk.limits)?;
                    let dir = desk.staging.join(format!("upload-{}", table.next_number()));
                    let session = Arc::new(Session::new(id, header, client, dir, resumable, now));
                    table.insert(Arc::clone(&session));
                    (session, true)
                }
            }
        };
        if fresh { session.create(desk, now) } else { session.resume(desk, now) }.map(Begin::Open)
    }

    /// Committed offsets of an open upload, or the result of a finished one.
    ///
    /// # Errors
    /// [`AdapterError::UnknownUpload`].
    pub fn status(&self, upload_id: &UploadId) -> Result<UploadStatus, AdapterError> {
        let session = {
            let table = lock(&self.desk.table);
            if let Some(published) = table.result(upload_id) {
                return Ok(UploadStatus::Finished(Box::new(published)));
            }
            table.session(upload_id)
        };
        match session {
            Some(session) => Ok(UploadStatus::Open(session.progress())),
            None => Err(AdapterError::UnknownUpload { upload_id: upload_id.clone() }),
        }
    }

    /// Drop every upload that has had no chunk for [`StoreLimits::idle`], and try again to remove what earlier ones have
    /// left behind. Call it now and then; opening an upload does so too.
    pub fn expire(&self, now: Instant) {
        let leftovers = lock(&self.desk.table).take_leftovers();
        for leftover in leftovers {
            if self.desk.remove(&leftover.dir).is_err() {
                lock(&self.desk.table).leave(leftover);
            }
        }
        let expired = lock(&self.desk.table).take_idle(now, self.desk.limits.idle);
        for session in expired {
            tracing::info!(upload_id = %session.id(), "upload expired");
            self.desk.abandon(&session);
        }
    }

    /// Uploads that take space in the staging folder, and the bytes they declared.
    #[must_use]
    pub fn open(&self) -> (usize, u64) {
        lock(&self.desk.table).usage()
    }
}

impl UploadHeader {
    /// Check all that can be known without content.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn validate(&self, limits: &StoreLimits) -> Result<(), AdapterError> {
        self.check(limits).map(drop)
    }

    /// Whether it declares this content of a file.
    #[must_use]
    pub fn declares(&self, path: &str, content: &[u8]) -> bool {
        let digest = Sha256Digest::of(content).to_string();
        let is_it = |file: &FileHeader| file.path == path && file.size == content.len() as u64 && file.sha256 == digest;
        self.files.iter().any(is_it)
    }
}

#[cfg(test)]
mod tests;
