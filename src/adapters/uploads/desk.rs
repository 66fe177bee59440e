//! Where uploads lie: the staging folder, and the table of those that are open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::files::StoreLimits;
use super::super::fs::StoreFs;
use super::super::sync::lock;
use super::head::HeadKeeper;
use super::session::{Phase, Session};
use super::table::{Leftover, Table};

/// What all streams of uploads share.
pub(super) struct Desk {
    pub(super) staging: PathBuf,
    pub(super) fs: Arc<dyn StoreFs>,
    pub(super) limits: StoreLimits,
    pub(super) table: Mutex<Table>,
}

impl Desk {
    pub(super) fn new(staging: PathBuf, fs: Arc<dyn StoreFs>, limits: StoreLimits) -> Self {
        let (number, leftovers) = left_behind(fs.as_ref(), &staging);
        let table = Mutex::new(Table::new(limits.remembered_uploads, number, leftovers));
        Self { staging, fs, limits, table }
    }

    pub(super) fn remove(&self, dir: &Path) -> io::Result<()> {
        match self.fs.remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Take an upload off the table and remove what it staged.
    pub(super) fn discard(&self, session: &Session) {
        lock(&self.table).remove(session);
        self.close(session);
    }

    /// Remove what an upload staged, unless its stream has just begun to finish it; the caller took it off the table.
    pub(super) fn abandon(&self, session: &Session) {
        if lock(&session.body).phase != Phase::Finishing {
            self.close(session);
        }
    }

    /// End an upload and remove what it staged.
    pub(super) fn close(&self, session: &Session) {
        {
            let mut body = lock(&session.body);
            body.phase = Phase::Closed;
            // Open files would keep their space on disk.
            body.files.clear();
            body.head = HeadKeeper::default();
        }
        if let Err(error) = self.remove(&session.dir) {
            tracing::warn!(upload_id = %session.id, %error, "could not remove a staging folder; it is tried again");
            let leftover = Leftover { dir: session.dir.clone(), bytes: session.header.bytes };
            lock(&self.table).leave(leftover);
        }
    }
}

/// What an earlier process left in the staging folder and its successor could not remove: it counts against the budget,
/// and its names are taken.
fn left_behind(fs: &dyn StoreFs, staging: &Path) -> (u64, Vec<Leftover>) {
    let names = fs.list(staging).unwrap_or_default();
    let number = |name: &std::ffi::OsString| name.to_str()?.rsplit_once('-')?.1.parse::<u64>().ok();
    let last = names.iter().filter_map(number).max().unwrap_or(0);
    let bytes = |dir: &Path| {
        let files = fs.list(dir).unwrap_or_default();
        files.iter().filter_map(|file| fs.metadata(&dir.join(file)).ok()).map(|found| found.bytes).sum()
    };
    let leftover = |name: &std::ffi::OsString| {
        let dir = staging.join(name);
        Leftover { bytes: bytes(&dir), dir }
    };
    (last, names.iter().map(leftover).collect())
}
