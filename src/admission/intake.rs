//! The way of an adapter in, whichever door it comes by: check → publish → load.
//!
//! Every refusal comes as early as it can be known: from the header, from the beginning of the files, from their whole
//! content. A door only says what came, in the words of its protocol; what is counted of an upload is counted here.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::background::{Lost, in_background, off_reactor};
use super::texts::AdapterTexts;
use crate::adapters::import::AdapterFolder;
use crate::adapters::{
    AdapterError, AdapterRegistry, Begin, CHAT_TEMPLATE_FILE, CONFIG_FILE, Published, ResidentLease, Staged,
    UploadHeader, UploadSession,
};
use crate::engine::{AdapterInstaller, InstallError};
use crate::telemetry::metrics::{Metrics, UploadOutcome};
use crate::text::{ChatError, OwnTokensError, SavedTokens};
use crate::types::{AdapterFacts, AdapterName, ClientKey, Problem, ToProblem};

/// Why an adapter is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The registry or the store refuses.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Its files are refused, or could not be checked.
    #[error(transparent)]
    Install(Box<InstallError>),
    /// Its chat template is refused.
    #[error(transparent)]
    Template(#[from] ChatError),
    /// The tokens that were saved with it are refused.
    #[error(transparent)]
    Tokens(Box<OwnTokensError>),
    /// What came with the header is not one of the files that it declares.
    #[error("{field} is not what header.files declares for {path}")]
    Undeclared {
        /// Path of the field.
        field: &'static str,
        /// Name of the file.
        path: &'static str,
    },
    /// A defect, contained.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl From<InstallError> for IntakeError {
    fn from(error: InstallError) -> Self {
        Self::Install(Box::new(error))
    }
}

impl From<OwnTokensError> for IntakeError {
    fn from(error: OwnTokensError) -> Self {
        Self::Tokens(Box::new(error))
    }
}

impl ToProblem for IntakeError {
    fn to_problem(&self) -> Problem {
        match self {
            Self::Adapter(error) => error.to_problem(),
            Self::Install(error) => error.to_problem(),
            Self::Template(error) => error.to_problem(),
            Self::Tokens(error) => error.to_problem(),
            Self::Undeclared { field, .. } => Problem::invalid("INVALID_FIELD", field, self),
            Self::Lost(error) => error.to_problem(),
        }
    }
}

/// Files that come with the header, so that a refusal that no weights would change comes before they are sent. Empty: it
/// comes with the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `chat_template.jinja`.
    pub chat_template: Vec<u8>,
}

/// Takes adapters in. One per server.
pub struct Intake {
    registry: Arc<AdapterRegistry>,
    installer: Arc<dyn AdapterInstaller>,
    texts: Arc<AdapterTexts>,
    /// Uploads that are being compiled: that takes as many cores as it gets, and requests need them.
    checks: Arc<Semaphore>,
    metrics: Metrics,
}

impl Intake {
    /// An intake for `registry`, which checks by means of `installer` and `texts`.
    #[must_use]
    pub fn new(
        registry: Arc<AdapterRegistry>,
        installer: Arc<dyn AdapterInstaller>,
        texts: Arc<AdapterTexts>,
        metrics: Metrics,
    ) -> Self {
        Self { registry, installer, texts, checks: Arc::new(Semaphore::new(1)), metrics }
    }

    /// An upload of a client has begun to come.
    #[must_use]
    pub fn arrival(self: &Arc<Self>, client: ClientKey) -> UploadArrival {
        let record = Record { metrics: self.metrics.clone(), bytes: 0, outcome: UploadOutcome::Interrupted };
        UploadArrival { intake: Arc::clone(self), client, record }
    }

    /// Take in an adapter of the operator's under `name`, replacing what the name stood for; its chat template was checked.
    /// `saved` are the tokens that were saved with it. `None`: the store has the same content under this name already.
    /// Blocks.
    ///
    /// # Errors
    /// [`IntakeError::Adapter`], [`IntakeError::Install`], [`IntakeError::Tokens`].
    pub fn import(
        &self,
        name: &AdapterName,
        folder: AdapterFolder<'_>,
        saved: Option<SavedTokens>,
    ) -> Result<Option<Published>, IntakeError> {
        // How many rows it has is known when it is compiled.
        let own = self.texts.own_tokens(saved, Some(u32::MAX))?;
        let folder = AdapterFolder { own_tokens: own.as_deref(), ..folder };
        self.registry.import(name, folder, false, |staged| {
            let facts = self.installer.check(staged)?;
            self.texts.settle(staged, facts.vocab_size)?;
            Ok(facts)
        })
    }

