//! Why a model cannot be had from the hub.

use std::path::PathBuf;

use hf_hub::api::sync::ApiError;

/// Errors of fetching a base model or an adapter.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No place to keep files.
    #[error("there is no folder for the hub's cache: set HF_HOME or HOME")]
    NoCacheFolder,
    /// Offline, and the cache does not have it.
    #[error("{repository} is not complete in {cache} and HF_HUB_OFFLINE is set")]
    NotCached {
        /// `ORG/NAME`.
        repository: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The hub does not answer.
    #[error(
        "{endpoint} cannot be reached for {repository}: {reason}; with HF_HUB_OFFLINE=1 a model in the cache is used as it \
         is"
    )]
    Unreachable {
        /// Address of the hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
        /// The client's words.
        reason: String,
    },
    /// No such repository, or a private one. The hub does not tell them apart.
    #[error("{endpoint} has no repository {repository}, or it is private and HF_TOKEN does not open it")]
    NotFound {
        /// Address of the hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
    },
    /// A repository without the branch, tag or commit that was asked for.
    #[error("{endpoint} has {repository}, but not the branch, tag or commit that is asked for behind the @")]
    NoRevision {
        /// Address of the hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
    },
    /// Its owner asks for consent.
    #[error("{repository} is gated: ask for access at {endpoint}/{repository} and set HF_TOKEN to a token that has it")]
    Gated {
        /// Address of the hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
    },
    /// The token is missing, expired or too weak.
    #[error("{endpoint} answers {status} for {repository}: HF_TOKEN is not accepted")]
    Unauthorized {
        /// Address of the hub.
        endpoint: String,
        /// `ORG/NAME`.
        repository: String,
        /// 401 or 403.
        status: u16,
    },
    /// Any other answer that is no success.
    #[error("{endpoint} answers {status} for {file}")]
    Status {
        /// Address of the hub.
        endpoint: String,
        /// The file, or the repository where it was listed.
        file: String,
        /// HTTP status.
        status: u16,
    },
    /// The listing cannot be read.
    #[error("the listing of {repository} is not valid: {reason}")]
    BadListing {
        /// `ORG/NAME`.
        repository: String,
        /// Where and why.
        reason: String,
    },
    /// The index of the shards cannot be used.
    #[error("the index of the weights of {repository} is not valid: {reason}")]
    BadIndex {
        /// `ORG/NAME`.
        repository: String,
        /// Where and why.
        reason: String,
    },
    /// No weights that are read here.
    #[error("{repository} has neither model.safetensors nor model.safetensors.index.json; it has {found}")]
    NoSafetensors {
        /// `ORG/NAME`.
        repository: String,
        /// What it has instead.
        found: &'static str,
    },
    /// No adapter at the root of the repository.
    #[error("{repository} has no adapter at its root; it has {found}")]
    NoAdapter {
        /// `ORG/NAME`.
        repository: String,
        /// What it has instead.
        found: String,
    },
    /// A file that is needed is not in the repository.
    #[error("{repository} has no {file}")]
    MissingFile {
        /// `ORG/NAME`.
        repository: String,
        /// Its name.
        file: String,
    },
    /// A file came shorter or longer than listed. It is not kept.
    #[error("{file} came with {found} bytes, the hub lists {expected}; it was not kept")]
    WrongSize {
        /// Its name.
        file: String,
        /// Came.
        found: u64,
        /// Listed.
        expected: u64,
    },
    /// A file came with other content than listed. It is not kept.
    #[error("{file} came with sha256 {found}, the hub lists {expected}; it was not kept")]
    WrongDigest {
        /// Its name.
        file: String,
        /// Of what came.
        found: String,
        /// Listed.
        expected: String,
    },
    /// The download broke off. What came is kept and is gone on with the next time.
    #[error("downloading {file} of {repository} broke off: {reason}; the next start goes on from there")]
    Broken {
        /// `ORG/NAME`.
        repository: String,
        /// Its name.
        file: String,
        /// The client's words.
        reason: String,
    },
    /// Another process is fetching the same file.
    #[error("another process is downloading a file of {repository}: {lock} is held")]
    Locked {
        /// `ORG/NAME`.
        repository: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// The cache folder cannot be read or written.
    #[error("the hub's cache: {source}")]
    Cache {
        /// The system's words.
        source: std::io::Error,
    },
}

/// What the crate says, in the terms of this room. `file` is `None` where the repository was listed.
pub(super) fn of_api(error: ApiError, endpoint: &str, repository: &str, file: Option<&str>) -> HubError {
    let endpoint = endpoint.to_owned();
    let repository = repository.to_owned();
    match error {
        ApiError::RequestError(error) => {
            let reason = error.to_string();
            let Some(response) = error.into_response() else {
                return HubError::Unreachable { endpoint, repository, reason };
            };
            let status = response.status();
            match (status, response.header("x-error-code")) {
                (_, Some("GatedRepo")) => HubError::Gated { endpoint, repository },
                (_, Some("RepoNotFound")) => HubError::NotFound { endpoint, repository },
                (_, Some("RevisionNotFound")) => HubError::NoRevision { endpoint, repository },
                (404, _) => match file {
                    Some(file) => HubError::MissingFile { repository, file: file.to_owned() },
                    None => HubError::NotFound { endpoint, repository },
                },
                (401 | 403, _) => HubError::Unauthorized { endpoint, repository, status },
                _ => HubError::Status { endpoint, file: file.unwrap_or(&repository).to_owned(), status },
            }
        }
        ApiError::TooManyRetries(last) => of_api(*last, &endpoint, &repository, file),
        ApiError::LockAcquisition(lock) => HubError::Locked { repository, lock },
        other => {
            HubError::Broken { file: file.unwrap_or(&repository).to_owned(), repository, reason: other.to_string() }
        }
    }
}
