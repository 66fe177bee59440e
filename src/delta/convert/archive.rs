//! The archive that `torch.save` writes: a zip without compression of `NAME/data.pkl`, a dictionary of tensors, and one
//! file of numbers for each storage, `NAME/data/KEY`.

use std::io::{Read, Seek, SeekFrom};

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::error::ConvertError;
use super::machine::{Id, Pickle, Value};
use super::tensors::{OwnedTensor, Tensors};

/// Most bytes of the pickle; that of a thousand tensors has some hundred thousand.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;
/// Levels of dictionaries in which trainers put the one with the tensors.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "module"];

/// The tensors of an archive.
pub(super) fn read(mut file: impl Read + Seek) -> Result<Tensors, ConvertError> {
    let bytes = file.seek(SeekFrom::End(0))?;
    check_magic(&mut file)?;
    let mut zip = ZipArchive::new(file).map_err(bad)?;
    let pickle_name = pickle_name(&zip)?;
    let root = pickle_name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    let pickle = Pickle::read(&entry(&mut zip, &pickle_name, MAX_PICKLE_BYTES)?)?;
    if let Some(order) = optional(&mut zip, &format!("{root}byteorder"))?.filter(|order| order != b"little") {
        let reason = format!("its numbers are {}-endian", String::from_utf8_lossy(&order));
        return Err(ConvertError::Archive { reason });
    }
    let budget = bytes.saturating_mul(4);
    let mut reader = Reader { zip, root, pickle: &pickle, storage: None, to_read: budget, to_make: budget };
    let mut tensors = Tensors::new();
    for (key, value) in entries(&pickle)? {
        let Some(name) = pickle.text(key) else { return Err(ConvertError::NoTensors) };
        let tensor = reader.tensor(name, value)?;
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return Err(ConvertError::Duplicate { tensor: shorten(name) });
        }
    }
    if tensors.is_empty() { Err(ConvertError::NoTensors) } else { Ok(tensors) }
}

/// Tell what is no zip by its first bytes.
fn check_magic(file: &mut (impl Read + Seek)) -> Result<(), ConvertError> {
    let mut start = [0; 24];
    file.seek(SeekFrom::Start(0))?;
    let mut read = 0;
    while let Some(rest) = start.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            got => read += got,
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let start = start.get(..read).unwrap_or_default();
    match start {
        _ if start.starts_with(b"PK") => Ok(()),
        // PROTO, then LONG1 with torch's magic number.
        [0x80, _, 0x8a, 0x0a, ..] => Err(ConvertError::Legacy),
        _ if start.starts_with(b"version https://git-lfs") => {
            Err(ConvertError::Archive { reason: "it is a Git LFS pointer: run `git lfs pull`".to_owned() })
        }
        _ => Err(ConvertError::Archive { reason: "it does not begin as one".to_owned() }),
    }
}

fn pickle_name<R: Read + Seek>(zip: &ZipArchive<R>) -> Result<String, ConvertError> {
    let mut found = None;
    for name in zip.file_names() {
        let name = name.map_err(bad)?;
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            if found.is_some() {
                return Err(ConvertError::Archive { reason: "it has two pickles".to_owned() });
            }
            found = Some(name.into_owned());
        }
    }
    found.ok_or_else(|| ConvertError::Archive { reason: "it has no data.pkl".to_owned() })
}

fn bad(error: zip::result::ZipError) -> ConvertError {
    match error {
        zip::result::ZipError::Io(error) => ConvertError::Io(error),
        error => ConvertError::Archive { reason: error.to_string() },
    }
}

fn optional<R: Read + Seek>(zip: &mut ZipArchive<R>, name: &str) -> Result<Option<Vec<u8>>, ConvertError> {
    if zip.index_for_name(name).is_none() {
        return Ok(None);
    }
    entry(zip, name, 64).map(Some)
}

/// A file of the archive whole. It is stored as it is, so it cannot be larger than the archive.
fn entry<R: Read + Seek>(zip: &mut ZipArchive<R>, name: &str, max: u64) -> Result<Vec<u8>, ConvertError> {
    let file = zip.by_name(name).map_err(bad)?;
    if file.compression() != CompressionMethod::Stored || file.size() != file.compressed_size() {
        return Err(ConvertError::Archive { reason: format!("{name:?} is compressed, which torch does not do") });
    }
    if file.size() > max {
        let reason = format!("{name:?} has {} bytes, the limit is {max}", file.size());
        return Err(ConvertError::Archive { reason });
    }
    let size = file.size();
    let mut content = Vec::new();
    // Grows with what really comes.
    file.take(max).read_to_end(&mut content)?;
    if content.len() as u64 == size {
        Ok(content)
    } else {
        Err(ConvertError::Archive { reason: format!("{name:?} ends too early") })
    }
}

/// The entries of the dictionary with the tensors, which may lie in another one.
fn entries(pickle: &Pickle) -> Result<Vec<(Id, Id)>, ConvertError> {
    let mut dict = pickle.root();
    loop {
        let Value::Dict(entries) = dict else { return Err(ConvertError::NoTensors) };
        let inner = entries.iter().find_map(|(key, value)| {
            let named = pickle.text(*key).is_some_and(|key| WRAPPERS.contains(&key));
            (named && matches!(pickle.get(*value), Value::Dict(_))).then_some(*value)
        });
        match inner {
            // Values are made before what holds them, so this ends: a dictionary cannot be the first entry of itself.
            Some(inner) if !std::ptr::eq(pickle.get(inner), dict) && entries.len() <= WRAPPERS.len() * 4 => {
                dict = pickle.get(inner);
            }
            _ => return Ok(entries.clone()),
        }
    }
}

