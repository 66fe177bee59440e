//! What uploads, the store and loads fail with.

use super::*;

#[test]
fn uploads_that_are_wrong() {
    use AdapterError as E;
    let digest = Sha256Digest([1; 32]);
    let cases = [
        (E::MissingFile { path: "adapter_config.json" }, "MISSING_FILE", "header.files"),
        (E::UnsupportedFormat { path: path(), format: "a pickle" }, "UNSUPPORTED_FORMAT", "header.files.path"),
        (E::UnknownFile { path: path() }, "UNKNOWN_FILE", "header.files.path"),
        (E::BadPath { path: "../x".into() }, "BAD_PATH", "header.files.path"),
        (E::DuplicateFile { path: path() }, "DUPLICATE_FILE", "header.files.path"),
        (E::BadDigest { path: path() }, "BAD_DIGEST", "header.files.sha256"),
        (E::EmptyFile { path: path() }, "EMPTY_FILE", "header.files.size"),
        (E::TooManyFiles { files: 9, max: 8 }, "TOO_MANY_FILES", "header.files"),
        (E::FileTooLarge { path: path(), bytes: 9, max: 8 }, "UPLOAD_TOO_LARGE", "header.files.size"),
        (E::AdapterTooLarge { bytes: 9, max: 8 }, "UPLOAD_TOO_LARGE", "header.files.size"),
        (E::UnknownFileIndex { index: 3, files: 2 }, "UNKNOWN_FILE_INDEX", "chunk.file_index"),
        (E::EmptyChunk { path: path() }, "EMPTY_CHUNK", "chunk.data"),
        (E::ChunkTooLarge { bytes: 9, max: 8 }, "CHUNK_TOO_LARGE", "chunk.data"),
        (E::TooManyBytes { path: path(), declared: 8, got: 9 }, "TOO_MANY_BYTES", "chunk.data"),
        (E::Truncated { path: path(), declared: 9, got: 8 }, "TRUNCATED", "header.files.size"),
        (
            E::ChecksumMismatch { path: path(), declared: digest, actual: digest },
            "CHECKSUM_MISMATCH",
            "header.files.sha256",
        ),
        (E::UploadIdReused { upload_id: "id".parse().unwrap() }, "UPLOAD_ID_REUSED", "header.upload_id"),
    ];
    for (error, reason, wanted) in cases {
        let status = of(&error);
        expect(&status, Code::InvalidArgument, reason);
        assert_eq!(field(&status), wanted, "{reason}");
        assert_eq!(status.message(), error.to_string());
    }
    let id = of(&"a b".parse::<UploadId>().unwrap_err());
    expect(&id, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(field(&id), "upload_id");
    let offset = of(&E::WrongOffset { path: path(), expected: 100, got: 90 });
    expect(&offset, Code::OutOfRange, "UPLOAD_OFFSET_MISMATCH");
    assert_eq!(metadata(&offset, "expected").as_deref(), Some("100"), "a program can go on from there");
    let stream = [
        (BadUploadStream::Empty, Code::InvalidArgument, "MISSING_HEADER"),
        (BadUploadStream::ChunkBeforeHeader, Code::InvalidArgument, "MISSING_HEADER"),
        (BadUploadStream::NoFrame, Code::InvalidArgument, "INVALID_FIELD"),
        (BadUploadStream::SecondHeader, Code::InvalidArgument, "SECOND_HEADER"),
        (BadUploadStream::Idle { limit: std::time::Duration::from_secs(30) }, Code::Aborted, "UPLOAD_IDLE"),
    ];
    for (error, code, reason) in stream {
        expect(&of(&error), code, reason);
    }
}

#[test]
fn uploads_and_adapters_in_the_wrong_moment() {
    use AdapterError as E;
    let (id, name) = (|| "id".parse().unwrap(), || "sql".parse().unwrap());
    let cases = [
        (E::TooManyUploads { open: 8, max: 8 }, Code::ResourceExhausted, "TOO_MANY_UPLOADS"),
        (
            E::UploadsOfClient { open: 8, max: 8, staged: 1, requested: 2, max_staged: 9 },
            Code::ResourceExhausted,
            "TOO_MANY_UPLOADS",
        ),
        (
            E::PinLimit { name: "a".parse().unwrap(), bytes: 1, pinned: 2, max: 2, pinned_bytes: 3, max_bytes: 9 },
            Code::ResourceExhausted,
            "PIN_LIMIT",
        ),
        (E::PinsOfClient { name: "a".parse().unwrap(), pinned: 2, max: 2 }, Code::ResourceExhausted, "PIN_LIMIT"),
        (E::StagingFull { requested: 1, used: 8, max: 8 }, Code::ResourceExhausted, "STAGING_FULL"),
        (E::UnknownUpload { upload_id: id() }, Code::NotFound, "UPLOAD_NOT_FOUND"),
        (E::UploadTakenOver { upload_id: id() }, Code::Aborted, "UPLOAD_TAKEN_OVER"),
        (E::UploadBusy { upload_id: id() }, Code::Unavailable, "UPLOAD_BUSY"),
        (E::TooManyAdapters { count: 8, max: 8 }, Code::ResourceExhausted, "TOO_MANY_ADAPTERS"),
        (E::StoreFull { requested: 1, used: 8, max: 8 }, Code::ResourceExhausted, "STORE_FULL"),
        (E::NotFound { name: name() }, Code::NotFound, "ADAPTER_NOT_FOUND"),
        (E::AlreadyExists { name: name(), actual: V }, Code::AlreadyExists, "ADAPTER_ALREADY_EXISTS"),
        (E::VersionMismatch { name: name(), expected: V, actual: Some(V) }, Code::Aborted, "ADAPTER_VERSION_MISMATCH"),
        (E::VersionMismatch { name: name(), expected: V, actual: None }, Code::Aborted, "ADAPTER_VERSION_MISMATCH"),
        (
            E::TooLargeForDevice { version: V, bytes: 9, max: 8 },
            Code::FailedPrecondition,
            "ADAPTER_TOO_LARGE_FOR_DEVICE",
        ),
        (
            E::PinnedFull { version: V, bytes: 1, pinned_bytes: 8, max_bytes: 8, pinned_slots: 1, max_slots: 2 },
            Code::ResourceExhausted,
            "ADAPTER_CAPACITY",
        ),
        (E::Outgrown { version: V, bytes: 9, reserved: 8, free: 0 }, Code::Unavailable, "ADAPTER_LOADING"),
        (E::InUse { version: V, leases: 1 }, Code::FailedPrecondition, "ADAPTER_IN_USE"),
        (
            E::SetAside { name: name(), version: V, faults: 3, fault: AdapterFault::NonFinite },
            Code::FailedPrecondition,
            "ADAPTER_SET_ASIDE",
        ),
        (E::LoadAbandoned { version: V }, Code::Unavailable, "ADAPTER_LOADING"),
        (E::Unreadable { name: name(), reason: "x".into() }, Code::Unavailable, "ADAPTER_UNREADABLE"),
        (E::NewerFormat { name: name(), format: 9, known: 2 }, Code::FailedPrecondition, "STORE_FORMAT_NEWER"),
        (
            E::BaseMismatch { name: name(), version: V, stored: BaseDigest([1; 32]), present: BaseDigest([2; 32]) },
            Code::FailedPrecondition,
            "BASE_MISMATCH",
        ),
        (E::FilesMissing { version: V }, Code::DataLoss, "ADAPTER_FILES_MISSING"),
        (E::Corrupt { version: V, path: path() }, Code::DataLoss, "ADAPTER_CORRUPT"),
    ];
    for (error, code, reason) in cases {
        expect(&of(&error), code, reason);
    }
}

#[test]
fn a_disk_that_fails_says_how_and_whether_to_come_back() {
    let cases = [
        (28, Code::ResourceExhausted, "DISK_FULL", false),
        (122, Code::ResourceExhausted, "DISK_QUOTA_EXCEEDED", false),
        (30, Code::FailedPrecondition, "STORE_READ_ONLY", false),
        (13, Code::FailedPrecondition, "STORE_ACCESS_DENIED", false),
        (24, Code::ResourceExhausted, "TOO_MANY_OPEN_FILES", true),
        (23, Code::ResourceExhausted, "TOO_MANY_OPEN_FILES", true),
        (12, Code::ResourceExhausted, "HOST_OUT_OF_MEMORY", true),
        (5, Code::Unavailable, "DISK_ERROR", true),
        (40, Code::Unavailable, "STORE_ERROR", true),
    ];
    for (number, code, reason, again) in cases {
        let fault = DiskFault::of(&std::io::Error::from_raw_os_error(number));
        let status = of(&AdapterError::Io { action: "renaming", fault, source: io_error() });
        expect(&status, code, reason);
        assert_eq!(status.get_details_retry_info().is_some(), again, "{reason}");
        assert!(status.message().starts_with("renaming failed: ") && !format!("{status:?}").contains("secret"));
    }
}

#[test]
fn a_broken_machine_tells_the_client_nothing() {
    use AdapterError as E;
    let defects = [
        E::NotALock { path: "/secret/path".into() },
        E::NamesMissing { root: "/secret/path".into(), objects: 1 },
        E::StoreUnreadable { root: "/secret/path".into(), count: 1, first: "x".into() },
        E::StoreLocked { root: "/secret/path".into() },
        E::NotAFolder { path: "/secret/path".into() },
        E::UnknownVersion { version: V },
        E::LoadFailed { version: V, source: Arc::new(broken()) },
    ];
    let chat = |source| of(&AdmissionError::Chat { adapter: None, source });
    let tokenizer = |error| of(&AdmissionError::Tokenizer(error));
    let path = || std::path::PathBuf::from("/secret/path");
    let mut statuses: Vec<Status> = defects.iter().map(|error| of(error)).collect();
    statuses.extend([
        chat(ChatError::Read { path: path(), source: io_error() }),
        chat(ChatError::Template(crate::text::jinja::SyntaxError { line: 1, message: "/secret/path".into() })),
        chat(ChatError::Tokens(TokenizerError::Format { reason: "/secret/path".into() })),
        tokenizer(TokenizerError::Missing { path: path(), legacy: None }),
        tokenizer(TokenizerError::Settings { path: path(), reason: "/secret/path".into() }),
        tokenizer(TokenizerError::Read { path: path(), source: io_error() }),
        tokenizer(TokenizerError::Format { reason: "/secret/path".into() }),
        of(&AdmissionError::TokenizerPanicked),
        of(&GenerationError::Failed(RequestFailure::EngineFailed)),
        of(&GenerationError::Text(TokenizerError::Decode { count: 1, reason: "/secret/path".into() })),
        of(&Interrupted::panicked(&"/secret/path")),
        of(&Interrupted::panicked(&7u8)),
    ]);
    for status in statuses {
        expect(&status, Code::Internal, "INTERNAL");
        assert!(!format!("{status:?}").contains("secret"), "{status:?}");
    }
}

#[test]
fn adapters_that_do_not_compile() {
    use DeltaError as E;
    let cases = [
        (E::Json { reason: "line 1".into() }, "INVALID_CONFIG", "adapter_config.json"),
        (E::BadField { field: "r".into(), found: "0".into(), expected: "at least 1" }, "INVALID_CONFIG", "r"),
        (E::UnsupportedField { field: "x".into(), found: "1".into(), hint: "".into() }, "UNSUPPORTED_CONFIG", "x"),
        (E::Regex { field: "target_modules".into(), reason: "(".into() }, "INVALID_CONFIG", "target_modules"),
        (E::UnknownTensor { tensor: "t".into(), kind: "LoRA", nearest: "n".into() }, "UNKNOWN_TENSOR", "t"),
        (E::UnknownField { field: "x".into(), found: "1".into() }, "UNSUPPORTED_CONFIG", "x"),
        (E::SameTensor { first: "t".into(), second: "u".into() }, "DUPLICATE_TENSOR", "t"),
        (E::MixedKeys { first: "t".into(), second: "u".into(), difference: "d" }, "MIXED_TENSOR_NAMES", "t"),
        (E::WholeModel { tensor: "t".into(), kind: "LoRA" }, "WHOLE_MODEL", "t"),
        (E::UnsupportedTensor { tensor: "t".into(), feature: "f" }, "UNSUPPORTED_TENSOR", "t"),
        (E::NotTargeted { tensor: "t".into() }, "TENSOR_NOT_TARGETED", "t"),
        (E::MissingTensor { module: "m".into(), missing: "lora_A.weight", found: "`f`".into() }, "MISSING_TENSOR", "m"),
        (E::NotReproducible { module: "m".into(), missing: "shira_indices" }, "MISSING_TENSOR", "m"),
        (E::Group { module: "m".into(), outputs: 6, group: 4 }, "INVALID_CONFIG", "group_size"),
        (E::WrongModule { module: "m".into(), kind: "LoRA" }, "WRONG_MODULE", "m"),
        (E::Shape { tensor: "t".into(), found: vec![1], expected: vec![2, 3] }, "SHAPE_MISMATCH", "t"),
        (E::Rank { module: "m".into(), rank: 9, max: 8 }, "RANK_OUT_OF_RANGE", "m"),
        (E::NothingMatched { shown: String::new() }, "NOTHING_MATCHED", "target_modules"),
        (E::VirtualTokens { count: 9, max: 8 }, "VIRTUAL_TOKENS_OUT_OF_RANGE", "num_virtual_tokens"),
        (E::NonFinite { tensor: "t".into(), index: 3 }, "NON_FINITE", "t"),
    ];
    for (error, reason, wanted) in cases {
        let status = of(&error);
        expect(&status, Code::InvalidArgument, reason);
        assert_eq!(field(&status), wanted);
    }
    expect(&of(&E::BaseMismatch { tensor: "t".into() }), Code::FailedPrecondition, "BASE_MISMATCH");
    let memory = || OpsError::OutOfMemory { what: "lora", bytes: 9 };
    expect(&of(&E::Ops(memory())), Code::ResourceExhausted, "DEVICE_OUT_OF_MEMORY");
    expect(&of(&InstallError::from(StepError::from(memory()))), Code::ResourceExhausted, "DEVICE_OUT_OF_MEMORY");
    let larger = AdapterError::LargerThanMemory { bytes: 9, max: 8 };
    expect(&of(&larger), Code::ResourceExhausted, "LOAD_MEMORY_TOO_SMALL");
    for defect in [
        OpsError::Shape { rows: 1, cols: 2, expected: 3 },
        OpsError::Thread { index: 1, reason: "x".into() },
        OpsError::Isa { isa: "avx512" },
    ] {
        expect(&of(&E::Ops(defect)), Code::Internal, "INTERNAL");
    }
}

#[test]
fn a_failed_load_is_what_its_cause_is() {
    let load = |source: LoadFailure| of(&AdapterError::LoadFailed { version: V, source });
    expect(
        &load(Arc::new(DeltaError::NothingMatched { shown: String::new() })),
        Code::FailedPrecondition,
        "NOTHING_MATCHED",
    );
    let full = AdapterError::Io { action: "reading", fault: DiskFault::Full, source: io_error() };
    expect(&load(Arc::new(full)), Code::ResourceExhausted, "DISK_FULL");
    let install = |error| load(Arc::new(error));
    expect(
        &install(InstallError::Delta(DeltaError::NothingMatched { shown: String::new() })),
        Code::FailedPrecondition,
        "NOTHING_MATCHED",
    );
    let corrupt = AdapterError::Corrupt { version: V, path: path() };
    expect(&install(InstallError::Adapter(corrupt)), Code::DataLoss, "ADAPTER_CORRUPT");
    expect(&install(InstallError::Stopped), Code::Unavailable, "SERVER_DRAINING");
    // An error that names another version's failure is what that was.
    let nested = || AdapterError::LoadFailed { version: V, source: Arc::new(broken()) };
    expect(&load(Arc::new(nested())), Code::Internal, "INTERNAL");
    expect(&install(InstallError::Adapter(nested())), Code::Internal, "INTERNAL");
}
