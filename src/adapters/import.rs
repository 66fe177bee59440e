//! Adapters from a local folder, as `peft` saves them: for `--adapter NAME=DIR` and for clients that upload a folder.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::error::AdapterError;
use super::files::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, CheckedHeader, Expected, FileHeader, MAX_CHUNK_BYTES, StoreLimits, StoredFile,
    TOKENIZER_FILE, UploadHeader, WEIGHTS_FILE, version_of,
};
use super::published::Published;
use super::registry::{AdapterInfo, AdapterRegistry};
use super::uploads::{Begin, Staged};
use crate::files;
use crate::types::{AdapterFacts, AdapterName, AdapterVersion, ClientKey, Sha256Digest};

/// An adapter on a local disk.
#[derive(Clone, Copy, Debug)]
pub struct AdapterFolder<'a> {
    /// Has `adapter_config.json` and `adapter_model.safetensors`. Anything else there is left alone.
    pub dir: &'a Path,
    /// The chat template that it brings, wherever that was found.
    pub chat_template: Option<&'a [u8]>,
    /// The tokens that it has and the base does not, in the form in which they are stored.
    pub own_tokens: Option<&'a [u8]>,
}

impl AdapterFolder<'_> {
    /// The files, sizes and digests as they are now.
    ///
    /// # Errors
    /// [`AdapterError::MissingFile`], the disk.
    pub fn scan(&self) -> Result<Vec<FileHeader>, AdapterError> {
        let beside = self.beside().map(|(path, content)| {
            let StoredFile { path, size, sha256 } = stored(path, content);
            Ok(FileHeader { path, size, sha256: sha256.to_string() })
        });
        let files = [CONFIG_FILE, WEIGHTS_FILE].into_iter().map(|path| scan_file(self.dir, path));
        files.chain(beside).collect()
    }

    /// The files that not every adapter has.
    fn beside(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        [(CHAT_TEMPLATE_FILE, self.chat_template), (TOKENIZER_FILE, self.own_tokens)]
            .into_iter()
            .filter_map(|(path, content)| Some((path, content?)))
    }

    /// The version that an upload of it gets.
    fn version(&self, header: &CheckedHeader) -> AdapterVersion {
        let own = self.own_tokens.map(|content| stored(TOKENIZER_FILE, content));
        version_of(&header.stored_files().into_iter().chain(own).collect::<Vec<_>>())
    }
}

/// The content of an adapter, as much of it as a store keeps.
pub struct ReadAdapter {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
    /// `chat_template.jinja`, where it is not the base's.
    pub chat_template: Option<Vec<u8>>,
    /// `tokenizer.json`, where it has tokens that the base does not have.
    pub own_tokens: Option<Vec<u8>>,
}

impl ReadAdapter {
    /// Of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let beside = [&self.chat_template, &self.own_tokens].into_iter().flatten();
        (self.config.len() + self.weights.len() + beside.map(Vec::len).sum::<usize>()) as u64
    }
}

fn stored(path: &str, content: &[u8]) -> StoredFile {
    StoredFile { path: path.to_owned(), size: content.len() as u64, sha256: Sha256Digest::of(content) }
}

fn scan_file(folder: &Path, path: &'static str) -> Result<FileHeader, AdapterError> {
    let mut hasher = Sha256::new();
    let mut size = 0;
    each_chunk(folder, path, |chunk| {
        hasher.update(chunk);
        size += chunk.len() as u64;
        Ok(())
    })?;
    let sha256 = Sha256Digest(hasher.finalize().into()).to_string();
    Ok(FileHeader { path: path.to_owned(), size, sha256 })
}

/// An adapter read whole within the limits of an upload, and the version an upload would give it. Sizes are looked at
/// before anything is read.
///
/// # Errors
/// [`AdapterError::MissingFile`], [`AdapterError::EmptyFile`], [`AdapterError::FileTooLarge`],
/// [`AdapterError::AdapterTooLarge`], the disk.
pub fn read_folder(
    folder: AdapterFolder<'_>,
    limits: &StoreLimits,
) -> Result<(AdapterVersion, ReadAdapter), AdapterError> {
    let AdapterFolder { dir: folder, chat_template, own_tokens } = folder;
    check_sizes(folder, limits)?;
    let [config, weights] = parts(limits).map(|(path, max)| read_file(folder, path, max));
    let mut read = ReadAdapter {
        config: config?,
        weights: weights?,
        chat_template: None,
        own_tokens: own_tokens.map(<[u8]>::to_vec),
    };
    let mut files = vec![stored(CONFIG_FILE, &read.config), stored(WEIGHTS_FILE, &read.weights)];
    if let Some(template) = chat_template {
        check_size(CHAT_TEMPLATE_FILE, template.len() as u64, limits.max_chat_template_bytes)?;
        let file = stored(CHAT_TEMPLATE_FILE, template);
        if !limits.base_chat_templates.contains(&file.sha256) {
            files.push(file);
            read.chat_template = Some(template.to_vec());
        }
    }
    files.extend(own_tokens.map(|content| stored(TOKENIZER_FILE, content)));
    Ok((version_of(&files), read))
}

