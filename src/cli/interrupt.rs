//! Ctrl-C in a verb.

use super::exit::CliError;

/// Do `work` unless Ctrl-C comes first; what is dropped then gives up its call, and the server ends it.
///
/// # Errors
/// Of the work, or [`CliError::Interrupted`].
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::select! {
        // Looked at first, so that it is listened for before anything is begun.
        biased;
        Ok(()) = tokio::signal::ctrl_c() => Err(CliError::Interrupted),
        result = work => result,
    }
}
