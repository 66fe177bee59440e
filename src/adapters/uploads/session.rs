//! One upload: what has come, what is still to come, and the verified result.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, CheckedFile, CheckedHeader, Expected, FileRole, MAX_CHUNK_BYTES, Sha256Digest,
    StoredFile, UploadId, WEIGHTS_FILE,
};
use super::super::fs::StoreFile;
use super::super::registry::Published;
use super::super::store::AdapterBytes;
use super::super::sync::lock;
use super::head::{HeadKeeper, UploadHead};
use super::table::Leftover;
use super::{Desk, FileProgress};
use crate::types::{AdapterName, AdapterVersion, ClientKey};

pub(super) struct Session {
    id: UploadId,
    header: CheckedHeader,
    /// Who opened it.
    client: ClientKey,
    dir: PathBuf,
    resumable: bool,
    /// A lock of its own, so that looking for idle uploads never waits for the disk. `None` while being finished.
    last_active: Mutex<Option<Instant>>,
    body: Mutex<Body>,
}

struct Body {
    phase: Phase,
    /// Counts streams: only the last one may go on.
    attachment: u64,
    files: Vec<Receiving>,
    head: HeadKeeper,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Receiving,
    Finishing,
    Closed,
}

struct Receiving {
    /// `None` for ignored files, which are hashed but not kept.
    file: Option<Box<dyn StoreFile>>,
    hasher: Sha256,
    committed: u64,
}

impl Session {
    pub(super) fn new(
        id: UploadId,
        header: CheckedHeader,
        client: ClientKey,
        dir: PathBuf,
        resumable: bool,
        now: Instant,
    ) -> Self {
        let body =
            Mutex::new(Body { phase: Phase::Opening, attachment: 0, files: Vec::new(), head: HeadKeeper::default() });
        Self { id, header, client, dir, resumable, last_active: Mutex::new(Some(now)), body }
    }

    pub(super) fn id(&self) -> &UploadId {
        &self.id
    }

    pub(super) fn header(&self) -> &CheckedHeader {
        &self.header
    }

    pub(super) fn client(&self) -> ClientKey {
        self.client
    }

    pub(super) fn is_resumable(&self) -> bool {
        self.resumable
    }

    pub(super) fn is_idle(&self, now: Instant, idle: Duration) -> bool {
        lock(&self.last_active).is_some_and(|last| now.saturating_duration_since(last) > idle)
    }

    pub(super) fn is_finishing(&self) -> bool {
        lock(&self.last_active).is_none()
    }

    pub(super) fn progress(&self) -> Vec<FileProgress> {
        let body = lock(&self.body);
        let committed = body.files.iter().map(|file| file.committed).chain(std::iter::repeat(0));
        let progress = |(declared, committed): (&CheckedFile, u64)| FileProgress {
            path: declared.file.path.clone(),
            size: declared.file.size,
            committed,
        };
        self.header.files.iter().zip(committed).map(progress).collect()
    }

    pub(super) fn create(self: Arc<Self>, desk: &Arc<Desk>, now: Instant) -> Result<UploadSession, AdapterError> {
        let created = self.create_files(desk);
        let attached = created.and_then(|files| {
            let mut body = lock(&self.body);
            // Expired or aborted in between.
            if body.phase != Phase::Opening {
                return Err(self.unknown());
            }
            (body.phase, body.files) = (Phase::Receiving, files);
            Ok(self.attach(&mut body, desk, now))
        });
        attached.inspect_err(|_| self.discard(desk))
    }