struct Reader<'a, R> {
    zip: ZipArchive<R>,
    root: String,
    pickle: &'a Pickle,
    /// The storage read last: tensors of one storage follow each other.
    storage: Option<(String, Vec<u8>)>,
    /// Bytes that may still be read: many entries may name one place of the archive.
    to_read: u64,
    /// Bytes that the tensors may still take together: a file of a few bytes must not become a large one.
    to_make: u64,
}

/// Where the numbers of a tensor are.
struct Layout<'a> {
    storage: &'a str,
    dtype: Dtype,
    count: usize,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl<R: Read + Seek> Reader<'_, R> {
    fn tensor(&mut self, name: &str, value: Id) -> Result<OwnedTensor, ConvertError> {
        let layout = layout(self.pickle, name, value)?;
        let unfit = || ConvertError::Tensor { tensor: shorten(name), shape: layout.shape.clone() };
        let size = layout.dtype.bitsize() / 8;
        let numbers = layout.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let bytes = numbers.and_then(|numbers| numbers.checked_mul(size)).ok_or_else(unfit)?;
        self.to_make = self.to_make.checked_sub(bytes as u64).ok_or_else(unfit)?;
        let storage = match self.storage.take().filter(|(key, _)| key == layout.storage) {
            Some((_, storage)) => storage,
            None => {
                let file = format!("{}data/{}", self.root, layout.storage);
                let max = (layout.count as u64).saturating_mul(size as u64).min(self.to_read);
                let storage = entry(&mut self.zip, &file, max)?;
                self.to_read -= storage.len() as u64;
                storage
            }
        };
        let mut gathered = Vec::with_capacity(bytes);
        gather(&storage, &layout, size, &mut gathered).ok_or_else(unfit)?;
        self.storage = Some((layout.storage.to_owned(), storage));
        Ok(OwnedTensor { dtype: layout.dtype, shape: layout.shape, bytes: gathered })
    }
}

/// Copy a tensor's numbers in row-major order. `None`: it reaches beyond its storage.
fn gather(storage: &[u8], layout: &Layout<'_>, size: usize, out: &mut Vec<u8>) -> Option<()> {
    if layout.shape.contains(&0) {
        return Some(());
    }
    let mut last = layout.offset;
    for (dim, stride) in layout.shape.iter().zip(&layout.stride) {
        last = last.checked_add((dim - 1).checked_mul(*stride)?)?;
    }
    storage.get(..last.checked_add(1)?.checked_mul(size)?)?;
    let mut index = vec![0usize; layout.shape.len()];
    let mut at = layout.offset;
    loop {
        out.extend_from_slice(storage.get(at * size..(at + 1) * size)?);
        // Count up, the last dimension first.
        let mut dim = layout.shape.len();
        loop {
            dim = match dim.checked_sub(1) {
                None => return Some(()),
                Some(dim) => dim,
            };
            index[dim] += 1;
            at += layout.stride[dim];
            if index[dim] < layout.shape[dim] {
                break;
            }
            at -= layout.stride[dim] * layout.shape[dim];
            index[dim] = 0;
        }
    }
}

/// Take the calls apart by which torch builds a tensor.
fn layout<'a>(pickle: &'a Pickle, name: &str, value: Id) -> Result<Layout<'a>, ConvertError> {
    let not_a_tensor = || ConvertError::NotATensor { key: shorten(name) };
    let mut value = value;
    // A parameter is a tensor in a call, and a subclass of it in one more.
    for _ in 0..4 {
        let Value::Call(callee, arguments) = pickle.get(value) else { return Err(not_a_tensor()) };
        let arguments = pickle.tuple(*arguments).ok_or_else(not_a_tensor)?;
        match (pickle.name(*callee), arguments) {
            (Some("torch._utils._rebuild_parameter"), [tensor, ..]) => value = *tensor,
            (
                Some("torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor"),
                [storage, offset, shape, stride, ..],
            ) => {
                return plain(pickle, name, [*storage, *offset, *shape, *stride]);
            }
            _ => return Err(not_a_tensor()),
        }
    }
    Err(not_a_tensor())
}

fn plain<'a>(pickle: &'a Pickle, name: &str, parts: [Id; 4]) -> Result<Layout<'a>, ConvertError> {
    let not_a_tensor = || ConvertError::NotATensor { key: shorten(name) };
    let [storage, offset, shape, stride] = parts;
    let Value::Persistent(storage) = pickle.get(storage) else { return Err(not_a_tensor()) };
    // ('storage', its type, its key, the device it was on, how many numbers it has)
    let [_, kind, key, _, count] = pickle.tuple(*storage).ok_or_else(not_a_tensor)? else { return Err(not_a_tensor()) };
    let kind = pickle.name(*kind).ok_or_else(not_a_tensor)?;
    let dtype = match kind {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::BF16,
        "torch.DoubleStorage" => Dtype::F64,
        other => return Err(ConvertError::Dtype { tensor: shorten(name), dtype: other.to_owned() }),
    };
    let layout = || {
        let key =
            pickle.text(*key).filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
        Some(Layout {
            storage: key,
            dtype,
            count: pickle.size(*count)?,
            offset: pickle.size(offset)?,
            shape: pickle.sizes(shape)?,
            stride: pickle.sizes(stride)?,
        })
    };
    let layout = layout().ok_or_else(not_a_tensor)?;
    if layout.shape.len() != layout.stride.len() || layout.shape.len() > MAX_DIMS {
        return Err(ConvertError::Tensor { tensor: shorten(name), shape: layout.shape });
    }
    Ok(layout)
}

fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}
