//! What an upload consists of: its header, the files that are allowed, and the digest that names the result.
//!
//! Everything here is checked from the header alone, before a byte of content arrives.

use std::collections::HashSet;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::AdapterError;
use super::upload_id::UploadId;
use crate::types::{AdapterName, AdapterVersion, ClientKey, Sha256Digest};

/// The PEFT configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The weights as AdapterHub's library names them; they are stored as [`WEIGHTS_FILE`].
pub const ADAPTERHUB_WEIGHTS_FILE: &str = "adapter.safetensors";
/// Which file of weights in several has which tensor.
pub const INDEX_FILE: &str = "adapter_model.safetensors.index.json";
/// The adapter's own chat template, where it has one.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// The tokenizer that was saved with it. Stored is what it has and the base's has not, under the same name.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// What transformers says of that tokenizer besides.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Files that not every adapter has, in the order of their names.
pub(super) const OPTIONAL_FILES: [&str; 2] = [CHAT_TEMPLATE_FILE, TOKENIZER_FILE];
/// Most data one chunk may carry.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// What a change of a name expects to find (compare and set).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// `expected_version` unset: create or replace.
    #[default]
    Any,
    /// `expected_version` empty: the name must not exist.
    Absent,
    /// The name must be bound to this version.
    Version(AdapterVersion),
}

impl Expected {
    /// Does `actual`, the present binding of `name`, meet it?
    ///
    /// # Errors
    /// [`AdapterError::AlreadyExists`] or [`AdapterError::VersionMismatch`].
    pub fn check(self, name: &AdapterName, actual: Option<AdapterVersion>) -> Result<(), AdapterError> {
        match (self, actual) {
            (Self::Absent, Some(actual)) => Err(AdapterError::AlreadyExists { name: name.clone(), actual }),
            (Self::Version(expected), actual) if actual != Some(expected) => {
                Err(AdapterError::VersionMismatch { name: name.clone(), expected, actual })
            }
            _ => Ok(()),
        }
    }
}

/// One file of an upload, as the client declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// A plain file name.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The first frame of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadHeader {
    /// The name to bind.
    pub name: AdapterName,
    /// In the order chunks refer to them.
    pub files: Vec<FileHeader>,
    /// Chosen by the client; `None`: the upload can be neither resumed nor repeated.
    pub upload_id: Option<UploadId>,
    /// Compare and set.
    pub expected: Expected,
    /// Check everything, keep nothing.
    pub validate_only: bool,
    /// Keep it on the device once loaded.
    pub pin: bool,
    /// Who uploads.
    pub client: ClientKey,
}

/// Limits of uploads and of the store. Each is checked before anything is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Declared bytes of one upload, all files.
    pub max_adapter_bytes: u64,
    /// Declared bytes of one upload that there is memory to load.
    pub max_loaded_bytes: u64,
    /// Declared bytes of `adapter_config.json`.
    pub max_config_bytes: u64,
    /// Declared bytes of `chat_template.jinja`.
    pub max_chat_template_bytes: u64,
    /// Declared bytes of `tokenizer.json`.
    pub max_tokenizer_bytes: u64,
    /// Declared bytes of `tokenizer_config.json`.
    pub max_tokenizer_config_bytes: u64,
    /// Chat templates that the base has anyway: a `chat_template.jinja` of this content is no part of an adapter.
    pub base_chat_templates: Vec<Sha256Digest>,
    /// Files in one header.
    pub max_files: usize,
    /// Declared bytes of all open uploads together.
    pub max_staged_bytes: u64,
    /// Open uploads.
    pub max_uploads: usize,
    /// Of one client. Together they may declare half of `max_staged_bytes`, or one upload whatever it takes.
    pub max_uploads_per_client: usize,
    /// Names in the store.
    pub max_adapters: usize,
    /// Bytes of all versions in the store.
    pub max_store_bytes: u64,
    /// An open upload without a chunk for this long is dropped.
    pub idle: Duration,
    /// Finished uploads whose result is remembered for a repeated `upload_id`.
    pub remembered_uploads: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            max_adapter_bytes: 1 << 30,
            max_loaded_bytes: u64::MAX,
            max_config_bytes: 8 << 20,
            max_chat_template_bytes: 128 << 10,
            max_tokenizer_bytes: 64 << 20,
            max_tokenizer_config_bytes: 8 << 20,
            base_chat_templates: Vec::new(),
            max_files: 32,
            max_staged_bytes: 4 << 30,
            max_uploads: 64,
            max_uploads_per_client: 32,
            max_adapters: 100_000,
            max_store_bytes: 1 << 40,
            idle: Duration::from_secs(120),
            remembered_uploads: 1024,
        }
    }
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// `adapter_config.json`: stored.
    Config,
    /// `adapter_model.safetensors`, or `adapter.safetensors`: stored.
    Weights,
    /// `chat_template.jinja`: stored, unless it is the base's.
    ChatTemplate,
    /// `tokenizer.json` or `tokenizer_config.json`: what they say of tokens that the base does not have is stored
    /// ([`Staged::keep_tokenizer`](super::Staged::keep_tokenizer)), the rest dropped.
    Tokenizer,
    /// A companion that PEFT or a trainer saves beside the adapter: its bytes and digest are checked, then dropped.
    Ignored,
}

