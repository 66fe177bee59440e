//! Base models and adapters from the Hugging Face hub: `hf:ORG/NAME[@REVISION]` becomes a local folder that opens like
//! any other. Only the files that are needed are fetched.
//!
//! Files lie in the cache that the hub's own tools use (`models--ORG--NAME/{refs,blobs,snapshots,.no_exist}`), so a
//! model one of them fetched is not fetched again. A snapshot that is complete is used without any request. The branch's
//! ref is written last, so a snapshot it points to is one that was fetched to its end; a revision that is a commit has no ref
//! and is looked at file by file. Blocks; knows no model family and no method.

mod cache;
mod error;
mod listing;
mod wanted;

use std::io::Read;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::config::{Environment, HubRepository};
use crate::files;
use cache::Snapshot;
pub(crate) use error::HubError;
use listing::{File, Listing};
pub(crate) use wanted::Wanted;
use wanted::{ADAPTER_INDEX, INDEX};

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Most bytes of a saved access token.
const MAX_TOKEN_BYTES: u64 = 4096;
/// Times a broken download is taken up again, where it broke.
const RETRIES: usize = 4;

/// How to reach the hub, and where to keep what it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubOptions {
    /// The hub's cache folder, such as `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Access token, for gated and private repositories.
    pub token: Option<HubToken>,
    /// Use what is in the cache and send nothing.
    pub offline: bool,
    /// Times a broken download is taken up again.
    pub retries: usize,
}

/// An access token; not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HubToken(pub String);

impl std::fmt::Debug for HubToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HubToken(…)")
    }
}

impl HubOptions {
    /// As the hub's own tools resolve them: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, the
    /// token that `hf auth login` saved, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] where no variable tells a place to keep files.
    pub(crate) fn from_environment(environment: &Environment) -> Result<Self, HubError> {
        let hub = &environment.hub;
        let cache = environment.hub_cache().ok_or(HubError::NoCacheFolder)?;
        let saved = || {
            let bytes = files::read(&environment.hub_home()?.join("token"), MAX_TOKEN_BYTES).ok()?;
            String::from_utf8(bytes).ok()
        };
        let token = hub.token.clone().or_else(saved).map(|token| token.trim().to_owned());
        Ok(Self {
            cache,
            endpoint: hub.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()).map(HubToken),
            offline: hub.offline,
            retries: RETRIES,
        })
    }
}

/// How far the weights have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HubProgress<'a> {
    /// The file being fetched.
    pub file: &'a str,
    /// Bytes of all weight files so far.
    pub done: u64,
    /// Bytes of all weight files that had to be fetched.
    pub total: u64,
}

/// Called as bytes come in.
pub(crate) type HubReport<'a> = dyn FnMut(HubProgress<'_>) + 'a;

/// The folder of a repository, fetched where it is not in the cache. A snapshot that is complete there is used as it is;
/// delete the repository's folder in the cache to follow a branch that has moved.
///
/// # Errors
/// [`HubError`].
pub(crate) fn fetch(
    options: &HubOptions,
    repository: &HubRepository,
    wanted: Wanted,
    report: &mut HubReport<'_>,
) -> Result<PathBuf, HubError> {
    let cached = Snapshot::of(&options.cache, repository);
    if let Some(snapshot) = &cached
        && snapshot.is_usable(wanted)
        && (options.offline || snapshot.knows_optional_files(wanted))
    {
        return Ok(snapshot.dir().to_owned());
    }
    if options.offline {
        return Err(HubError::NotCached { repository: repository.to_string(), cache: options.cache.clone() });
    }
    let cache = Cache::new(options.cache.clone());
    let fetching = Fetch::start(options, repository, wanted, cache.clone())?;
    fetching.run(report)?;
    if repository.revision() != fetching.listing.sha {
        let branch = cache.repo(of_crate(repository, repository.revision()));
        branch.create_ref(&fetching.listing.sha).map_err(|source| HubError::Cache { source })?;
    }
    Ok(fetching.snapshot.dir().to_owned())
}

/// The folder of a repository that is complete in the cache. Sends nothing.
#[must_use]
pub(crate) fn cached(options: &HubOptions, repository: &HubRepository, wanted: Wanted) -> Option<PathBuf> {
    let snapshot = Snapshot::of(&options.cache, repository)?;
    snapshot.is_usable(wanted).then(|| snapshot.dir().to_owned())
}

/// A repository in the crate's terms.
fn of_crate(repository: &HubRepository, revision: &str) -> Repo {
    Repo::with_revision(repository.name.clone(), RepoType::Model, revision.to_owned())
}

/// One repository at one commit on its way into the cache.
struct Fetch<'a> {
    options: &'a HubOptions,
    repository: &'a str,
    wanted: Wanted,
    listing: Listing,
    snapshot: Snapshot,
    remote: ApiRepo,
}

