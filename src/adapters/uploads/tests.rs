use std::path::Path;
use std::time::Duration;

use super::*;
use crate::adapters::files::{CONFIG_FILE, MAX_CHUNK_BYTES, WEIGHTS_FILE};
use crate::adapters::fs::DiskFs;
use crate::adapters::testing::{EIO, EMFILE, ENOSPC, Fault, FaultyFs, contents, header, tree};
use crate::adapters::{AdapterBytes, DiskFault};
use crate::types::ClientKey;

struct Desk {
    folder: tempfile::TempDir,
    uploads: Uploads,
    now: Instant,
}

impl Desk {
    fn new(limits: StoreLimits) -> Self {
        Self::with_fs(limits, Arc::new(DiskFs))
    }

    fn with_fs(limits: StoreLimits, fs: Arc<dyn StoreFs>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uploads = Uploads::new(folder.path().to_owned(), fs, limits);
        Self { folder, uploads, now: Instant::now() }
    }

    fn begin(&self, header: UploadHeader) -> Result<UploadSession, AdapterError> {
        let checked = header.check(self.uploads.limits())?;
        match self.uploads.begin(checked, header.upload_id, header.client, self.now, || Ok(()))? {
            Begin::Open(session) => Ok(session),
            Begin::Finished(_) => panic!("nothing was finished"),
        }
    }

    fn is_clean(&self) -> bool {
        self.uploads.open() == (0, 0) && std::fs::read_dir(self.folder.path()).unwrap().next().is_none()
    }

    fn send(&self, session: &mut UploadSession, files: &[(&str, Vec<u8>)]) -> Result<(), AdapterError> {
        for (index, (_, content)) in files.iter().enumerate() {
            let mut offset = session.committed()[index].committed;
            for chunk in content[offset as usize..].chunks(300) {
                offset = session.write(index, offset, chunk, self.now)?;
            }
        }
        Ok(())
    }
}

#[test]
fn an_upload_in_chunks_becomes_verified_files() {
    let desk = Desk::new(StoreLimits::default());
    let mut files = contents(7);
    files.push(("README.md", b"ignored".to_vec()));
    let mut session = desk.begin(header("a", &files, None)).unwrap();
    desk.send(&mut session, &files).unwrap();
    let staged = session.finish().unwrap();
    let found = tree(staged.dir());
    assert_eq!(found.len(), 2, "companions are not kept");
    assert_eq!(found[Path::new(CONFIG_FILE)], files[0].1);
    assert_eq!(found[Path::new(WEIGHTS_FILE)], files[1].1);
    drop(staged);
    assert!(desk.is_clean());
}

#[test]
fn a_chunk_that_breaks_a_rule_is_refused_and_changes_nothing() {
    let desk = Desk::new(StoreLimits::default());
    let files = contents(7);
    let mut session = desk.begin(header("a", &files, None)).unwrap();
    let now = desk.now;
    session.write(1, 0, &files[1].1[..10], now).unwrap();
    assert!(matches!(session.write(2, 0, b"x", now), Err(AdapterError::UnknownFileIndex { index: 2, files: 2 })));
    assert!(matches!(session.write(1, 10, b"", now), Err(AdapterError::EmptyChunk { .. })));
    for got in [0, 9, 11, u64::MAX] {
        let result = session.write(1, got, b"x", now);
        assert!(matches!(result, Err(AdapterError::WrongOffset { expected: 10, got: found, .. }) if found == got));
    }
    let result = session.write(1, 10, &[0; 991], now);
    assert!(matches!(result, Err(AdapterError::TooManyBytes { declared: 1000, got: 1001, .. })));
    let result = session.write(1, 10, &vec![0; MAX_CHUNK_BYTES + 1], now);
    assert!(matches!(result, Err(AdapterError::ChunkTooLarge { .. })));
    assert_eq!(session.committed()[1].committed, 10);
    desk.send(&mut session, &files).unwrap();
    session.finish().unwrap();
}

#[test]
fn a_short_upload_is_discarded_unless_it_can_be_resumed() {
    let desk = Desk::new(StoreLimits::default());
    let files = contents(7);
    for id in [None, Some("id")] {
        let mut session = desk.begin(header("a", &files, id)).unwrap();
        session.write(1, 0, &files[1].1, desk.now).unwrap();
        let result = session.finish();
        assert!(matches!(result, Err(AdapterError::Truncated { got: 0, .. })));
        assert_eq!(desk.is_clean(), id.is_none());
    }
    let mut session = desk.begin(header("a", &files, Some("id"))).unwrap();
    session.write(0, 0, &files[0].1, desk.now).unwrap();
    session.finish().unwrap();
}

#[test]
fn a_wrong_upload_is_discarded() {
    let desk = Desk::new(StoreLimits::default());
    let files = contents(7);
    let mut session = desk.begin(header("a", &files, Some("id"))).unwrap();
    desk.send(&mut session, &[files[0].clone(), (WEIGHTS_FILE, vec![8; 1000])]).unwrap();
    assert!(matches!(session.finish(), Err(AdapterError::ChecksumMismatch { path, .. }) if path == WEIGHTS_FILE));
    assert!(desk.is_clean());
}

