//! Adapters and uploads.

use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::super::adapters::BadUploadStream;
use super::refusal::Refusal;
use super::{draining, internal, internal_error};
use crate::adapters::{AdapterError, CHAT_TEMPLATE_FILE, CONFIG_FILE, DiskFault, WEIGHTS_FILE};
use crate::delta::DeltaError;
use crate::delta::safetensors::SafetensorsError;
use crate::engine::{InstallError, StepError, TooLargeToLoad};
use crate::ops::OpsError;
use crate::text::ChatError;

/// A wait after which an upload slot, staging space or a slot on the device may be free.
const RETRY: Duration = Duration::from_secs(1);

/// A wait after which the store has tried again what it could not read.
const RETRY_STORE: Duration = Duration::from_secs(5);

const ADAPTER: &str = "polydelta.v1.Adapter";

fn bad(reason: &'static str, field: &str, error: &AdapterError) -> Refusal {
    Refusal::new(Code::InvalidArgument, reason, error).field(field, error)
}

fn exhausted(reason: &'static str, subject: &str, error: &dyn Error) -> Refusal {
    Refusal::new(Code::ResourceExhausted, reason, error).quota(subject, error)
}

pub(in crate::grpc) fn from_adapter(error: &AdapterError) -> Status {
    use AdapterError as E;
    let refusal = match error {
        E::MissingFile { path } => bad("MISSING_FILE", "header.files", error).with("path", path),
        E::UnsupportedFormat { path, format } => {
            bad("UNSUPPORTED_FORMAT", "header.files.path", error).with("path", path).with("format", format)
        }
        E::UnknownFile { path } => bad("UNKNOWN_FILE", "header.files.path", error).with("path", path),
        E::BadPath { path } => bad("BAD_PATH", "header.files.path", error).with("path", path),
        E::DuplicateFile { path } => bad("DUPLICATE_FILE", "header.files.path", error).with("path", path),
        E::BadDigest { path } => bad("BAD_DIGEST", "header.files.sha256", error).with("path", path),
        E::EmptyFile { path } => bad("EMPTY_FILE", "header.files.size", error).with("path", path),
        E::TooManyFiles { files, max } => {
            bad("TOO_MANY_FILES", "header.files", error).with("files", files).with("max", max)
        }
        E::FileTooLarge { path, bytes, max } => {
            bad("UPLOAD_TOO_LARGE", "header.files.size", error).with("path", path).with("bytes", bytes).with("max", max)
        }
        E::AdapterTooLarge { bytes, max } => {
            bad("UPLOAD_TOO_LARGE", "header.files.size", error).with("bytes", bytes).with("max", max)
        }
        E::LargerThanMemory { bytes, max } => {
            exhausted("LOAD_MEMORY_TOO_SMALL", "load_memory", error).with("bytes", bytes).with("max", max)
        }
        E::BadUploadId { upload_id } => bad("INVALID_FIELD", "upload_id", error).with("upload_id", upload_id),
        E::UnknownFileIndex { index, files } => {
            bad("UNKNOWN_FILE_INDEX", "chunk.file_index", error).with("index", index).with("files", files)
        }
        E::EmptyChunk { path } => bad("EMPTY_CHUNK", "chunk.data", error).with("path", path),
        E::ChunkTooLarge { bytes, max } => {
            bad("CHUNK_TOO_LARGE", "chunk.data", error).with("bytes", bytes).with("max", max)
        }
        E::WrongOffset { path, expected, got } => Refusal::new(Code::OutOfRange, "UPLOAD_OFFSET_MISMATCH", error)
            .field("chunk.offset", error)
            .with("path", path)
            .with("expected", expected)
            .with("got", got),
        E::TooManyBytes { path, declared, got } => {
            bad("TOO_MANY_BYTES", "chunk.data", error).with("path", path).with("declared", declared).with("got", got)
        }
        E::Truncated { path, declared, got } => {
            bad("TRUNCATED", "header.files.size", error).with("path", path).with("declared", declared).with("got", got)
        }
        E::ChecksumMismatch { path, declared, actual } => bad("CHECKSUM_MISMATCH", "header.files.sha256", error)
            .with("path", path)
            .with("declared", declared)
            .with("actual", actual),
        E::TooManyUploads { open, max } => Refusal::new(Code::ResourceExhausted, "TOO_MANY_UPLOADS", error)
            .with("open", open)
            .with("max", max)
            .retry_after(RETRY),
        E::UploadsOfClient { open, max, staged, requested, max_staged } => {
            Refusal::new(Code::ResourceExhausted, "TOO_MANY_UPLOADS", error)
                .with("share_of", "client")
                .with("open", open)
                .with("max", max)
                .with("staged", staged)
                .with("requested", requested)
                .with("max_staged", max_staged)
                .retry_after(RETRY)
        }
        E::PinLimit { name, bytes, pinned, max, pinned_bytes, max_bytes } => {
            Refusal::new(Code::ResourceExhausted, "PIN_LIMIT", error)
                .quota("pinned_adapters", error)
                .resource("polydelta.v1.Adapter", name, error)
                .with("bytes", bytes)
                .with("pinned", pinned)
                .with("max", max)
                .with("pinned_bytes", pinned_bytes)
                .with("max_bytes", max_bytes)
        }
        E::PinsOfClient { name, pinned, max } => Refusal::new(Code::ResourceExhausted, "PIN_LIMIT", error)
            .quota("pinned_adapters", error)
            .resource("polydelta.v1.Adapter", name, error)
            .with("share_of", "client")
            .with("pinned", pinned)
            .with("max", max),
        E::StagingFull { requested, used, max } => Refusal::new(Code::ResourceExhausted, "STAGING_FULL", error)
            .with("requested", requested)
            .with("used", used)
            .with("max", max)
            .retry_after(RETRY),
        E::UnknownUpload { upload_id } => Refusal::new(Code::NotFound, "UPLOAD_NOT_FOUND", error)
            .resource("polydelta.v1.Upload", upload_id, error)
            .with("upload_id", upload_id),
        E::UploadTakenOver { upload_id } => {
            Refusal::new(Code::Aborted, "UPLOAD_TAKEN_OVER", error).with("upload_id", upload_id)
        }
        E::UploadBusy { upload_id } => {
            Refusal::new(Code::Unavailable, "UPLOAD_BUSY", error).with("upload_id", upload_id).retry_after(RETRY)
        }
        E::UploadIdReused { upload_id } => {
            bad("UPLOAD_ID_REUSED", "header.upload_id", error).with("upload_id", upload_id)
        }
        E::TooManyAdapters { count, max } => {
            exhausted("TOO_MANY_ADAPTERS", "adapters", error).with("count", count).with("max", max)
        }
        E::StoreFull { requested, used, max } => exhausted("STORE_FULL", "store_bytes", error)
            .with("requested", requested)
            .with("used", used)
            .with("max", max),
        E::NotFound { name } => Refusal::new(Code::NotFound, "ADAPTER_NOT_FOUND", error)
            .resource(ADAPTER, name, error)
            .with("adapter", name),
        E::AlreadyExists { name, actual } => Refusal::new(Code::AlreadyExists, "ADAPTER_ALREADY_EXISTS", error)
            .resource(ADAPTER, name, error)
            .with("adapter", name)
            .with("version", actual),
        E::VersionMismatch { name, expected, actual } => {
            let refusal = Refusal::new(Code::Aborted, "ADAPTER_VERSION_MISMATCH", error)
                .resource(ADAPTER, name, error)
                .with("adapter", name)
                .with("expected", expected);
            match actual {
                Some(actual) => refusal.with("actual", actual),
                None => refusal,
            }
        }
        E::TooLargeForDevice { version, bytes, max } => {
            Refusal::new(Code::FailedPrecondition, "ADAPTER_TOO_LARGE_FOR_DEVICE", error)
                .precondition("DEVICE_MEMORY", version, error)
                .with("bytes", bytes)
                .with("max", max)
        }
        E::PinnedFull { version, bytes, pinned_bytes, max_bytes, pinned_slots, max_slots } => {
            Refusal::new(Code::ResourceExhausted, "ADAPTER_CAPACITY", error)
                .quota("pinned_adapters", error)
                .with("version", version)
                .with("bytes", bytes)
                .with("pinned_bytes", pinned_bytes)
                .with("max_bytes", max_bytes)
                .with("pinned_slots", pinned_slots)
                .with("max_slots", max_slots)
        }
        E::Outgrown { version, bytes, reserved, free } => Refusal::new(Code::Unavailable, "ADAPTER_LOADING", error)
            .with("version", version)
            .with("bytes", bytes)
            .with("reserved", reserved)
            .with("free", free)
            .retry_after(RETRY),
        E::SetAside { name, version, faults, fault: _ } => {
            Refusal::new(Code::FailedPrecondition, "ADAPTER_SET_ASIDE", error)
                .precondition("SOUND_ADAPTER", name, error)
                .resource(ADAPTER, name, error)
                .with("adapter", name)
                .with("version", version)
                .with("faults", faults)
        }
        E::InUse { version, leases } => Refusal::new(Code::FailedPrecondition, "ADAPTER_IN_USE", error)
            .precondition("IN_USE", version, error)
            .with("version", version)
            .with("leases", leases),
        E::LoadFailed { source, .. } => return of_stored(&load_failed(source.as_ref())),
        E::LoadAbandoned { version } => {
            Refusal::new(Code::Unavailable, "ADAPTER_LOADING", error).with("version", version).retry_after(RETRY)
        }
        E::Io { action, fault, .. } => disk(error, action, *fault),
        E::Unreadable { name, .. } => Refusal::new(Code::Unavailable, "ADAPTER_UNREADABLE", error)
            .resource(ADAPTER, name, error)
            .with("adapter", name)
            .retry_after(RETRY_STORE),
        E::NewerFormat { name, format, known } => Refusal::new(Code::FailedPrecondition, "STORE_FORMAT_NEWER", error)
            .precondition("STORE_FORMAT", name, error)
            .with("adapter", name)
            .with("format", format)
            .with("known", known),
        E::BaseMismatch { name, version, stored, present } => {
            Refusal::new(Code::FailedPrecondition, "BASE_MISMATCH", error)
                .precondition("BASE_MODEL", name, error)
                .with("adapter", name)
                .with("version", version)
                .with("adapter_base", stored)
                .with("served_base", present)
        }
        E::FilesMissing { version } => {
            tracing::error!(%version, "the files of a stored adapter are missing");
            Refusal::new(Code::DataLoss, "ADAPTER_FILES_MISSING", error).with("version", version)
        }
        E::Corrupt { version, path } => {
            tracing::error!(%version, path, "a stored adapter is damaged");
            Refusal::new(Code::DataLoss, "ADAPTER_CORRUPT", error).with("version", version).with("path", path)
        }
        E::Encoding { .. }
        | E::StoreLocked { .. }
        | E::NotALock { .. }
        | E::NotAFolder { .. }
        | E::NamesMissing { .. }
        | E::StoreUnreadable { .. }
        | E::UnknownVersion { .. } => return internal_error("adapters", error),
    };
    refusal.into_status()
}

