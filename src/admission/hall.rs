//! What the gate needs of the hall beside the engine: weights checked and brought to the device.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use crate::adapters::{AdapterError, LoadFailure, ResidentLease, Want};
use crate::types::AdapterFacts;

/// The result of [`AdapterHall::resident`].
pub type ResidentFuture<'a> = Pin<Box<dyn Future<Output = Result<ResidentLease, AdapterError>> + Send + 'a>>;

/// Reads, checks, compiles and installs adapters.
pub trait AdapterHall: Send + Sync {
    /// Compile the adapter in the folder `dir` against the base and throw the result away. Blocks.
    ///
    /// # Errors
    /// Why the adapter is refused, or what failed.
    fn check(&self, dir: &Path) -> Result<AdapterFacts, LoadFailure>;

    /// Bring the wanted version to the device, if it is not there, and hold it there. Dropping the future gives the
    /// wish up.
    fn resident(&self, want: Want) -> ResidentFuture<'_>;
}
