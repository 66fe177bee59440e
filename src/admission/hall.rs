//! What the gate needs of the hall beside the engine: weights checked and brought to the device.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::adapters::{AdapterError, ResidentLease, Staged, UploadHead, Want};
use crate::engine::{DeltaLoader, EngineInstaller, InstallError};
use crate::types::AdapterFacts;

/// The result of [`AdapterHall::resident`].
pub type ResidentFuture<'a> = Pin<Box<dyn Future<Output = Result<ResidentLease, AdapterError>> + Send + 'a>>;

/// Reads, checks, compiles and installs adapters.
pub trait AdapterHall: Send + Sync {
    /// Check an adapter's config before its weights have come. Blocks, but not for long: no weight of the base is read.
    ///
    /// # Errors
    /// Why the adapter is refused.
    fn check_config(&self, config: &[u8]) -> Result<(), InstallError>;

    /// Compile an upload against the base and throw the result away. Blocks.
    ///
    /// # Errors
    /// Why the adapter is refused, or what failed.
    fn check(&self, staged: &Staged) -> Result<AdapterFacts, InstallError>;

    /// Check the beginning of an upload as far as it goes: its config, the header of its weights, and where both are
    /// there, that names and shapes are those of an adapter of the base. Reads no weights.
    ///
    /// # Errors
    /// Why the adapter will be refused, whatever else comes.
    fn check_head(&self, head: &UploadHead) -> Result<(), InstallError>;

    /// Have `work` done where it takes no time from steps: the files of uploads are hashed and written there.
    fn in_background(&self, work: Box<dyn FnOnce() + Send>);

    /// Bring the wanted version to the device, if it is not there, and hold it there. Dropping the future gives the
    /// wish up.
    fn resident(&self, want: Want) -> ResidentFuture<'_>;
}

impl<L: DeltaLoader> AdapterHall for EngineInstaller<L> {
    fn check_config(&self, config: &[u8]) -> Result<(), InstallError> {
        Self::check_config(self, config)
    }

    fn check(&self, staged: &Staged) -> Result<AdapterFacts, InstallError> {
        Self::check(self, staged.bytes_to_read(), || staged.read())
    }

    fn check_head(&self, head: &UploadHead) -> Result<(), InstallError> {
        let weights = head.weights.as_ref().map(|weights| (&weights.bytes[..], weights.file_bytes));
        Self::check_head(self, head.config.as_deref(), weights)
    }

    fn in_background(&self, work: Box<dyn FnOnce() + Send>) {
        self.loaders().spawn(work);
    }

    fn resident(&self, want: Want) -> ResidentFuture<'_> {
        let version = want.version();
        Box::pin(async move {
            Self::acquire(self, want).await.map_err(|error| match error {
                InstallError::Adapter(error) => error,
                InstallError::Delta(_) | InstallError::Memory(_) | InstallError::Step(_) => {
                    AdapterError::LoadFailed { version, source: Arc::new(error) }
                }
                // The engine has ended, and the server with it.
                InstallError::Stopped => AdapterError::LoadAbandoned { version },
            })
        })
    }
}