    /// Bring the version that a name stands for to the device, whether or not it was set aside: whoever loads it by name
    /// has looked at why. `pin`: hold it there from now on, or no longer.
    ///
    /// # Errors
    /// Why it cannot be loaded, and nothing is pinned then; why it cannot be pinned.
    pub async fn load(&self, name: &AdapterName, pin: Option<bool>, client: ClientKey) -> Result<(), IntakeError> {
        self.registry.reinstate(name)?;
        // Held until it is pinned, so that what is pinned is on the device.
        let _held = self.hold(name, client).await?;
        match pin {
            None => {}
            Some(true) => drop(self.change(name, move |registry, name| registry.pin(name, client)).await?),
            Some(false) => drop(self.change(name, |registry, name| registry.unpin(name)).await?),
        }
        Ok(())
    }

    async fn hold(&self, name: &AdapterName, client: ClientKey) -> Result<ResidentLease, AdapterError> {
        let want = self.registry.want(name, None, client)?;
        self.installer.acquire(want).await
    }

    /// Change what the registry has of a name, which blocks on the disk.
    async fn change<T: Send + 'static>(
        &self,
        name: &AdapterName,
        work: impl FnOnce(&AdapterRegistry, &AdapterName) -> Result<T, AdapterError> + Send + 'static,
    ) -> Result<T, IntakeError> {
        let (registry, name) = (Arc::clone(&self.registry), name.clone());
        Ok(off_reactor(move || work(&registry, &name)).await??)
    }

    /// All that can be said from the header alone, with what of the files came with it.
    async fn check_early(
        &self,
        header: UploadHeader,
        early: Early,
        client: ClientKey,
    ) -> Result<UploadHeader, IntakeError> {
        let Early { config, chat_template } = early;
        if config.is_empty() && chat_template.is_empty() {
            return Ok(header);
        }
        header.validate(self.registry.uploads().limits())?;
        let installer = Arc::clone(&self.installer);
        let check = move || {
            for (field, path, content) in
                [("header.config", CONFIG_FILE, &config), ("header.chat_template", CHAT_TEMPLATE_FILE, &chat_template)]
            {
                if !content.is_empty() && !header.declares(path, content) {
                    return Err(IntakeError::Undeclared { field, path });
                }
            }
            if !config.is_empty() {
                installer.check_config(&config)?;
            }
            Ok((header, chat_template))
        };
        // A few at a time: a config takes many times its size while it is read.
        let (header, chat_template) = in_background(self.installer.as_ref(), check).await??;
        if !chat_template.is_empty() {
            self.check_template(chat_template, client).await?;
        }
        Ok(header)
    }

    async fn check_template(&self, template: Vec<u8>, client: ClientKey) -> Result<(), IntakeError> {
        Ok(self.texts.check_in_turn(template, client, self.installer.as_ref()).await??)
    }

    /// Every byte is there and is the one declared: check the content.
    async fn check(&self, staged: Staged, client: ClientKey) -> Result<(Staged, AdapterFacts), IntakeError> {
        let (staged, template) =
            off_reactor(move || staged.chat_template().map(|template| (staged, template))).await??;
        if let Some(template) = template {
            self.check_template(template, client).await?;
        }
        // Never closed.
        let turn = Arc::clone(&self.checks).acquire_owned().await.ok();
        let (installer, texts) = (Arc::clone(&self.installer), Arc::clone(&self.texts));
        let check = move || {
            // The turn goes with the work and not with the client, who may leave before it is done.
            let (_turn, mut staged) = (turn, staged);
            let facts = installer.check(&staged)?;
            texts.settle(&mut staged, facts.vocab_size)?;
            Ok::<_, IntakeError>((staged, facts))
        };
        off_reactor(check).await?
    }

    /// An upload that is to be pinned is stored and stays so; what cannot be brought to the device is not pinned there.
    async fn load_pinned(&self, name: &AdapterName, client: ClientKey) -> Result<(), IntakeError> {
        if let Err(error) = self.hold(name, client).await {
            tracing::warn!(%name, %error, "an adapter could not be loaded and is not pinned");
            self.change(name, |registry, name| registry.unpin(name)).await?;
        }
        Ok(())
    }
}

/// RAII: what the metrics are told of one upload. One that is dropped unfinished was interrupted.
struct Record {
    metrics: Metrics,
    bytes: u64,
    outcome: UploadOutcome,
}

impl Record {
    /// Refused, where it is an error.
    fn judge<T>(&mut self, result: Result<T, IntakeError>) -> Result<T, IntakeError> {
        if result.is_err() {
            self.outcome = UploadOutcome::Rejected;
        }
        result
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.record_upload(self.outcome, self.bytes);
    }
}

/// An upload of which nothing has come yet. Dropped as it is, it was interrupted.
pub struct UploadArrival {
    intake: Arc<Intake>,
    client: ClientKey,
    record: Record,
}

