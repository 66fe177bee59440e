//! Small files put in place durably: written beside their place, synced, renamed.

use std::path::{Path, PathBuf};

use super::super::error::AdapterError;
use super::super::fs::{StoreFile, StoreFs};
use super::layout::Layout;
use super::manifest::TEMPORARY;
use super::record::Record;

pub(super) fn write_record(layout: &Layout, fs: &dyn StoreFs, record: &Record) -> Result<(), AdapterError> {
    let bytes = record.encode().map_err(|source| AdapterError::Encoding { what: "the store's record", source })?;
    put_in_place(fs, &layout.root, "store.json", &bytes)?;
    fs.sync_dir(&layout.root).map_err(AdapterError::io("syncing the store"))
}

/// Write a small file beside its place and rename it over what was there. The caller syncs the folder. What an earlier
/// attempt left behind is in nobody's way.
pub(super) fn put_in_place(fs: &dyn StoreFs, folder: &Path, file: &str, bytes: &[u8]) -> Result<(), AdapterError> {
    let io = AdapterError::io;
    let (temporary, mut open) = create_temporary(fs, folder, file).map_err(io("creating a manifest"))?;
    let written = open.append(bytes).map_err(io("writing a manifest"));
    let written = written.and_then(|()| open.sync().map_err(io("syncing a manifest")));
    drop(open);
    let written =
        written.and_then(|()| fs.rename(&temporary, &folder.join(file)).map_err(io("putting a manifest in place")));
    written.inspect_err(|_| match fs.remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "could not remove a temporary manifest; the next start does");
        }
        _ => {}
    })
}

fn create_temporary(fs: &dyn StoreFs, folder: &Path, file: &str) -> std::io::Result<(PathBuf, Box<dyn StoreFile>)> {
    let mut number = 0;
    loop {
        let path = folder.join(format!("{file}.{number}{TEMPORARY}"));
        match fs.create_file(&path) {
            Ok(open) => return Ok((path, open)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Err(error) => return Err(error),
        }
    }
}
