//! What one stream does with an upload, on the disk and on the table.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::super::error::AdapterError;
use super::super::files::{CheckedFile, FileRole};
use super::super::sync::lock;
use super::super::upload_id::UploadId;
use super::desk::Desk;
use super::head::UploadHead;
use super::session::{Body, FileProgress, Phase, Receiving, Session};
use super::staged::Staged;

impl Session {
    pub(super) fn create(self: Arc<Self>, desk: &Arc<Desk>, now: Instant) -> Result<UploadSession, AdapterError> {
        let created = self.create_files(desk);
        let attached = created.and_then(|files| {
            let mut body = lock(&self.body);
            // Expired in between.
            if body.phase != Phase::Opening {
                return Err(self.unknown());
            }
            (body.phase, body.files) = (Phase::Receiving, files);
            Ok(self.attach(&mut body, desk, now))
        });
        attached.inspect_err(|_| desk.discard(&self))
    }

    fn create_files(&self, desk: &Desk) -> Result<Vec<Receiving>, AdapterError> {
        desk.fs.create_dir(&self.dir).map_err(AdapterError::io("creating a staging folder"))?;
        let open = |declared: &CheckedFile| {
            let file = match declared.role {
                FileRole::Ignored => None,
                FileRole::Config | FileRole::Weights | FileRole::ChatTemplate | FileRole::Tokenizer => Some(
                    desk.fs
                        .create_file(&self.dir.join(&declared.file.path))
                        .map_err(AdapterError::io("creating a staged file"))?,
                ),
            };
            Ok(Receiving { file, hasher: Sha256::new(), committed: 0 })
        };
        self.header.files.iter().map(open).collect()
    }

    pub(super) fn resume(self: Arc<Self>, desk: &Arc<Desk>, now: Instant) -> Result<UploadSession, AdapterError> {
        let mut body = lock(&self.body);
        match body.phase {
            Phase::Receiving => Ok(self.attach(&mut body, desk, now)),
            Phase::Opening | Phase::Finishing => Err(AdapterError::UploadBusy { upload_id: self.id.clone() }),
            Phase::Closed => Err(self.unknown()),
        }
    }

    fn attach(self: &Arc<Self>, body: &mut Body, desk: &Arc<Desk>, now: Instant) -> UploadSession {
        body.attachment += 1;
        *lock(&self.last_active) = Some(now);
        UploadSession { desk: Arc::clone(desk), session: Arc::clone(self), attachment: body.attachment }
    }

    fn sync(&self, body: &mut Body, desk: &Desk) -> Result<(), AdapterError> {
        for file in body.files.iter_mut().filter_map(|receiving| receiving.file.as_mut()) {
            file.sync().map_err(AdapterError::io("syncing a staged file"))?;
        }
        body.files.clear();
        desk.fs.sync_dir(&self.dir).map_err(AdapterError::io("syncing a staging folder"))
    }
}

/// One stream's hold on an upload. Dropping it leaves a resumable upload open and discards any other.
pub struct UploadSession {
    desk: Arc<Desk>,
    session: Arc<Session>,
    attachment: u64,
}

impl UploadSession {
    /// Its id; one that was not given by the client starts with `~`.
    #[must_use]
    pub fn upload_id(&self) -> &UploadId {
        self.session.id()
    }

    /// How far each file is, in the order of the header.
    #[must_use]
    pub fn committed(&self) -> Vec<FileProgress> {
        self.session.progress()
    }

    /// Append a chunk to a file and return its new committed offset. A refused chunk changes nothing; a failure of
    /// the disk ends the upload.
    ///
    /// # Errors
    /// The rule the chunk breaks, [`AdapterError::UploadTakenOver`], [`AdapterError::UnknownUpload`] (expired), or
    /// the disk.
    pub fn write(&mut self, index: usize, offset: u64, data: &[u8], now: Instant) -> Result<u64, AdapterError> {
        let result = {
            let mut body = lock(&self.session.body);
            self.session.check_attached(&body, self.attachment)?;
            let mut last_active = lock(&self.session.last_active);
            *last_active = Some(now);
            drop(last_active);
            self.session.write(&mut body, index, offset, data)
        };
        result.inspect_err(|error| {
            if matches!(error, AdapterError::Io { .. }) {
                self.desk.discard(&self.session);
            }
        })
    }

    /// The beginning of the upload, if a chunk since the last call completed its config or the header of its weights.
    /// Whoever finds that it can never be accepted says [`UploadSession::refuse`].
    #[must_use]
    pub fn head(&mut self) -> Option<UploadHead> {
        let mut body = lock(&self.session.body);
        self.session.check_attached(&body, self.attachment).ok()?;
        let weights = self.session.header.files.iter().find(|declared| declared.role == FileRole::Weights);
        body.head.news(weights.map_or(0, |declared| declared.file.size))
    }

    /// What has come can never be accepted: give the upload up, resumable or not.
    pub fn refuse(self) {
        let attached = lock(&self.session.body).attachment == self.attachment;
        if attached {
            self.desk.discard(&self.session);
        }
    }

    /// The stream has ended: check that every declared byte is there and is the one declared, and make the files
    /// durable. A failure discards the upload, but for one: where bytes are missing, a resumable upload stays open,
    /// because a stream that broke off looks like one that has ended.
    ///
    /// # Errors
    /// [`AdapterError::Truncated`], [`AdapterError::ChecksumMismatch`], [`AdapterError::UploadTakenOver`],
    /// [`AdapterError::UnknownUpload`], or the disk.
    pub fn finish(self) -> Result<Staged, AdapterError> {
        let (session, desk) = (Arc::clone(&self.session), Arc::clone(&self.desk));
        let result = {
            let mut body = lock(&session.body);
            session.check_attached(&body, self.attachment)?;
            session.check_complete(&body)?;
            body.phase = Phase::Finishing;
            *lock(&session.last_active) = None;
            session.verify(&mut body).and_then(|()| session.sync(&mut body, &desk))
        };
        match result {
            Ok(()) => Ok(Staged::new(desk, session)),
            Err(error) => {
                desk.discard(&session);
                Err(error)
            }
        }
    }
}

impl Drop for UploadSession {
    fn drop(&mut self) {
        let ends = {
            let body = lock(&self.session.body);
            body.attachment == self.attachment && body.phase == Phase::Receiving && !self.session.resumable
        };
        if ends {
            self.desk.discard(&self.session);
        }
    }
}

impl fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadSession").field("upload_id", self.upload_id()).finish()
    }
}