/// What a client can do about a disk, and what only the operator can. The system's own words are for the log.
fn disk(error: &AdapterError, action: &'static str, fault: DiskFault) -> Refusal {
    tracing::error!(%error, "the disk of the store fails");
    let text = format!("{action} failed: {fault}");
    let with = |code, reason| Refusal::new(code, reason, &text).with("action", action);
    let operators = |reason| with(Code::FailedPrecondition, reason).precondition("STORE", action, &text);
    let quota = |reason, subject: &str| with(Code::ResourceExhausted, reason).quota(subject, &text);
    let again = |code, reason| with(code, reason).retry_after(RETRY_STORE);
    match fault {
        DiskFault::Full => quota("DISK_FULL", "disk"),
        DiskFault::Quota => quota("DISK_QUOTA_EXCEEDED", "disk_quota"),
        DiskFault::ReadOnly => operators("STORE_READ_ONLY"),
        DiskFault::Denied => operators("STORE_ACCESS_DENIED"),
        DiskFault::TooManyFiles => again(Code::ResourceExhausted, "TOO_MANY_OPEN_FILES"),
        DiskFault::Memory => again(Code::ResourceExhausted, "HOST_OUT_OF_MEMORY"),
        DiskFault::Device => again(Code::Unavailable, "DISK_ERROR"),
        DiskFault::Other => again(Code::Unavailable, "STORE_ERROR"),
    }
}

