//! One upload: what has come, and what is still to come.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::error::AdapterError;
use super::super::files::{CheckedFile, CheckedHeader, MAX_CHUNK_BYTES, StoredFile};
use super::super::fs::StoreFile;
use super::super::sync::lock;
use super::super::upload_id::UploadId;
use super::head::HeadKeeper;
use crate::types::{ClientKey, Sha256Digest};

/// How far one file of an upload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProgress {
    /// As in the header.
    pub path: String,
    /// Declared.
    pub size: u64,
    /// Received: where the next chunk starts.
    pub committed: u64,
}

/// What has come of one upload. Knows nothing of the desk it lies on.
pub(super) struct Session {
    pub(super) id: UploadId,
    pub(super) header: CheckedHeader,
    /// Who opened it.
    pub(super) client: ClientKey,
    pub(super) dir: PathBuf,
    pub(super) resumable: bool,
    /// A lock of its own, so that looking for idle uploads never waits for the disk. `None` while being finished.
    pub(super) last_active: Mutex<Option<Instant>>,
    pub(super) body: Mutex<Body>,
}

pub(super) struct Body {
    pub(super) phase: Phase,
    /// Counts streams: only the last one may go on.
    pub(super) attachment: u64,
    pub(super) files: Vec<Receiving>,
    pub(super) head: HeadKeeper,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Opening,
    Receiving,
    Finishing,
    Closed,
}

pub(super) struct Receiving {
    /// `None` for ignored files, which are hashed but not kept.
    pub(super) file: Option<Box<dyn StoreFile>>,
    pub(super) hasher: Sha256,
    pub(super) committed: u64,
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

    pub(super) fn unknown(&self) -> AdapterError {
        AdapterError::UnknownUpload { upload_id: self.id.clone() }
    }

    /// May the stream with this attachment go on?
    pub(super) fn check_attached(&self, body: &Body, attachment: u64) -> Result<(), AdapterError> {
        if body.attachment != attachment {
            return Err(AdapterError::UploadTakenOver { upload_id: self.id.clone() });
        }
        match body.phase {
            Phase::Receiving => Ok(()),
            Phase::Opening | Phase::Finishing | Phase::Closed => Err(self.unknown()),
        }
    }

    pub(super) fn write(&self, body: &mut Body, index: usize, offset: u64, data: &[u8]) -> Result<u64, AdapterError> {
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
    pub(super) fn check_complete(&self, body: &Body) -> Result<(), AdapterError> {
        for (declared, receiving) in self.header.files.iter().zip(&body.files) {
            let StoredFile { path, size, .. } = &declared.file;
            if receiving.committed != *size {
                return Err(AdapterError::Truncated { path: path.clone(), declared: *size, got: receiving.committed });
            }
        }
        Ok(())
    }

    pub(super) fn verify(&self, body: &mut Body) -> Result<(), AdapterError> {
        for (declared, receiving) in self.header.files.iter().zip(&mut body.files) {
            let actual = Sha256Digest(std::mem::take(&mut receiving.hasher).finalize().into());
            let StoredFile { path, sha256, .. } = &declared.file;
            if actual != *sha256 {
                return Err(AdapterError::ChecksumMismatch { path: path.clone(), declared: *sha256, actual });
            }
        }
        Ok(())
    }
}
