//! What this room's errors are to whoever asked.

use std::time::Duration;

use super::disk_fault::DiskFault;
use super::error::AdapterError;
use super::upload_id::InvalidUploadId;
use crate::types::{AdapterName, Class, Problem, Subject, ToProblem};

/// A wait after which an upload slot, staging space or a slot on the device may be free.
const RETRY: Duration = Duration::from_secs(1);

/// A wait after which the store has tried again what it could not read.
const RETRY_STORE: Duration = Duration::from_secs(5);

impl ToProblem for InvalidUploadId {
    fn to_problem(&self) -> Problem {
        Problem::invalid("INVALID_FIELD", "upload_id", self).with("upload_id", &self.upload_id)
    }
}

impl ToProblem for AdapterError {
    fn to_problem(&self) -> Problem {
        use AdapterError as E;
        let is = |class, reason| Problem::new(class, reason, self);
        let bad = |reason, field| Problem::invalid(reason, field, self);
        let quota = |reason, quota| Problem::quota(reason, quota, self);
        let unmet = |reason, kind, of: &dyn std::fmt::Display| {
            is(Class::Unmet, reason).about(Subject::Condition { kind, of: of.to_string() })
        };
        match self {
            E::MissingFile { path } => bad("MISSING_FILE", "header.files").with("path", path),
            E::UnsupportedFormat { path, format } => {
                bad("UNSUPPORTED_FORMAT", "header.files.path").with("path", path).with("format", format)
            }
            E::UnknownFile { path } => bad("UNKNOWN_FILE", "header.files.path").with("path", path),
            E::BadPath { path } => bad("BAD_PATH", "header.files.path").with("path", path),
            E::DuplicateFile { path } => bad("DUPLICATE_FILE", "header.files.path").with("path", path),
            E::BadDigest { path } => bad("BAD_DIGEST", "header.files.sha256").with("path", path),
            E::EmptyFile { path } => bad("EMPTY_FILE", "header.files.size").with("path", path),
            E::TooManyFiles { files, max } => {
                bad("TOO_MANY_FILES", "header.files").with("files", files).with("max", max)
            }
            E::FileTooLarge { path, bytes, max } => {
                bad("UPLOAD_TOO_LARGE", "header.files.size").with("path", path).with("bytes", bytes).with("max", max)
            }
            E::AdapterTooLarge { bytes, max } => {
                bad("UPLOAD_TOO_LARGE", "header.files.size").with("bytes", bytes).with("max", max)
            }
            E::LargerThanMemory { bytes, max } => {
                quota("LOAD_MEMORY_TOO_SMALL", "load_memory").with("bytes", bytes).with("max", max)
            }
            E::UnknownFileIndex { index, files } => {
                bad("UNKNOWN_FILE_INDEX", "chunk.file_index").with("index", index).with("files", files)
            }
            E::EmptyChunk { path } => bad("EMPTY_CHUNK", "chunk.data").with("path", path),
            E::ChunkTooLarge { bytes, max } => {
                bad("CHUNK_TOO_LARGE", "chunk.data").with("bytes", bytes).with("max", max)
            }
            E::WrongOffset { path, expected, got } => is(Class::OutOfRange, "UPLOAD_OFFSET_MISMATCH")
                .about(Subject::Field("chunk.offset".to_owned()))
                .with("path", path)
                .with("expected", expected)
                .with("got", got),
            E::TooManyBytes { path, declared, got } => {
                bad("TOO_MANY_BYTES", "chunk.data").with("path", path).with("declared", declared).with("got", got)
            }
            E::Truncated { path, declared, got } => {
                bad("TRUNCATED", "header.files.size").with("path", path).with("declared", declared).with("got", got)
            }
            E::ChecksumMismatch { path, declared, actual } => bad("CHECKSUM_MISMATCH", "header.files.sha256")
                .with("path", path)
                .with("declared", declared)
                .with("actual", actual),
            E::TooManyUploads { open, max } => {
                is(Class::Exhausted, "TOO_MANY_UPLOADS").with("open", open).with("max", max).retry_after(RETRY)
            }
            E::UploadsOfClient { open, max, staged, requested, max_staged } => is(Class::Exhausted, "TOO_MANY_UPLOADS")
                .with("share_of", "client")
                .with("open", open)
                .with("max", max)
                .with("staged", staged)
                .with("requested", requested)
                .with("max_staged", max_staged)
                .retry_after(RETRY),
            E::PinLimit { name, bytes, pinned, max, pinned_bytes, max_bytes } => quota("PIN_LIMIT", "pinned_adapters")
                .about(adapter(name))
                .with("bytes", bytes)
                .with("pinned", pinned)
                .with("max", max)
                .with("pinned_bytes", pinned_bytes)
                .with("max_bytes", max_bytes),
            E::PinsOfClient { name, pinned, max } => quota("PIN_LIMIT", "pinned_adapters")
                .about(adapter(name))
                .with("share_of", "client")
                .with("pinned", pinned)
                .with("max", max),
            E::StagingFull { requested, used, max } => is(Class::Exhausted, "STAGING_FULL")
                .with("requested", requested)
                .with("used", used)
                .with("max", max)
                .retry_after(RETRY),
            E::UnknownUpload { upload_id } => is(Class::NotFound, "UPLOAD_NOT_FOUND")
                .about(Subject::Upload(upload_id.to_string()))
                .with("upload_id", upload_id),
            E::UploadTakenOver { upload_id } => is(Class::Conflict, "UPLOAD_TAKEN_OVER").with("upload_id", upload_id),
            E::UploadBusy { upload_id } => {
                is(Class::Unavailable, "UPLOAD_BUSY").with("upload_id", upload_id).retry_after(RETRY)
            }
            E::UploadIdReused { upload_id } => bad("UPLOAD_ID_REUSED", "header.upload_id").with("upload_id", upload_id),
            E::TooManyAdapters { count, max } => {
                quota("TOO_MANY_ADAPTERS", "adapters").with("count", count).with("max", max)
            }
            E::StoreFull { requested, used, max } => {
                quota("STORE_FULL", "store_bytes").with("requested", requested).with("used", used).with("max", max)
            }
            E::NotFound { name } => is(Class::NotFound, "ADAPTER_NOT_FOUND").about(adapter(name)).with("adapter", name),
            E::AlreadyExists { name, actual } => is(Class::AlreadyExists, "ADAPTER_ALREADY_EXISTS")
                .about(adapter(name))
                .with("adapter", name)
                .with("version", actual),
            E::VersionMismatch { name, expected, actual } => {
                let problem = is(Class::Conflict, "ADAPTER_VERSION_MISMATCH")
                    .about(adapter(name))
                    .with("adapter", name)
                    .with("expected", expected);
                match actual {
                    Some(actual) => problem.with("actual", actual),
                    None => problem,
                }
            }
            E::TooLargeForDevice { version, bytes, max } => {
                unmet("ADAPTER_TOO_LARGE_FOR_DEVICE", "DEVICE_MEMORY", version).with("bytes", bytes).with("max", max)
            }
            E::PinnedFull { version, bytes, pinned_bytes, max_bytes, pinned_slots, max_slots } => {
                quota("ADAPTER_CAPACITY", "pinned_adapters")
                    .with("version", version)
                    .with("bytes", bytes)
                    .with("pinned_bytes", pinned_bytes)
                    .with("max_bytes", max_bytes)
                    .with("pinned_slots", pinned_slots)
                    .with("max_slots", max_slots)
            }
            E::Outgrown { version, bytes, reserved, free } => is(Class::Unavailable, "ADAPTER_LOADING")
                .with("version", version)
                .with("bytes", bytes)
                .with("reserved", reserved)
                .with("free", free)
                .retry_after(RETRY),
            E::SetAside { name, version, faults, fault: _ } => unmet("ADAPTER_SET_ASIDE", "SOUND_ADAPTER", name)
                .about(adapter(name))
                .with("adapter", name)
                .with("version", version)
                .with("faults", faults),
            E::VersionSetAside(version, faults, _) => {
                unmet("ADAPTER_SET_ASIDE", "SOUND_ADAPTER", version).with("version", version).with("faults", faults)
            }
            E::InUse { version, leases } => {
                unmet("ADAPTER_IN_USE", "IN_USE", version).with("version", version).with("leases", leases)
            }
            E::LoadFailed { source, .. } => source.to_problem().of_stored(),
            E::LoadAbandoned { version } => {
                is(Class::Unavailable, "ADAPTER_LOADING").with("version", version).retry_after(RETRY)
            }
            E::Io { action, fault, .. } => disk(self, action, *fault),
            E::Unreadable { name, .. } => is(Class::Unavailable, "ADAPTER_UNREADABLE")
                .about(adapter(name))
                .with("adapter", name)
                .retry_after(RETRY_STORE),
            E::NewerFormat { name, format, known } => unmet("STORE_FORMAT_NEWER", "STORE_FORMAT", name)
                .with("adapter", name)
                .with("format", format)
                .with("known", known),
            E::BaseMismatch { name, version, stored, present } => unmet("BASE_MISMATCH", "BASE_MODEL", name)
                .with("adapter", name)
                .with("version", version)
                .with("adapter_base", stored)
                .with("served_base", present),
            E::FilesMissing { version } => is(Class::DataLoss, "ADAPTER_FILES_MISSING")
                .with("version", version)
                .report("the files of a stored adapter are missing", self),
            E::Corrupt { version, path } => is(Class::DataLoss, "ADAPTER_CORRUPT")
                .with("version", version)
                .with("path", path)
                .report("a stored adapter is damaged", self),
            E::Encoding { .. }
            | E::StoreLocked { .. }
            | E::NotALock { .. }
            | E::NotAFolder { .. }
            | E::NamesMissing { .. }
            | E::StoreUnreadable { .. }
            | E::UnknownVersion { .. } => Problem::internal("adapters", self),
        }
    }
}

