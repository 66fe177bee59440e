//! Receipts in files.

use std::path::Path;

use super::exit::CliError;

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