    fn create_files(&self, desk: &Desk) -> Result<Vec<Receiving>, AdapterError> {
        desk.fs.create_dir(&self.dir).map_err(AdapterError::io("creating a staging folder"))?;
        let open = |declared: &CheckedFile| {
            let file = match declared.role {
                FileRole::Ignored => None,
                FileRole::Config | FileRole::Weights | FileRole::ChatTemplate => Some(
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

    fn unknown(&self) -> AdapterError {
        AdapterError::UnknownUpload { upload_id: self.id.clone() }
    }

    /// May the stream with this attachment go on?
    fn check_attached(&self, body: &Body, attachment: u64) -> Result<(), AdapterError> {
        if body.attachment != attachment {
            return Err(AdapterError::UploadTakenOver { upload_id: self.id.clone() });
        }
        match body.phase {
            Phase::Receiving => Ok(()),
            Phase::Opening | Phase::Finishing | Phase::Closed => Err(self.unknown()),
        }
    }

    /// Take it off the table and remove what it staged.
    fn discard(&self, desk: &Desk) {
        lock(&desk.table).remove(self);
        self.close(desk);
    }

    /// Remove what it staged, unless its stream has just begun to finish it; the caller took it off the table.
    pub(super) fn abandon(&self, desk: &Desk) {
        if lock(&self.body).phase != Phase::Finishing {
            self.close(desk);
        }
    }

    fn close(&self, desk: &Desk) {
        {
            let mut body = lock(&self.body);
            body.phase = Phase::Closed;
            // Open files would keep their space on disk.
            body.files.clear();
            body.head = HeadKeeper::default();
        }
        if let Err(error) = desk.remove(&self.dir) {
            tracing::warn!(upload_id = %self.id, %error, "could not remove a staging folder; it is tried again");
            let leftover = Leftover { dir: self.dir.clone(), bytes: self.header.bytes };
            lock(&desk.table).leave(leftover);
        }
    }

    fn write(&self, body: &mut Body, index: usize, offset: u64, data: &[u8]) -> Result<u64, AdapterError> {
        let files = self.header.files.len();
        let (Some(declared), Some(receiving)) = (self.header.files.get(index), body.files.get_mut(index)) else {
            return Err(AdapterError::UnknownFileIndex { index, files });
        };
        let StoredFile { path, size, .. } = &declared.file;
        if data.is_empty() {
            return Err(AdapterError::EmptyChunk { path: path.clone() });
        }
        if data.len() > MAX_CHUNK_BYTES {
            return Err(AdapterError::ChunkTooLarge { bytes: data.len(), max: MAX_CHUNK_BYTES });
        }
        if offset != receiving.committed {
            return Err(AdapterError::WrongOffset { path: path.clone(), expected: receiving.committed, got: offset });
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > *size {
            return Err(AdapterError::TooManyBytes { path: path.clone(), declared: *size, got: end });
        }
        if let Some(file) = &mut receiving.file {
            file.append(data).map_err(AdapterError::io("writing a staged file"))?;
        }
        receiving.hasher.update(data);
        receiving.committed = end;
        body.head.take(declared.role, offset, data, *size);
        Ok(end)
    }

    /// Has every declared byte come?
    fn check_complete(&self, body: &Body) -> Result<(), AdapterError> {
        for (declared, receiving) in self.header.files.iter().zip(&body.files) {
            let StoredFile { path, size, .. } = &declared.file;
            if receiving.committed != *size {
                return Err(AdapterError::Truncated { path: path.clone(), declared: *size, got: receiving.committed });
            }
        }
        Ok(())
    }

    fn verify(&self, body: &mut Body) -> Result<(), AdapterError> {
        for (declared, receiving) in self.header.files.iter().zip(&mut body.files) {
            let actual = Sha256Digest(std::mem::take(&mut receiving.hasher).finalize().into());
            let StoredFile { path, sha256, .. } = &declared.file;
            if actual != *sha256 {
                return Err(AdapterError::ChecksumMismatch { path: path.clone(), declared: *sha256, actual });
            }
        }
        Ok(())
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
                self.session.discard(&self.desk);
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
            self.session.discard(&self.desk);
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
            Ok(()) => Ok(Staged { desk, session, published: None }),
            Err(error) => {
                session.discard(&desk);
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
            self.session.discard(&self.desk);
        }
    }
}

impl fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadSession").field("upload_id", self.upload_id()).finish()
    }
}

/// Files that are complete, verified and durable, and bound to no name yet. Check their content, then
/// [`publish`](super::super::AdapterRegistry::publish) them; dropping them removes them.
pub struct Staged {
    desk: Arc<Desk>,
    session: Arc<Session>,
    published: Option<Published>,
}

impl Staged {
    /// The name to bind.
    #[must_use]
    pub fn name(&self) -> &AdapterName {
        &self.session.header.name
    }

    /// The digest of the files.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.session.header.version
    }

    /// The folder that holds `adapter_config.json` and `adapter_model.safetensors`, and `chat_template.jinja` where it is
    /// the adapter's own, nothing else.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.session.dir
    }

    /// The files that will be kept, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<StoredFile> {
        self.session.header.stored_files()
    }

    /// One of the files is a chat template of the adapter's own.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.session.header.files.iter().any(|declared| declared.role == FileRole::ChatTemplate)
    }

    /// The adapter's own chat template, where it has one. Blocks.
    ///
    /// # Errors
    /// The disk.
    pub fn chat_template(&self) -> Result<Option<Vec<u8>>, AdapterError> {
        self.has_chat_template().then(|| self.read_file(CHAT_TEMPLATE_FILE)).transpose()
    }

    /// Bytes that [`Staged::read`] reads.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        self.files().iter().filter(|file| file.path != CHAT_TEMPLATE_FILE).map(|file| file.size).sum()
    }

    /// Config and weights, as they were verified. Blocks.
    ///
    /// # Errors
    /// The disk; a lack of memory is one of its failures.
    pub fn read(&self) -> Result<AdapterBytes, AdapterError> {
        Ok(AdapterBytes { config: self.read_file(CONFIG_FILE)?, weights: self.read_file(WEIGHTS_FILE)? })
    }

    fn read_file(&self, name: &'static str) -> Result<Vec<u8>, AdapterError> {
        let declared = self.session.header.files.iter().find(|declared| declared.file.path == name);
        let size = declared.ok_or(AdapterError::MissingFile { path: name })?.file.size;
        let read = Patience::short().read(self.desk.fs.as_ref(), &self.dir().join(name), size);
        read.map_err(AdapterError::io("reading a staged file"))
    }

    /// The client wants to know whether it would be accepted, no more.
    #[must_use]
    pub fn validate_only(&self) -> bool {
        self.session.header.validate_only
    }

    /// Keep it on the device once loaded.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.session.header.pin
    }

    /// Who uploaded it.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.session.client
    }

    /// The compare and set.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.session.header.expected
    }

    /// The upload succeeded with this result: remember it for a repetition.
    pub(in super::super) fn remember(&mut self, published: Published) {
        self.published = Some(published);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        {
            let mut table = lock(&self.desk.table);
            table.remove(&self.session);
            if let Some(published) = self.published.take() {
                table.remember(&self.session, published);
            }
        }
        self.session.close(&self.desk);
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("name", self.name()).field("version", &self.version()).finish()
    }
}