fn adapter(name: &AdapterName) -> Subject {
    Subject::Adapter(name.to_string())
}

/// What a client can do about a disk, and what only the operator can. The system's own words are for the log.
fn disk(error: &AdapterError, action: &'static str, fault: DiskFault) -> Problem {
    let text = format!("{action} failed: {fault}");
    let is = |class, reason| Problem::new(class, reason, &text);
    let quota = |reason, quota| Problem::quota(reason, quota, &text);
    let operators =
        |reason| is(Class::Unmet, reason).about(Subject::Condition { kind: "STORE", of: action.to_owned() });
    let again = |class, reason| is(class, reason).retry_after(RETRY_STORE);
    let problem = match fault {
        DiskFault::Full => quota("DISK_FULL", "disk"),
        DiskFault::Quota => quota("DISK_QUOTA_EXCEEDED", "disk_quota"),
        DiskFault::ReadOnly => operators("STORE_READ_ONLY"),
        DiskFault::Denied => operators("STORE_ACCESS_DENIED"),
        DiskFault::TooManyFiles => again(Class::Exhausted, "TOO_MANY_OPEN_FILES"),
        DiskFault::Memory => again(Class::Exhausted, "HOST_OUT_OF_MEMORY"),
        DiskFault::Device => again(Class::Unavailable, "DISK_ERROR"),
        DiskFault::Other => again(Class::Unavailable, "STORE_ERROR"),
    };
    problem.with("action", action).report("the disk of the store fails", error)
}