/// Why an adapter could not be read, compiled or installed. Whoever made the error knows its kind; see the hall.
pub(in crate::grpc) fn load_failed(failure: &(dyn Error + Send + Sync + 'static)) -> Status {
    if let Some(error) = failure.downcast_ref::<AdapterError>() {
        return match error {
            // Never nested in practice; a cycle must not become a deep recursion.
            AdapterError::LoadFailed { .. } => internal(),
            error => from_adapter(error),
        };
    }
    if let Some(error) = failure.downcast_ref::<ChatError>() {
        return from_chat_template(error);
    }
    match (failure.downcast_ref::<InstallError>(), failure.downcast_ref::<DeltaError>()) {
        (Some(error), _) => from_install(error),
        (None, Some(error)) => from_delta(error),
        (None, None) => internal_error("loading an adapter", failure),
    }
}

/// A stored adapter was accepted once. That this server does not take it, with a lower limit than then or another
/// version of the program, is not in the request that names it.
fn of_stored(status: &Status) -> Status {
    if status.code() != Code::InvalidArgument {
        return status.clone();
    }
    let known = status.get_error_details();
    let mut details = ErrorDetails::new();
    if let Some(info) = known.error_info() {
        details.set_error_info(&info.reason, &info.domain, info.metadata.clone());
    }
    for field in known.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        details.add_precondition_failure_violation("ADAPTER", &field.field, &field.description);
    }
    Status::with_error_details_and_metadata(
        Code::FailedPrecondition,
        status.message(),
        details,
        status.metadata().clone(),
    )
}

