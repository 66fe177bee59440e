//! An upload that is complete.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::super::disk::Patience;
use super::super::error::AdapterError;
use super::super::files::{CHAT_TEMPLATE_FILE, CONFIG_FILE, Expected, FileRole, StoredFile, WEIGHTS_FILE};
use super::super::published::Published;
use super::super::stored::AdapterBytes;
use super::super::sync::lock;
use super::desk::Desk;
use super::session::Session;
use crate::types::{AdapterName, AdapterVersion, ClientKey};

/// Files that are complete, verified and durable, and bound to no name yet. Check their content, then
/// [`publish`](super::super::AdapterRegistry::publish) them; dropping them removes them.
pub struct Staged {
    desk: Arc<Desk>,
    session: Arc<Session>,
    published: Option<Published>,
}

impl Staged {
    pub(super) fn new(desk: Arc<Desk>, session: Arc<Session>) -> Self {
        Self { desk, session, published: None }
    }

    /// The name to bind.
    #[must_use]
    pub fn name(&self) -> &AdapterName {
        &self.session.header.name
    }

    /// The digest of the files.
    #[must_use]
    pub fn version(&self) -> AdapterVersion {
        self.session.header.version
    }

    /// The folder that holds `adapter_config.json` and `adapter_model.safetensors`, and `chat_template.jinja` where it is
    /// the adapter's own, nothing else.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.session.dir
    }

    /// The files that will be kept, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<StoredFile> {
        self.session.header.stored_files()
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
        self.files().iter().filter(|file| file.path != CHAT_TEMPLATE_FILE).map(|file| file.size).sum()
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