impl<'a> Fetch<'a> {
    fn start(
        options: &'a HubOptions,
        repository: &'a HubRepository,
        wanted: Wanted,
        cache: Cache,
    ) -> Result<Self, HubError> {
        let token = options.token.as_ref().map(|token| token.0.clone());
        let api = ApiBuilder::from_cache(cache)
            .with_endpoint(options.endpoint.clone())
            .with_token(token)
            .with_retries(options.retries)
            .with_progress(false)
            .with_user_agent("polydelta", env!("CARGO_PKG_VERSION"))
            .build();
        let api = api.map_err(|error| error::of_api(error, &options.endpoint, &repository.name, None))?;
        let listing = list(&api, options, repository)?;
        // At the commit of the listing: a branch that moves meanwhile cannot mix two versions.
        let remote = api.repo(of_crate(repository, &listing.sha));
        let snapshot = Snapshot::at(&options.cache, &repository.name, &listing.sha);
        Ok(Self { options, repository: &repository.name, wanted, listing, snapshot, remote })
    }

    fn run(&self, report: &mut HubReport<'_>) -> Result<(), HubError> {
        let weights = self.listing.weights(self.wanted, self.repository)?;
        for name in self.wanted.required() {
            self.small(self.listing.required(name, self.repository)?)?;
        }
        for name in self.wanted.optional() {
            match self.listing.file(name) {
                Some(file) => self.small(file)?,
                None => self.snapshot.note_absent(name).map_err(|source| HubError::Cache { source })?,
            }
        }
        let shards = if weights.name == INDEX || weights.name == ADAPTER_INDEX {
            self.small(weights)?;
            let names = cache::shard_names(&self.snapshot.path(&weights.name), self.repository)?;
            names.iter().map(|name| self.listing.required(name, self.repository)).collect::<Result<_, _>>()?
        } else {
            vec![weights]
        };
        self.large(&shards, report)
    }

    fn small(&self, file: &File) -> Result<(), HubError> {
        if self.is_there(file)? { Ok(()) } else { self.download(file, &mut |_| {}) }
    }

    fn large(&self, files: &[&File], report: &mut HubReport<'_>) -> Result<(), HubError> {
        let mut missing = Vec::new();
        for file in files {
            if !self.is_there(file)? {
                missing.push(*file);
            }
        }
        let total = missing.iter().filter_map(|file| file.size).sum();
        let mut done = 0;
        for file in missing {
            self.download(file, &mut |got| {
                report(HubProgress { file: &file.name, done: done + got, total });
            })?;
            done += file.size.unwrap_or(0);
        }
        Ok(())
    }

    /// Whether a file is in the snapshot with the size it should have; one of another size is taken away.
    fn is_there(&self, file: &File) -> Result<bool, HubError> {
        let Some(found) = self.snapshot.size(&file.name) else { return Ok(false) };
        if file.size.is_none_or(|size| size == found) {
            return Ok(true);
        }
        self.snapshot.discard(&file.name).map_err(|source| HubError::Cache { source })?;
        Ok(false)
    }

    fn download(&self, file: &File, report: &mut dyn FnMut(u64)) -> Result<(), HubError> {
        let progress = Meter { got: 0, report };
        let fetched = self.remote.download_with_progress(&file.name, progress);
        let path =
            fetched.map_err(|error| error::of_api(error, &self.options.endpoint, self.repository, Some(&file.name)))?;
        let checked = check(&path, file);
        if checked.is_err() {
            self.snapshot.discard(&file.name).map_err(|source| HubError::Cache { source })?;
        }
        checked
    }
}

fn list(api: &Api, options: &HubOptions, repository: &HubRepository) -> Result<Listing, HubError> {
    let request = api.repo(of_crate(repository, repository.revision())).info_request().query("blobs", "true");
    let repository = repository.name.as_str();
    let response = request
        .call()
        .map_err(|error| error::of_api(ApiError::from(Box::new(error)), &options.endpoint, repository, None))?;
    Listing::read(response.into_reader(), repository)
}

/// Size, and digest where the hub tells it. The crate appends to what an interrupted run left and looks at neither.
fn check(path: &Path, file: &File) -> Result<(), HubError> {
    let opened = files::open(path).map_err(|source| HubError::Cache { source })?;
    let found = opened.metadata().map_err(|source| HubError::Cache { source })?.len();
    if let Some(expected) = file.size.filter(|expected| *expected != found) {
        return Err(HubError::WrongSize { file: file.name.clone(), found, expected });
    }
    let Some(expected) = &file.sha256 else { return Ok(()) };
    let found = digest(opened).map_err(|source| HubError::Cache { source })?;
    if found.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(HubError::WrongDigest { file: file.name.clone(), found, expected: expected.clone() })
    }
}

fn digest(mut file: std::fs::File) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            got => hasher.update(&chunk[..got]),
        }
    }
}

/// The crate's progress of one file; it begins again, with what is there already, at every attempt.
struct Meter<'a> {
    got: u64,
    report: &'a mut dyn FnMut(u64),
}

impl Progress for Meter<'_> {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.got = 0;
    }

    fn update(&mut self, size: usize) {
        self.got += size as u64;
        (self.report)(self.got);
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests;