/// The answer to an upload's header.
pub enum UploadBegun {
    /// Send the files.
    Open(OpenUpload),
    /// This very upload was finished before; nothing more to do.
    Finished(Box<Published>),
}

impl UploadArrival {
    /// The door takes nothing of it.
    pub fn refuse(mut self) {
        self.record.outcome = UploadOutcome::Rejected;
    }

    /// Its header has come, and some of the files with it.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn begin(mut self, header: UploadHeader, early: Early) -> Result<UploadBegun, IntakeError> {
        let begun = self.try_begin(header, early).await;
        let session = match self.record.judge(begun)? {
            Begin::Open(session) => session,
            Begin::Finished(published) => {
                self.record.outcome = UploadOutcome::Unchanged;
                return Ok(UploadBegun::Finished(published));
            }
        };
        let Self { intake, client, record } = self;
        Ok(UploadBegun::Open(OpenUpload { intake, client, session, record }))
    }

    async fn try_begin(&self, header: UploadHeader, early: Early) -> Result<Begin, IntakeError> {
        let header = self.intake.check_early(header, early, self.client).await?;
        let registry = Arc::clone(&self.intake.registry);
        Ok(off_reactor(move || registry.begin_upload(header, Instant::now())).await??)
    }
}

/// An upload whose files come. Dropped as it is, it was interrupted: a resumable one stays open.
pub struct OpenUpload {
    intake: Arc<Intake>,
    client: ClientKey,
    session: UploadSession,
    record: Record,
}

/// What became of an upload.
pub enum Taken {
    /// It is an adapter. `UploadHeader::pin`: and on the device, if it could be loaded.
    Published(Box<Published>),
    /// It would be: it was sent for validation only.
    Valid(Box<ValidUpload>),
}

/// An upload that was sent for validation only, and is valid.
pub struct ValidUpload {
    /// Its files; they go with this.
    pub staged: Staged,
    /// What they compiled to.
    pub facts: AdapterFacts,
    /// There is an adapter of this name.
    pub exists: bool,
}

impl OpenUpload {
    /// The door takes no more of it; a resumable one stays open.
    pub fn refuse(mut self) {
        self.record.outcome = UploadOutcome::Rejected;
    }

    /// Append a chunk to a file of the header. A refused chunk ends the stream; a resumable upload stays open, unless what
    /// has come of it shows that it can never be accepted.
    ///
    /// # Errors
    /// Why the chunk is refused, or the adapter whatever else comes.
    pub async fn write(self, file_index: usize, offset: u64, data: Bytes) -> Result<Self, IntakeError> {
        let Self { intake, client, mut session, mut record } = self;
        let (installer, bytes) = (Arc::clone(&intake.installer), data.len() as u64);
        let write = move || {
            session.write(file_index, offset, &data, Instant::now())?;
            if let Some(head) = session.head()
                && let Err(refused) = installer.check_head(&head)
            {
                session.refuse();
                return Err(refused.into());
            }
            Ok(session)
        };
        let written: Result<Result<_, IntakeError>, Lost> = in_background(intake.installer.as_ref(), write).await;
        let session = record.judge(written.map_err(IntakeError::from).flatten())?;
        record.bytes += bytes;
        Ok(Self { intake, client, session, record })
    }

    /// All that the client had to send has come: check it, give it its name, and bring it to the device where it is to be
    /// pinned.
    ///
    /// # Errors
    /// Why it is refused; nothing is stored then.
    pub async fn finish(self) -> Result<Taken, IntakeError> {
        let Self { intake, client, session, mut record } = self;
        let taken = Self::take(&intake, client, session).await;
        let taken = record.judge(taken)?;
        record.outcome = match &taken {
            Taken::Valid(_) => UploadOutcome::Validated,
            Taken::Published(published) => match (published.created, published.replaced) {
                (true, _) => UploadOutcome::Created,
                (false, Some(_)) => UploadOutcome::Replaced,
                (false, None) => UploadOutcome::Unchanged,
            },
        };
        if let Taken::Published(published) = &taken
            && published.adapter.pinned
        {
            intake.load_pinned(&published.adapter.name, client).await?;
        }
        Ok(taken)
    }

    async fn take(intake: &Intake, client: ClientKey, session: UploadSession) -> Result<Taken, IntakeError> {
        let staged = in_background(intake.installer.as_ref(), move || session.finish()).await??;
        let (staged, facts) = intake.check(staged, client).await?;
        if staged.validate_only() {
            let exists = intake.registry.get(staged.name()).is_ok();
            return Ok(Taken::Valid(Box::new(ValidUpload { staged, facts, exists })));
        }
        let registry = Arc::clone(&intake.registry);
        let published = off_reactor(move || registry.publish(staged, facts, SystemTime::now())).await??;
        Ok(Taken::Published(Box::new(published)))
    }
}

#[cfg(test)]
mod tests;
