//! Everything that can go wrong in this room, with the numbers a person needs to act.

use std::{io, path::PathBuf, sync::Arc};

use super::disk_fault::DiskFault;
use super::upload_id::UploadId;
use crate::types::{AdapterFault, AdapterName, AdapterVersion, BaseDigest, Sha256Digest, ToProblem};

/// The error a loader reported; it says itself what it is to those who wait for the adapter.
pub type LoadFailure = Arc<dyn ToProblem>;

/// Errors of storing, naming and placing adapters.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    // --- the header of an upload ---------------------------------------------------------------------------------
    /// A required file is not in the header.
    #[error("the upload has no {path}")]
    MissingFile {
        /// `adapter_config.json` or `adapter_model.safetensors`.
        path: &'static str,
    },
    /// A format that can execute code or that this server does not read.
    #[error(
        "{path:?} is {format}; only safetensors weights in one file are accepted (`polydelta adapter upload` makes them of \
         adapter_model.bin and of several parts)"
    )]
    UnsupportedFormat {
        /// As declared.
        path: String,
        /// For people, e.g. `a pickle`.
        format: &'static str,
    },
    /// Not a file of an adapter folder.
    #[error("{path:?} is not a file of an adapter")]
    UnknownFile {
        /// As declared, shortened to 128 characters.
        path: String,
    },
    /// Absolute, nested, or with `..`, NUL or control characters.
    #[error("{path:?} is not a plain file name")]
    BadPath {
        /// As declared, shortened to 128 characters.
        path: String,
    },
    /// The same path twice.
    #[error("{path:?} is declared twice")]
    DuplicateFile {
        /// As declared.
        path: String,
    },
    /// Not 64 lower-case hexadecimal digits.
    #[error("sha256 of {path:?} is not 64 lower-case hexadecimal digits")]
    BadDigest {
        /// The file.
        path: String,
    },
    /// A required file of no bytes.
    #[error("{path:?} is declared with 0 bytes")]
    EmptyFile {
        /// The file.
        path: String,
    },
    /// More files than allowed.
    #[error("{files} files are declared, the limit is {max}")]
    TooManyFiles {
        /// Declared.
        files: usize,
        /// Allowed.
        max: usize,
    },
    /// One file is larger than allowed.
    #[error("{path:?} has {bytes} bytes, the limit is {max}")]
    FileTooLarge {
        /// The file.
        path: String,
        /// Declared.
        bytes: u64,
        /// Allowed.
        max: u64,
    },
    /// All files together are larger than allowed.
    #[error("the adapter has {bytes} bytes, the limit is {max}")]
    AdapterTooLarge {
        /// Declared.
        bytes: u64,
        /// Allowed.
        max: u64,
    },
    /// There is no memory to load it.
    #[error("the adapter has {bytes} bytes, there is memory to load {max} (--load-memory)")]
    LargerThanMemory {
        /// Declared.
        bytes: u64,
        /// The most that can be loaded.
        max: u64,
    },

    // --- using ---------------------------------------------------------------------------------------------------
    /// Too many requests in a row have failed for the sake of this version.
    #[error(
        "adapter {name} is set aside: the last {faults} requests on it failed, {fault}; load it by name to try it \
         again, or upload another version"
    )]
    SetAside {
        /// The name asked for.
        name: AdapterName,
        /// The version it stands for.
        version: AdapterVersion,
        /// Requests in a row.
        faults: u32,
        /// What the last one failed of.
        fault: AdapterFault,
    },
    /// As many have failed for the sake of a mix, or of files that requests brought.
    #[error("version {0} is set aside: the last {1} requests on it failed, {2}; ask for something else")]
    VersionSetAside(AdapterVersion, u32, AdapterFault),

    // --- chunks --------------------------------------------------------------------------------------------------
    /// A chunk for a file the header does not have.
    #[error("file_index {index} is outside the {files} files of the header")]
    UnknownFileIndex {
        /// Given.
        index: usize,
        /// In the header.
        files: usize,
    },
    /// A chunk without data.
    #[error("a chunk of {path:?} is empty")]
    EmptyChunk {
        /// The file.
        path: String,
    },
    /// A chunk above [`MAX_CHUNK_BYTES`](super::MAX_CHUNK_BYTES).
    #[error("a chunk has {bytes} bytes, the limit is {max}")]
    ChunkTooLarge {
        /// Given.
        bytes: usize,
        /// Allowed.
        max: usize,
    },
    /// Chunks of a file come in order and without gaps.
    #[error("the next chunk of {path:?} starts at {expected}, got {got}")]
    WrongOffset {
        /// The file.
        path: String,
        /// Committed so far.
        expected: u64,
        /// Given.
        got: u64,
    },
    /// More data than declared.
    #[error("{path:?} is declared with {declared} bytes, the chunk would end at {got}")]
    TooManyBytes {
        /// The file.
        path: String,
        /// Declared.
        declared: u64,
        /// Where the chunk would end.
        got: u64,
    },
    /// The stream ended before every declared byte came.
    #[error("{path:?} is declared with {declared} bytes, {got} came")]
    Truncated {
        /// The first incomplete file.
        path: String,
        /// Declared.
        declared: u64,
        /// Received.
        got: u64,
    },
    /// The bytes are not the ones declared.
    #[error("{path:?} has sha256 {actual}, declared was {declared}")]
    ChecksumMismatch {
        /// The file.
        path: String,
        /// From the header.
        declared: Sha256Digest,
        /// Of the bytes received.
        actual: Sha256Digest,
    },

    // --- upload sessions and quotas ------------------------------------------------------------------------------
    /// As many uploads as allowed are open.
    #[error("{open} uploads are open, the limit is {max}")]
    TooManyUploads {
        /// Open now.
        open: usize,
        /// Allowed.
        max: usize,
    },
    /// A client has as many uploads open, or as many bytes declared in them, as one client may.
    #[error(
        "{open} uploads of this client are open with {staged} bytes, one more has {requested}; a client may have {max} \
         with {max_staged} bytes"
    )]
    UploadsOfClient {
        /// Open now.
        open: usize,
        /// Allowed.
        max: usize,
        /// Declared by them.
        staged: u64,
        /// Declared by this upload.
        requested: u64,
        /// Allowed where there is more than one.
        max_staged: u64,
    },
    /// There are as many pinned adapters, or as many bytes of them, as may be pinned.
    #[error(
        "adapter {name} cannot be pinned: {pinned} adapters with {pinned_bytes} bytes are, it has {bytes}; {max} with \
         {max_bytes} bytes may be"
    )]
    PinLimit {
        /// The adapter.
        name: AdapterName,
        /// Bytes it takes on the device, or its files where that is not known yet.
        bytes: u64,
        /// Pinned now, others.
        pinned: usize,
        /// `--max-pinned-adapters`.
        max: usize,
        /// Of those pinned now.
        pinned_bytes: u64,
        /// The same share of the adapters' memory.
        max_bytes: u64,
    },
    /// A client has pinned as many adapters as one client may.
    #[error("adapter {name} cannot be pinned: {pinned} adapters are pinned by this client, the limit for one is {max}")]
    PinsOfClient {
        /// The adapter.
        name: AdapterName,
        /// Pinned now, others.
        pinned: usize,
        /// Three quarters of `--max-pinned-adapters`.
        max: usize,
    },
    /// Open uploads have claimed the staging space.
    #[error("the upload needs {requested} staged bytes; {used} of {max} are in use")]
    StagingFull {
        /// Declared by this upload.
        requested: u64,
        /// Declared by other open uploads.
        used: u64,
        /// Allowed.
        max: u64,
    },
    /// No open or recently finished upload has this id (it may have expired).
    #[error("there is no upload {upload_id}")]
    UnknownUpload {
        /// Given.
        upload_id: UploadId,
    },
    /// Another stream resumed this upload.
    #[error("upload {upload_id} was resumed by another stream")]
    UploadTakenOver {
        /// Of the session.
        upload_id: UploadId,
    },
    /// The upload is being opened, checked or published right now.
    #[error("upload {upload_id} is being processed")]
    UploadBusy {
        /// Given.
        upload_id: UploadId,
    },
    /// The id belongs to an upload with another header.
    #[error("upload_id {upload_id} was used with a different header")]
    UploadIdReused {
        /// Given.
        upload_id: UploadId,
    },
    /// The store holds as many names as allowed.
    #[error("the store holds {count} adapters, the limit is {max}")]
    TooManyAdapters {
        /// Names now.
        count: usize,
        /// Allowed.
        max: usize,
    },
    /// The store holds as many bytes as allowed.
    #[error("the adapter needs {requested} bytes of the store; {used} of {max} are in use")]
    StoreFull {
        /// Of this adapter.
        requested: u64,
        /// In the store.
        used: u64,
        /// Allowed.
        max: u64,
    },

    // --- names and versions --------------------------------------------------------------------------------------
    /// No adapter has this name.
    #[error("there is no adapter {name}")]
    NotFound {
        /// Given.
        name: AdapterName,
    },
    /// The name must not exist, but does.
    #[error("adapter {name} already exists as version {actual}")]
    AlreadyExists {
        /// Given.
        name: AdapterName,
        /// Bound now.
        actual: AdapterVersion,
    },
    /// The name is bound to another version than expected.
    #[error("adapter {name} was expected at version {expected}, it is {}", actual.map_or_else(|| "absent".to_owned(), |actual| actual.to_string()))]
    VersionMismatch {
        /// Given.
        name: AdapterName,
        /// Given.
        expected: AdapterVersion,
        /// Bound now; `None`: the name does not exist.
        actual: Option<AdapterVersion>,
    },

    // --- the device ----------------------------------------------------------------------------------------------
    /// It would not fit even into an empty device.
    #[error("version {version} needs {bytes} bytes on the device, the budget is {max}")]
    TooLargeForDevice {
        /// The adapter.
        version: AdapterVersion,
        /// Needed.
        bytes: u64,
        /// `--adapter-memory`.
        max: u64,
    },
    /// Pinned adapters leave no room, so waiting would not help.
    #[error(
        "version {version} needs {bytes} bytes and a slot, but pinned adapters hold {pinned_bytes} of {max_bytes} \
         bytes and {pinned_slots} of {max_slots} slots"
    )]
    PinnedFull {
        /// The adapter.
        version: AdapterVersion,
        /// Needed.
        bytes: u64,
        /// Of pinned adapters.
        pinned_bytes: u64,
        /// Budget.
        max_bytes: u64,
        /// Of pinned adapters.
        pinned_slots: usize,
        /// Slots in all.
        max_slots: usize,
    },
    /// Compiled, it needs more than was reserved, and the difference is not free now. Ask again: the true size is
    /// known from here on.
    #[error("version {version} needs {bytes} bytes on the device, {reserved} were reserved and {free} are free")]
    Outgrown {
        /// The adapter.
        version: AdapterVersion,
        /// Needed.
        bytes: u64,
        /// Reserved.
        reserved: u64,
        /// Free beside the reservation.
        free: u64,
    },
    /// It cannot leave the device while requests run on it.
    #[error("version {version} is used by {leases} running requests")]
    InUse {
        /// The adapter.
        version: AdapterVersion,
        /// Requests that hold it.
        leases: usize,
    },
    /// The loader could not bring it to the device.
    #[error("version {version} could not be loaded: {source}")]
    LoadFailed {
        /// The adapter.
        version: AdapterVersion,
        /// What the loader said.
        source: LoadFailure,
    },
    /// A loader gave its ticket back without a result.
    #[error("the load of version {version} was given up")]
    LoadAbandoned {
        /// The adapter.
        version: AdapterVersion,
    },

    // --- the disk ------------------------------------------------------------------------------------------------
    /// A failure of the disk.
    #[error("{action} failed: {fault} ({source})")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What kind of failure it is.
        fault: DiskFault,
        /// The system's words.
        source: io::Error,
    },
    /// What is to be written cannot be put into words.
    #[error("writing {what}: {source}")]
    Encoding {
        /// A manifest or record.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// Another process uses this store.
    #[error("the store {} is used by another process", root.display())]
    StoreLocked {
        /// The folder.
        root: PathBuf,
    },
    /// A folder of the store is something else (a file, a symlink …).
    #[error("{} is not a folder", path.display())]
    NotAFolder {
        /// What was found.
        path: PathBuf,
    },
    /// The lock of a store is no regular file.
    #[error("{} is not a regular file; remove it if no server runs on this store", path.display())]
    NotALock {
        /// What was found.
        path: PathBuf,
    },
    /// The store has adapters, but nothing that says what they are called.
    #[error(
        "the store {} has {objects} objects but no names: it may be half restored. Restore `names`, or start with \
         --store-errors degraded; nothing is removed until then",
        root.display()
    )]
    NamesMissing {
        /// The folder.
        root: PathBuf,
        /// Versions whose files are there.
        objects: usize,
    },
    /// Parts of the store cannot be read, and it was to be opened whole or not at all.
    #[error("{count} entries of the store {} cannot be served, the first is {first}", root.display())]
    StoreUnreadable {
        /// The folder.
        root: PathBuf,
        /// How many.
        count: usize,
        /// The first and what is wrong with it.
        first: String,
    },
    /// The store has the adapter, but cannot read what it is bound to. It may be able to later.
    #[error("adapter {name} cannot be read from the store now: {reason}")]
    Unreadable {
        /// Given.
        name: AdapterName,
        /// The system's words.
        reason: String,
    },
    /// A later version of the server has written what the adapter is bound to.
    #[error(
        "adapter {name} was written in format {format} by a later version of the server; this one reads up to {known}"
    )]
    NewerFormat {
        /// Given.
        name: AdapterName,
        /// Found.
        format: u32,
        /// Highest that is read.
        known: u32,
    },
    /// The adapter was uploaded for another base model.
    #[error(
        "adapter {name} belongs to the base with digest {}, this server has {}: upload it again, or give its folder \
         with --adapter {name}=DIR, if it is meant for this one", stored.short(), present.short()
    )]
    BaseMismatch {
        /// Given.
        name: AdapterName,
        /// Bound now.
        version: AdapterVersion,
        /// What it was compiled for.
        stored: BaseDigest,
        /// What is served.
        present: BaseDigest,
    },
    /// A name is bound to the version, but its files are not there.
    #[error("the store has no files of version {version}: restore them, or upload it again")]
    FilesMissing {
        /// The adapter.
        version: AdapterVersion,
    },
    /// Stored bytes are not the ones that were uploaded.
    #[error("stored file {path:?} of version {version} is damaged")]
    Corrupt {
        /// The adapter.
        version: AdapterVersion,
        /// The file.
        path: String,
    },
    /// No files are kept for this version.
    #[error("the store has no version {version}")]
    UnknownVersion {
        /// Given.
        version: AdapterVersion,
    },
}