/// Why an adapter's own chat template is not taken.
fn from_chat_template(error: &ChatError) -> Status {
    match error {
        ChatError::Template(_) | ChatError::NotText => {
            Refusal::new(Code::InvalidArgument, "INVALID_CHAT_TEMPLATE", error)
                .field(CHAT_TEMPLATE_FILE, error)
                .into_status()
        }
        ChatError::Read { .. }
        | ChatError::Tokens(_)
        | ChatError::Refused { .. }
        | ChatError::Render { .. }
        | ChatError::Limit { .. } => internal_error("checking a chat template", error),
    }
}

fn from_install(error: &InstallError) -> Status {
    match error {
        InstallError::Adapter(AdapterError::LoadFailed { .. }) => internal(),
        InstallError::Adapter(error) => from_adapter(error),
        InstallError::Delta(error) => from_delta(error),
        InstallError::Step(StepError::Ops(OpsError::OutOfMemory { what, bytes })) => {
            exhausted("DEVICE_OUT_OF_MEMORY", "device_bytes", error)
                .with("what", what)
                .with("bytes", bytes)
                .into_status()
        }
        InstallError::Step(_) => internal(),
        InstallError::Memory(TooLargeToLoad { bytes, limit }) => {
            exhausted("LOAD_MEMORY_TOO_SMALL", "load_memory", error)
                .with("bytes", bytes)
                .with("limit", limit)
                .into_status()
        }
        InstallError::Stopped => draining(),
    }
}

