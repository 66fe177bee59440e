//! Safetensors files that are parts of one, as savers write what is larger than their limit for one file.

use std::path::Path;

use safetensors::SafeTensors;

use super::error::ConvertError;
use super::tensors::{OwnedTensor, Tensors};
use crate::files;

/// Most bytes of one part; savers cut at 5 GB or less.
const MAX_PART_BYTES: u64 = 8 << 30;

/// The tensors of all parts.
pub(super) fn read(folder: &Path, parts: &[String]) -> Result<Tensors, ConvertError> {
    let mut tensors = Tensors::new();
    for part in parts {
        let content = files::read(&folder.join(part), MAX_PART_BYTES)?;
        let bad = |reason: String| ConvertError::Part { file: part.clone(), reason };
        let file = SafeTensors::deserialize(&content).map_err(|error| bad(error.to_string()))?;
        for (name, view) in file.iter() {
            let tensor = OwnedTensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            if tensors.insert(name.to_owned(), tensor).is_some() {
                return Err(ConvertError::Duplicate { tensor: name.to_owned() });
            }
        }
    }
    if tensors.is_empty() { Err(ConvertError::NoTensors) } else { Ok(tensors) }
}
