//! Which uploads are open and which were finished lately.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::error::AdapterError;
use super::super::files::{CheckedHeader, StoreLimits};
use super::super::published::Published;
use super::super::upload_id::UploadId;
use super::session::Session;
use crate::types::ClientKey;

/// A folder of an upload that is over, which the disk did not let go.
pub(super) struct Leftover {
    pub(super) dir: PathBuf,
    /// That it may hold.
    pub(super) bytes: u64,
}

pub(super) struct Table {
    open: HashMap<UploadId, Arc<Session>>,
    staged_bytes: u64,
    /// They take space as open uploads do.
    leftovers: Vec<Leftover>,
    finished: HashMap<UploadId, (CheckedHeader, Published)>,
    /// Oldest first; bounds `finished`.
    finished_order: VecDeque<UploadId>,
    remembered: usize,
    number: u64,
}

impl Table {
    /// `number`: of the last folder that is taken.
    pub(super) fn new(remembered: usize, number: u64, leftovers: Vec<Leftover>) -> Self {
        Self {
            open: HashMap::new(),
            staged_bytes: 0,
            leftovers,
            finished: HashMap::new(),
            finished_order: VecDeque::new(),
            remembered,
            number,
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) fn anonymous_id(&mut self) -> UploadId {
        UploadId::anonymous(self.next_number())
    }

    /// The result of an upload with this id, if it was the same upload.
    pub(super) fn finished(&self, id: &UploadId, header: &CheckedHeader) -> Result<Option<Published>, AdapterError> {
        match self.finished.get(id) {
            None => Ok(None),
            Some((before, published)) if before == header => Ok(Some(published.clone())),
            Some(_) => Err(AdapterError::UploadIdReused { upload_id: id.clone() }),
        }
    }

    pub(super) fn result(&self, id: &UploadId) -> Option<Published> {
        self.finished.get(id).map(|(_, published)| published.clone())
    }

    /// The open upload with this id, if it is the same upload.
    pub(super) fn open(&self, id: &UploadId, header: &CheckedHeader) -> Result<Option<Arc<Session>>, AdapterError> {
        match self.open.get(id) {
            None => Ok(None),
            Some(session) if session.header() == header => Ok(Some(Arc::clone(session))),
            Some(_) => Err(AdapterError::UploadIdReused { upload_id: id.clone() }),
        }
    }

    pub(super) fn session(&self, id: &UploadId) -> Option<Arc<Session>> {
        self.open.get(id).map(Arc::clone)
    }

    /// Uploads and bytes that take space in the staging folder.
    pub(super) fn usage(&self) -> (usize, u64) {
        let left = self.leftovers.iter().fold(0u64, |sum, leftover| sum.saturating_add(leftover.bytes));
        (self.open.len() + self.leftovers.len(), self.staged_bytes.saturating_add(left))
    }

    pub(super) fn leave(&mut self, leftover: Leftover) {
        self.leftovers.push(leftover);
    }

    pub(super) fn take_leftovers(&mut self) -> Vec<Leftover> {
        std::mem::take(&mut self.leftovers)
    }

    /// Whether there is room for one more upload, and for one more of this client.
    pub(super) fn check_room(
        &self,
        header: &CheckedHeader,
        client: ClientKey,
        limits: &StoreLimits,
    ) -> Result<(), AdapterError> {
        let (open, used) = self.usage();
        if open >= limits.max_uploads {
            return Err(AdapterError::TooManyUploads { open, max: limits.max_uploads });
        }
        let (requested, max) = (header.bytes, limits.max_staged_bytes);
        if used.saturating_add(requested) > max {
            return Err(AdapterError::StagingFull { requested, used, max });
        }
        let own = self.open.values().filter(|session| session.client() == client);
        let (open, staged) = own.fold((0, 0u64), |(open, staged), session| (open + 1, staged + session.header().bytes));
        let (max, max_staged) = (limits.max_uploads_per_client, max / 2);
        if open >= max || (open > 0 && staged.saturating_add(requested) > max_staged) {
            return Err(AdapterError::UploadsOfClient { open, max, staged, requested, max_staged });
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, session: Arc<Session>) {
        self.staged_bytes += session.header().bytes;
        self.open.insert(session.id().clone(), session);
    }

    /// Remove exactly this session: its id may be in use by a later one.
    pub(super) fn remove(&mut self, session: &Session) {
        let same = self.open.get(session.id()).is_some_and(|open| std::ptr::eq(Arc::as_ptr(open), session));
        if same {
            self.open.remove(session.id());
            self.staged_bytes -= session.header().bytes;
        }
    }

    pub(super) fn take_idle(&mut self, now: Instant, idle: Duration) -> Vec<Arc<Session>> {
        let expired: Vec<_> = self.open.values().filter(|session| session.is_idle(now, idle)).cloned().collect();
        expired.iter().for_each(|session| self.remove(session));
        expired
    }

    pub(super) fn remember(&mut self, session: &Session, published: Published) {
        if self.remembered == 0 || !session.is_resumable() {
            return;
        }
        while self.finished_order.len() >= self.remembered {
            if let Some(oldest) = self.finished_order.pop_front() {
                self.finished.remove(&oldest);
            }
        }
        let before = self.finished.insert(session.id().clone(), (session.header().clone(), published));
        if before.is_none() {
            self.finished_order.push_back(session.id().clone());
        }
    }
}
