//! Receipts in files.

use std::path::{Path, PathBuf};

use super::exit::CliError;
use crate::files;
use crate::receipt::Receipt;

/// Most bytes of a file with a receipt: a request has some hundred thousand tokens at the most.
const MAX_BYTES: u64 = 64 << 20;

/// Write the text of one, with a line break at its end.
///
/// # Errors
/// [`CliError::Incomplete`] where the server gave none; the file.
pub(super) async fn write(path: &Path, text: &str) -> Result<(), CliError> {
    if text.is_empty() {
        return Err(CliError::Incomplete { missing: "receipt" });
    }
    let written = tokio::fs::write(path, format!("{text}\n")).await;
    written.map_err(|source| CliError::File { action: "writing", path: path.display().to_string(), source })
}

/// Read one.
///
/// # Errors
/// The file, [`CliError::Receipt`].
pub(super) async fn read(path: PathBuf) -> Result<Receipt, CliError> {
    let shown = path.display().to_string();
    let bytes = tokio::task::spawn_blocking(move || files::read(&path, MAX_BYTES)).await;
    let bytes = bytes.unwrap_or_else(|panic| Err(panic.into()));
    let bytes = bytes.map_err(|source| CliError::File { action: "reading", path: shown.clone(), source })?;
    Receipt::read(&bytes).map_err(|source| CliError::Receipt { path: shown, source })
}