/// A stored file: part of the version's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredFile {
    /// [`CONFIG_FILE`], [`WEIGHTS_FILE`], [`CHAT_TEMPLATE_FILE`] or [`TOKENIZER_FILE`].
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of the content.
    pub sha256: Sha256Digest,
}

/// One declared file after the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckedFile {
    pub(super) file: StoredFile,
    pub(super) role: FileRole,
}

/// A header that passed every check possible without content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CheckedHeader {
    pub(super) name: AdapterName,
    pub(super) files: Vec<CheckedFile>,
    pub(super) expected: Expected,
    pub(super) validate_only: bool,
    pub(super) pin: bool,
    pub(super) bytes: u64,
    /// Where the adapter has no tokens of its own.
    pub(super) version: AdapterVersion,
}

impl CheckedHeader {
    /// The files that are kept as they come, sorted by path.
    pub(super) fn stored_files(&self) -> Vec<StoredFile> {
        stored(&self.files)
    }
}

fn stored(files: &[CheckedFile]) -> Vec<StoredFile> {
    let mut stored: Vec<_> = files.iter().filter(|file| file.role.is_stored()).map(|file| file.file.clone()).collect();
    stored.sort();
    stored
}

impl FileRole {
    /// Stored as it comes.
    fn is_stored(self) -> bool {
        match self {
            Self::Config | Self::Weights | Self::ChatTemplate => true,
            Self::Tokenizer | Self::Ignored => false,
        }
    }
}

impl UploadHeader {
    /// Check all that can be known without content.
    pub(super) fn check(&self, limits: &StoreLimits) -> Result<CheckedHeader, AdapterError> {
        if self.files.len() > limits.max_files {
            return Err(AdapterError::TooManyFiles { files: self.files.len(), max: limits.max_files });
        }
        let mut seen = HashSet::new();
        let mut files = Vec::with_capacity(self.files.len());
        let mut bytes = 0u64;
        for file in &self.files {
            let role = role_of(&file.path)?;
            if !seen.insert(stored_name(&file.path)) {
                return Err(AdapterError::DuplicateFile { path: file.path.clone() });
            }
            files.push(check_file(file, role, limits)?);
            bytes = bytes.saturating_add(file.size);
        }
        for path in [CONFIG_FILE, WEIGHTS_FILE] {
            if !seen.contains(path) {
                return Err(AdapterError::MissingFile { path });
            }
        }
        if bytes > limits.max_adapter_bytes {
            return Err(AdapterError::AdapterTooLarge { bytes, max: limits.max_adapter_bytes });
        }
        let loaded = files.iter().filter(|file| file.role.is_stored()).map(|file| file.file.size).sum();
        if loaded > limits.max_loaded_bytes {
            return Err(AdapterError::LargerThanMemory { bytes: loaded, max: limits.max_loaded_bytes });
        }
        let version = version_of(&stored(&files));
        let Self { name, expected, validate_only, pin, .. } = self.clone();
        Ok(CheckedHeader { name, files, expected, validate_only, pin, bytes, version })
    }
}

