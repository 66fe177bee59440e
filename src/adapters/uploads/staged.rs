//! An upload that is complete.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, Expected, FileRole, StoredFile, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
    WEIGHTS_FILE, version_of,
};
use super::super::published::Published;
use super::super::stored::AdapterBytes;
use super::super::sync::lock;
use super::desk::Desk;
use super::session::Session;
use crate::types::{AdapterName, AdapterVersion, ClientKey, Sha256Digest};

/// Files that are complete, verified and durable, and bound to no name yet. Check their content, then
/// [`publish`](super::super::AdapterRegistry::publish) them; dropping them removes them.
pub struct Staged {
    desk: Arc<Desk>,
    session: Arc<Session>,
    tokenizer: Tokenizer,
    published: Option<Published>,
}

/// What becomes of the tokenizer that came with an adapter.
enum Tokenizer {
    /// Its files lie in the folder as they came.
    AsItCame,
    /// They do not, and this does.
    Kept(Option<StoredFile>),
}

/// The files of a tokenizer as they came, those that did.
#[derive(Debug, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub config: Option<Vec<u8>>,
}

impl Staged {
    pub(super) fn new(desk: Arc<Desk>, session: Arc<Session>) -> Self {
        let came = session.header.files.iter().any(|declared| declared.role == FileRole::Tokenizer);
        let tokenizer = if came { Tokenizer::AsItCame } else { Tokenizer::Kept(None) };
        Self { desk, session, tokenizer, published: None }
    }

    /// The name to bind.
    #[must_use]
    pub fn name(&self) -> &AdapterName {
        &self.session.header.name
    }

    /// The digest of the files that will be kept.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        match &self.tokenizer {
            Tokenizer::Kept(Some(_)) => version_of(&self.files()),
            Tokenizer::Kept(None) | Tokenizer::AsItCame => self.session.header.version,
        }
    }

    /// The folder that holds `adapter_config.json` and `adapter_model.safetensors`, and `chat_template.jinja` where it is
    /// the adapter's own; of a tokenizer what came, until [`Staged::keep_tokenizer`] says what is kept. Nothing else.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.session.dir
    }

    /// The files that will be kept, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<StoredFile> {
        let mut files = self.session.header.stored_files();
        if let Tokenizer::Kept(Some(kept)) = &self.tokenizer {
            files.push(kept.clone());
            files.sort();
        }
        files
    }

    /// One of the files has tokens that the base does not have.
    #[must_use]
    pub fn has_own_tokens(&self) -> bool {
        matches!(self.tokenizer, Tokenizer::Kept(Some(_)))
    }

    /// The files of a tokenizer that came with it. Blocks.
    ///
    /// # Errors
    /// The disk.
    pub fn tokenizer(&self) -> Result<TokenizerFiles, AdapterError> {
        let declared = |name| self.session.header.files.iter().any(|declared| declared.file.path == name);
        let read = |name| (self.is_as_it_came() && declared(name)).then(|| self.read_file(name)).transpose();
        Ok(TokenizerFiles { tokenizer: read(TOKENIZER_FILE)?, config: read(TOKENIZER_CONFIG_FILE)? })
    }

    fn is_as_it_came(&self) -> bool {
        matches!(self.tokenizer, Tokenizer::AsItCame)
    }

    /// Keep `own` as the adapter's `tokenizer.json`, or none, in place of what came of its tokenizer, durably. Blocks.
    ///
    /// # Errors
    /// The disk; the upload is to be dropped then.
    pub fn keep_tokenizer(&mut self, own: Option<&[u8]>) -> Result<(), AdapterError> {
        self.replace_tokenizer(own).map_err(AdapterError::io("writing a staged file"))?;
        let stored = |own: &[u8]| {
            let (size, sha256) = (own.len() as u64, Sha256Digest::of(own));
            StoredFile { path: TOKENIZER_FILE.to_owned(), size, sha256 }
        };
        self.tokenizer = Tokenizer::Kept(own.map(stored));
        Ok(())
    }

    fn replace_tokenizer(&self, own: Option<&[u8]>) -> io::Result<()> {
        let (fs, files) = (self.desk.fs.as_ref(), self.session.header.files.iter());
        for came in files.filter(|declared| self.is_as_it_came() && declared.role == FileRole::Tokenizer) {
            fs.remove_file(&self.dir().join(&came.file.path))?;
        }
        if let Some(own) = own {
            let mut file = fs.create_file(&self.dir().join(TOKENIZER_FILE))?;
            file.append(own)?;
            file.sync()?;
        }
        fs.sync_dir(self.dir())
    }

    /// What nobody has said to be kept is not.
    pub(in super::super) fn settle(&mut self) -> Result<(), AdapterError> {
        if self.is_as_it_came() { self.keep_tokenizer(None) } else { Ok(()) }
    }

    /// One of the files is a chat template of the adapter's own.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.session.header.files.iter().any(|declared| declared.role == FileRole::ChatTemplate)
    }

    /// The adapter's own chat template, where it has one. Blocks.
    ///
    /// # Errors
    /// The disk.
    pub fn chat_template(&self) -> Result<Option<Vec<u8>>, AdapterError> {
        self.has_chat_template().then(|| self.read_file(CHAT_TEMPLATE_FILE)).transpose()
    }

    /// Bytes that [`Staged::read`] reads.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        let read = |file: &&StoredFile| matches!(file.path.as_str(), CONFIG_FILE | WEIGHTS_FILE);
        self.files().iter().filter(read).map(|file| file.size).sum()
    }

    /// Config and weights, as they were verified. Blocks.
    ///
    /// # Errors
    /// The disk; a lack of memory is one of its failures.
    pub fn read(&self) -> Result<AdapterBytes, AdapterError> {
        Ok(AdapterBytes { config: self.read_file(CONFIG_FILE)?, weights: self.read_file(WEIGHTS_FILE)? })
    }

    fn read_file(&self, name: &'static str) -> Result<Vec<u8>, AdapterError> {
        let declared = self.session.header.files.iter().find(|declared| declared.file.path == name);
        let size = declared.ok_or(AdapterError::MissingFile { path: name })?.file.size;
        let read = Patience::short().read(self.desk.fs.as_ref(), &self.dir().join(name), size);
        read.map_err(AdapterError::io("reading a staged file"))
    }

    /// The client wants to know whether it would be accepted, no more.
    #[must_use]
    pub fn validate_only(&self) -> bool {
        self.session.header.validate_only
    }

    /// Keep it on the device once loaded.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.session.header.pin
    }

    /// Who uploaded it.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.session.client
    }

    /// The compare and set.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.session.header.expected
    }

    /// The upload succeeded with this result: remember it for a repetition.
    pub(in super::super) fn remember(&mut self, published: Published) {
        self.published = Some(published);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        {
            let mut table = lock(&self.desk.table);
            table.remove(&self.session);
            if let Some(published) = self.published.take() {
                table.remember(&self.session, published);
            }
        }
        self.desk.close(&self.session);
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("name", self.name()).field("version", &self.version()).finish()
    }
}