/// The files, and the most bytes of each.
fn parts(limits: &StoreLimits) -> [(&'static str, u64); 2] {
    [(CONFIG_FILE, limits.max_config_bytes), (WEIGHTS_FILE, limits.max_adapter_bytes)]
}

/// Refuse what is too large without reading it.
fn check_sizes(folder: &Path, limits: &StoreLimits) -> Result<(), AdapterError> {
    let mut bytes = 0;
    for (path, max) in parts(limits) {
        let size = size_of(folder, path)?;
        check_size(path, size, max)?;
        bytes += size;
    }
    if bytes > limits.max_adapter_bytes {
        return Err(AdapterError::AdapterTooLarge { bytes, max: limits.max_adapter_bytes });
    }
    if bytes > limits.max_loaded_bytes {
        return Err(AdapterError::LargerThanMemory { bytes, max: limits.max_loaded_bytes });
    }
    Ok(())
}

/// A file whole; it may have grown since its size was looked at, but never beyond `max`.
fn read_file(folder: &Path, path: &'static str, max: u64) -> Result<Vec<u8>, AdapterError> {
    let mut content = Vec::new();
    each_chunk(folder, path, |chunk| {
        check_size(path, (content.len() + chunk.len()) as u64, max)?;
        let refused = |_| AdapterError::io("reading an adapter's file")(ErrorKind::OutOfMemory.into());
        content.try_reserve(chunk.len()).map_err(refused)?;
        content.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(content)
}

fn check_size(path: &str, bytes: u64, max: u64) -> Result<(), AdapterError> {
    match bytes {
        0 => Err(AdapterError::EmptyFile { path: path.to_owned() }),
        _ if bytes > max => Err(AdapterError::FileTooLarge { path: path.to_owned(), bytes, max }),
        _ => Ok(()),
    }
}

/// Size of a file of the adapter. Symlinks are fine: this is the operator's own folder, and hub caches consist of them.
/// A FIFO is not.
fn size_of(folder: &Path, path: &'static str) -> Result<u64, AdapterError> {
    match fs::metadata(folder.join(path)) {
        Ok(found) if found.is_file() => Ok(found.len()),
        Ok(_) => Err(AdapterError::MissingFile { path }),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(AdapterError::MissingFile { path }),
        Err(error) => Err(AdapterError::io("looking at an adapter's file")(error)),
    }
}

fn each_chunk(
    folder: &Path,
    path: &'static str,
    mut take: impl FnMut(&[u8]) -> Result<(), AdapterError>,
) -> Result<(), AdapterError> {
    size_of(folder, path)?;
    let mut file = files::open(&folder.join(path)).map_err(AdapterError::io("opening an adapter's file"))?;
    let mut chunk = vec![0; MAX_CHUNK_BYTES];
    loop {
        match file.read(&mut chunk).map_err(AdapterError::io("reading an adapter's file"))? {
            0 => return Ok(()),
            got => take(&chunk[..got])?,
        }
    }
}

impl AdapterRegistry {
    /// Import an adapter under `name`, replacing what the name stood for. `compile` checks the staged
    /// files and says what they compile to; what of a tokenizer is kept, it says to them. `None`: the store has the same
    /// content under this name already.
    ///
    /// # Errors
    /// What an upload can fail with, and whatever `compile` says.
    pub fn import<E: From<AdapterError>>(
        &self,
        name: &AdapterName,
        folder: AdapterFolder<'_>,
        pin: bool,
        compile: impl FnOnce(&mut Staged) -> Result<AdapterFacts, E>,
    ) -> Result<Option<Published>, E> {
        check_sizes(folder.dir, self.uploads().limits())?;
        let header = UploadHeader {
            name: name.clone(),
            files: folder.scan()?,
            upload_id: None,
            expected: Expected::Any,
            validate_only: false,
            pin,
            client: ClientKey::LOCAL,
        };
        let version = folder.version(&header.check(self.uploads().limits())?);
        let same = |found: AdapterInfo| {
            found.stored.version == version && found.stored.pinned == pin && found.mismatch.is_none()
        };
        if self.get(name).is_ok_and(same) {
            return Ok(None);
        }
        let Begin::Open(mut session) = self.begin_upload(header, Instant::now())? else {
            return Ok(None);
        };
        for (index, path) in [CONFIG_FILE, WEIGHTS_FILE].into_iter().enumerate() {
            let mut offset = 0;
            each_chunk(folder.dir, path, |chunk| {
                offset = session.write(index, offset, chunk, Instant::now())?;
                Ok(())
            })?;
        }
        for (index, (_, content)) in folder.beside().enumerate() {
            for (part, chunk) in content.chunks(MAX_CHUNK_BYTES).enumerate() {
                session.write(2 + index, (part * MAX_CHUNK_BYTES) as u64, chunk, Instant::now())?;
            }
        }
        let mut staged = session.finish()?;
        let facts = compile(&mut staged)?;
        Ok(Some(self.publish(staged, facts, SystemTime::now())?))
    }
}

#[cfg(test)]
mod tests;
