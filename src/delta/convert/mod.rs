//! Weights in another form, made into the one safetensors file that is served: pickles as torch saves them (read as
//! data, never run) and safetensors files in several parts.
//!
//! This is for whoever brings an adapter from a folder; uploads are safetensors and nothing else. Same input, same bytes:
//! the version of an adapter does not depend on when it was converted.

mod archive;
mod error;
mod machine;
mod parts;
pub(super) mod tensors;

use std::path::Path;

pub use error::ConvertError;
pub use machine::PickleError;

use tensors::Tensors;

/// Convert the pickled weights at `from`, as `torch.save` writes them, into a safetensors file at `to`. Blocks.
///
/// # Errors
/// [`ConvertError`]; what is refused was not run.
pub fn pickle_to_safetensors(from: &Path, to: &Path) -> Result<(), ConvertError> {
    write(&archive::read(crate::files::open(from)?)?, to)
}

/// Join safetensors files in `folder` into one at `to`. Blocks.
///
/// # Errors
/// [`ConvertError`].
pub fn join_safetensors(folder: &Path, parts: &[String], to: &Path) -> Result<(), ConvertError> {
    write(&parts::read(folder, parts)?, to)
}

fn write(tensors: &Tensors, to: &Path) -> Result<(), ConvertError> {
    let written = safetensors::serialize_to_file(tensors.iter(), None, to);
    written.map_err(|error| std::io::Error::other(error).into())
}

#[cfg(test)]
mod tests;
