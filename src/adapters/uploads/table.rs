//! Which uploads are open and which were finished lately.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::error::AdapterError;
use super::super::files::{CheckedHeader, StoreLimits, UploadId};
use super::super::registry::Published;
use super::session::Session;

pub(super) struct Table {
    open: HashMap<UploadId, Arc<Session>>,
    staged_bytes: u64,
    finished: HashMap<UploadId, (CheckedHeader, Published)>,
    /// Oldest first; bounds `finished`.
    finished_order: VecDeque<UploadId>,
    remembered: usize,
    number: u64,
}

impl Table {
    pub(super) fn new(remembered: usize) -> Self {
        Self {
            open: HashMap::new(),
            staged_bytes: 0,
            finished: HashMap::new(),
            finished_order: VecDeque::new(),
            remembered,
            number: 0,
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

    pub(super) fn usage(&self) -> (usize, u64) {
        (self.open.len(), self.staged_bytes)
    }

    pub(super) fn check_room(&self, header: &CheckedHeader, limits: &StoreLimits) -> Result<(), AdapterError> {
        if self.open.len() >= limits.max_uploads {
            return Err(AdapterError::TooManyUploads { open: self.open.len(), max: limits.max_uploads });
        }
        let (requested, used, max) = (header.bytes, self.staged_bytes, limits.max_staged_bytes);
        if used.saturating_add(requested) > max {
            return Err(AdapterError::StagingFull { requested, used, max });
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

    /// An upload that is being published can no longer be given up.
    pub(super) fn take_abortable(&mut self, id: &UploadId) -> Option<Arc<Session>> {
        let session = self.session(id).filter(|session| !session.is_finishing())?;
        self.remove(&session);
        Some(session)
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