#[test]
fn an_interrupted_upload_goes_on_where_it_stopped() {
    let desk = Desk::new(StoreLimits::default());
    let files = contents(7);
    let head = header("a", &files, Some("id"));
    let mut session = desk.begin(head.clone()).unwrap();
    session.write(1, 0, &files[1].1[..400], desk.now).unwrap();
    drop(session);
    let UploadStatus::Open(progress) = desk.uploads.status(&"id".parse().unwrap()).unwrap() else { panic!() };
    assert_eq!((progress[0].committed, progress[1].committed), (0, 400));

    let mut resumed = desk.begin(head).unwrap();
    desk.send(&mut resumed, &files).unwrap();
    let staged = resumed.finish().unwrap();
    assert_eq!(tree(staged.dir())[Path::new(WEIGHTS_FILE)], files[1].1);
}

#[test]
fn a_resuming_stream_takes_over_from_one_that_hangs() {
    let desk = Desk::new(StoreLimits::default());
    let files = contents(7);
    let mut hanging = desk.begin(header("a", &files, Some("id"))).unwrap();
    let mut session = desk.begin(header("a", &files, Some("id"))).unwrap();
    assert!(matches!(hanging.write(0, 0, b"{", desk.now), Err(AdapterError::UploadTakenOver { .. })));
    drop(hanging);
    desk.send(&mut session, &files).unwrap();
    let staged = session.finish().unwrap();
    assert!(matches!(desk.begin(header("a", &files, Some("id"))), Err(AdapterError::UploadBusy { .. })));
    drop(staged);
    assert!(desk.is_clean());
}

#[test]
fn an_upload_without_an_id_ends_with_its_stream() {
    let desk = Desk::new(StoreLimits::default());
    drop(desk.begin(header("a", &contents(1), None)).unwrap());
    assert!(desk.is_clean());
}

#[test]
fn an_id_stands_for_one_header() {
    let desk = Desk::new(StoreLimits::default());
    let _session = desk.begin(header("a", &contents(1), Some("id"))).unwrap();
    let result = desk.begin(header("a", &contents(2), Some("id")));
    assert!(matches!(result, Err(AdapterError::UploadIdReused { .. })));
}

#[test]
fn an_idle_upload_expires_and_its_stream_learns_of_it() {
    let desk = Desk::new(StoreLimits { idle: Duration::from_secs(30), ..StoreLimits::default() });
    let files = contents(1);
    let mut session = desk.begin(header("a", &files, Some("id"))).unwrap();
    let later = desk.now + Duration::from_secs(20);
    session.write(0, 0, &files[0].1[..1], later).unwrap();
    desk.uploads.expire(later + Duration::from_secs(30));
    assert_eq!(desk.uploads.open().0, 1, "exactly the limit is not over it");
    desk.uploads.expire(later + Duration::from_secs(31));
    assert!(desk.is_clean());
    let result = session.write(0, 1, b"x", later + Duration::from_secs(31));
    assert!(matches!(result, Err(AdapterError::UnknownUpload { .. })));
}

#[test]
fn open_uploads_and_staged_bytes_are_bounded_and_given_back() {
    let files = contents(1);
    let bytes: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    let limits = StoreLimits { max_uploads: 2, max_staged_bytes: 2 * bytes, ..StoreLimits::default() };
    let desk = Desk::new(limits);
    let first = desk.begin(header("a", &files, None)).unwrap();
    let _second = desk.begin(UploadHeader { client: ClientKey([1; 32]), ..header("b", &files, None) }).unwrap();
    let result = desk.begin(header("c", &files, None));
    assert!(matches!(result, Err(AdapterError::TooManyUploads { open: 2, max: 2 })));
    drop(first);
    let _third = desk.begin(header("c", &files, None)).unwrap();

    let desk = Desk::new(StoreLimits { max_staged_bytes: bytes + 1, ..StoreLimits::default() });
    let _first = desk.begin(header("a", &files, None)).unwrap();
    let result = desk.begin(header("b", &files, None));
    assert!(matches!(result, Err(AdapterError::StagingFull { used, .. }) if used == bytes));
}

#[test]
fn a_full_disk_at_any_step_is_a_typed_error_and_leaves_nothing() {
    let files = contents(3);
    let attempt = |at| {
        let fs = FaultyFs::new(Fault::ChangeErrno { number: ENOSPC, times: 1 }, at);
        let desk = Desk::with_fs(StoreLimits::default(), Arc::new(fs.clone()));
        let result = desk.begin(header("a", &files, Some("id"))).and_then(|mut session| {
            desk.send(&mut session, &files)?;
            session.finish()
        });
        let failed = matches!(result, Err(AdapterError::Io { fault: DiskFault::Full, .. }));
        assert!(failed || result.is_ok(), "{result:?}");
        drop(result);
        assert!(desk.is_clean(), "change {at}");
        (failed, fs.changes())
    };
    let (failed, changes) = attempt(usize::MAX);
    assert!(!failed && changes > 8);
    // The last change is the removal of the folder when the result is dropped.
    for at in 0..changes - 1 {
        assert!(attempt(at).0, "change {at}");
    }
}