/// Why an adapter does not compile. Bad input names the field or tensor; what the server does not serve is a
/// precondition of the upload that may change with a newer server.
fn from_delta(error: &DeltaError) -> Status {
    use DeltaError as E;
    let bad =
        |reason, field: &dyn std::fmt::Display| Refusal::new(Code::InvalidArgument, reason, error).field(field, error);
    let refusal = match error {
        E::Json { .. } => bad("INVALID_CONFIG", &CONFIG_FILE),
        E::Safetensors(SafetensorsError::NonFinite { tensor, index, value }) => {
            bad("NON_FINITE", tensor).with("index", index).with("value", value)
        }
        E::Safetensors(_) => bad("INVALID_SAFETENSORS", &WEIGHTS_FILE),
        E::BadField { field, found, expected } => {
            bad("INVALID_CONFIG", field).with("found", found).with("expected", expected)
        }
        E::UnsupportedField { field, found, .. } => bad("UNSUPPORTED_CONFIG", field).with("found", found),
        E::UnknownField { field, found } => bad("UNSUPPORTED_CONFIG", field).with("found", found),
        E::Regex { field, reason } => bad("INVALID_CONFIG", field).with("cause", reason),
        E::UnknownTensor { tensor, kind, nearest } => {
            bad("UNKNOWN_TENSOR", tensor).with("kind", kind).with("nearest", nearest)
        }
        E::SameTensor { first, second } => bad("DUPLICATE_TENSOR", first).with("second", second),
        E::MixedKeys { first, second, difference } => {
            bad("MIXED_TENSOR_NAMES", first).with("second", second).with("difference", difference)
        }
        E::WholeModel { tensor, kind } => bad("WHOLE_MODEL", tensor).with("kind", kind),
        E::UnsupportedTensor { tensor, feature } => bad("UNSUPPORTED_TENSOR", tensor).with("feature", feature),
        E::NotTargeted { tensor } => bad("TENSOR_NOT_TARGETED", tensor),
        E::MissingTensor { module, missing, found } => {
            bad("MISSING_TENSOR", module).with("missing", missing).with("found", found)
        }
        E::WrongModule { module, kind } => bad("WRONG_MODULE", module).with("kind", kind),
        E::Shape { tensor, found, expected } => {
            bad("SHAPE_MISMATCH", tensor).with("found", format!("{found:?}")).with("expected", format!("{expected:?}"))
        }
        E::Rank { module, rank, max } => bad("RANK_OUT_OF_RANGE", module).with("rank", rank).with("max", max),
        E::NothingMatched { .. } => bad("NOTHING_MATCHED", &"target_modules"),
        E::BaseMismatch { tensor } => {
            Refusal::new(Code::FailedPrecondition, "BASE_MISMATCH", error).precondition("BASE_MODEL", tensor, error)
        }
        E::VirtualTokens { count, max } => {
            bad("VIRTUAL_TOKENS_OUT_OF_RANGE", &"num_virtual_tokens").with("count", count).with("max", max)
        }
        E::NonFinite { tensor, index } => bad("NON_FINITE", tensor).with("index", index),
        E::Base(_) | E::Candle(_) => return internal_error("compiling an adapter", error),
        E::Ops(OpsError::OutOfMemory { what, bytes }) => {
            exhausted("DEVICE_OUT_OF_MEMORY", "device_bytes", error).with("what", what).with("bytes", bytes)
        }
        E::Ops(OpsError::Shape { .. } | OpsError::Thread { .. } | OpsError::Isa { .. }) => {
            return internal_error("compiling an adapter", error);
        }
    };
    refusal.into_status()
}

pub(in crate::grpc) fn from_upload_stream(error: &BadUploadStream) -> Status {
    use BadUploadStream as E;
    let refusal = match error {
        E::Empty | E::ChunkBeforeHeader => {
            Refusal::new(Code::InvalidArgument, "MISSING_HEADER", error).field("header", error)
        }
        E::NoFrame => Refusal::new(Code::InvalidArgument, "INVALID_FIELD", error).field("frame", error),
        E::SecondHeader => Refusal::new(Code::InvalidArgument, "SECOND_HEADER", error).field("header", error),
        E::Idle { limit } => Refusal::new(Code::Aborted, "UPLOAD_IDLE", error).with("limit_ms", limit.as_millis()),
    };
    refusal.into_status()
}