fn check_file(file: &FileHeader, role: FileRole, limits: &StoreLimits) -> Result<CheckedFile, AdapterError> {
    let path = stored_name(&file.path).to_owned();
    let sha256 = file.sha256.parse().map_err(|_| AdapterError::BadDigest { path: path.clone() })?;
    if file.size == 0 && role.is_stored() {
        return Err(AdapterError::EmptyFile { path });
    }
    let max = match role {
        FileRole::Config => limits.max_config_bytes,
        FileRole::ChatTemplate => limits.max_chat_template_bytes,
        FileRole::Tokenizer if path == TOKENIZER_FILE => limits.max_tokenizer_bytes,
        FileRole::Tokenizer => limits.max_tokenizer_config_bytes,
        FileRole::Weights | FileRole::Ignored => limits.max_adapter_bytes,
    };
    if file.size > max {
        return Err(AdapterError::FileTooLarge { path, bytes: file.size, max });
    }
    let is_the_bases = role == FileRole::ChatTemplate && limits.base_chat_templates.contains(&sha256);
    let role = if is_the_bases { FileRole::Ignored } else { role };
    Ok(CheckedFile { file: StoredFile { path, size: file.size, sha256 }, role })
}

/// The name under which a file is stored.
fn stored_name(path: &str) -> &str {
    if path == ADAPTERHUB_WEIGHTS_FILE { WEIGHTS_FILE } else { path }
}

/// What a file of an adapter folder is for.
///
/// # Errors
/// [`AdapterError::BadPath`], [`AdapterError::UnsupportedFormat`] or [`AdapterError::UnknownFile`].
pub fn role_of(path: &str) -> Result<FileRole, AdapterError> {
    let plain = !path.is_empty()
        && path.len() <= 128
        && !path.starts_with('.')
        && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if !plain {
        return Err(AdapterError::BadPath { path: shorten(path) });
    }
    if let Some(format) = unsupported_format(path) {
        return Err(AdapterError::UnsupportedFormat { path: path.to_owned(), format });
    }
    match path {
        CONFIG_FILE => Ok(FileRole::Config),
        WEIGHTS_FILE | ADAPTERHUB_WEIGHTS_FILE => Ok(FileRole::Weights),
        CHAT_TEMPLATE_FILE => Ok(FileRole::ChatTemplate),
        TOKENIZER_FILE | TOKENIZER_CONFIG_FILE => Ok(FileRole::Tokenizer),
        _ if is_companion(path) => Ok(FileRole::Ignored),
        _ => Err(AdapterError::UnknownFile { path: path.to_owned() }),
    }
}

fn unsupported_format(path: &str) -> Option<&'static str> {
    if path == INDEX_FILE || (path.starts_with("adapter_model-") && path.ends_with(".safetensors")) {
        return Some("a part of weights in several files");
    }
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase())?;
    match extension.as_str() {
        "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle" => Some("a pickle"),
        "gguf" | "ggml" => Some("a GGUF file"),
        "zip" | "tar" | "gz" | "tgz" | "bz2" | "xz" | "zst" | "7z" => Some("an archive"),
        "npz" | "npy" => Some("a NumPy file"),
        "onnx" | "h5" | "msgpack" => Some("weights in another format"),
        _ => None,
    }
}

fn is_companion(path: &str) -> bool {
    matches!(
        path,
        "README.md"
            | "added_tokens.json"
            | "chat_template.json"
            | "generation_config.json"
            | "merges.txt"
            | "special_tokens_map.json"
            | "trainer_state.json"
            | "vocab.json"
            | "vocab.txt"
    ) || path.starts_with("tokenizer")
        || path.ends_with(".jinja")
}

/// sha256 over the files sorted by path, each as (length of path, path, size, sha256), after a domain tag and the
/// number of files. Lengths go first, so no two lists of files share an encoding.
#[must_use]
pub fn version_of(files: &[StoredFile]) -> AdapterVersion {
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort();
    let mut hasher = Sha256::new();
    hasher.update(b"polydelta adapter version 1\0");
    hasher.update((sorted.len() as u64).to_le_bytes());
    for file in sorted {
        hasher.update((file.path.len() as u64).to_le_bytes());
        hasher.update(file.path.as_bytes());
        hasher.update(file.size.to_le_bytes());
        hasher.update(file.sha256.0);
    }
    AdapterVersion(hasher.finalize().into())
}

fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests;