#[test]
fn what_cannot_be_removed_counts_until_it_is_gone() {
    let fs = FaultyFs::new(Fault::None, 0);
    let bytes = header("a", &contents(1), None).files.iter().map(|file| file.size).sum::<u64>();
    let limits = StoreLimits { max_uploads: 2, max_staged_bytes: bytes * 3 / 2, ..StoreLimits::default() };
    let desk = Desk::with_fs(limits.clone(), Arc::new(fs.clone()));
    let session = desk.begin(header("a", &contents(1), None)).unwrap();
    fs.deny(desk.folder.path(), EIO);
    drop(session);
    assert_eq!(desk.uploads.open(), (1, bytes), "it is over, but its bytes are there");
    let result = desk.begin(header("b", &contents(2), None));
    assert!(matches!(result, Err(AdapterError::StagingFull { used, .. }) if used == bytes), "{result:?}");
    fs.mend();
    // A later process finds what the disk kept, and does not trip over it.
    let later = Uploads::new(desk.folder.path().to_owned(), Arc::new(fs.clone()), limits);
    assert_eq!(later.open().0, 1);
    drop(desk.begin(header("b", &contents(2), None)).unwrap());
    assert!(desk.is_clean());
    later.expire(desk.now);
    assert_eq!(later.open(), (0, 0));
}

#[test]
fn a_folder_left_by_an_earlier_process_blocks_no_upload() {
    let fs = FaultyFs::new(Fault::None, 0);
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("upload-1");
    std::fs::create_dir(&left).unwrap();
    fs.deny(&left, EIO);
    let uploads = Uploads::new(folder.path().to_owned(), Arc::new(fs), StoreLimits::default());
    let checked = header("a", &contents(1), None).check(uploads.limits()).unwrap();
    let begun = uploads.begin(checked, None, ClientKey::LOCAL, Instant::now(), || Ok(()));
    assert!(matches!(begun, Ok(Begin::Open(_))), "{begun:?}");
    assert_eq!(uploads.open().0, 2);
}

#[test]
fn one_client_cannot_hold_all_uploads_nor_all_staged_bytes() {
    let files = contents(1);
    let bytes: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    let of = |client: u8, name: &str| UploadHeader { client: ClientKey([client; 32]), ..header(name, &files, None) };
    let desk = Desk::new(StoreLimits { max_uploads: 4, max_uploads_per_client: 2, ..StoreLimits::default() });
    let first = desk.begin(of(1, "a")).unwrap();
    let _second = desk.begin(of(1, "b")).unwrap();
    let refused = desk.begin(of(1, "c"));
    assert!(matches!(refused, Err(AdapterError::UploadsOfClient { open: 2, max: 2, .. })));
    let _other = desk.begin(of(2, "c")).unwrap();
    drop(first);
    let _third = desk.begin(of(1, "d")).unwrap();

    let desk = Desk::new(StoreLimits { max_staged_bytes: 3 * bytes, ..StoreLimits::default() });
    let _first = desk.begin(of(1, "a")).unwrap();
    let refused = desk.begin(of(1, "b"));
    assert!(matches!(refused, Err(AdapterError::UploadsOfClient { open: 1, staged, .. }) if staged == bytes));
    let _other = desk.begin(of(2, "b")).unwrap();
}

#[test]
fn what_is_staged_is_read_with_patience_and_a_disk_that_fails_is_named() {
    let fs = FaultyFs::new(Fault::None, 0);
    let desk = Desk::with_fs(StoreLimits::default(), Arc::new(fs.clone()));
    let files = contents(7);
    let mut session = desk.begin(header("a", &files, None)).unwrap();
    desk.send(&mut session, &files).unwrap();
    let staged = session.finish().unwrap();
    assert_eq!(staged.bytes_to_read(), files.iter().map(|(_, content)| content.len() as u64).sum::<u64>());
    let right = |read: Result<AdapterBytes, AdapterError>| {
        read.is_ok_and(|read| (read.config, read.weights) == (files[0].1.clone(), files[1].1.clone()))
    };
    for unlucky in [Fault::once(EIO), Fault::once(EMFILE), Fault::ShortRead] {
        for at in 0..2 {
            fs.arm(unlucky, at);
            assert!(right(staged.read()), "{unlucky:?} at {at}");
        }
    }
    for (number, expected) in [(EIO, DiskFault::Device), (EMFILE, DiskFault::TooManyFiles), (12, DiskFault::Memory)] {
        fs.deny(staged.dir(), number);
        let failed = staged.read();
        assert!(matches!(&failed, Err(AdapterError::Io { fault, .. }) if *fault == expected), "{failed:?}");
        fs.mend();
    }
    // Something else in the place of a file is not waited for.
    let weights = staged.dir().join(WEIGHTS_FILE);
    std::fs::remove_file(&weights).unwrap();
    crate::files::testing::fifo(&weights);
    assert!(matches!(staged.read(), Err(AdapterError::Io { .. })));
    drop(staged);
    assert!(desk.is_clean());
}
