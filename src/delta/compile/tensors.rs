//! The tensors of an upload, taken out one by one so that what nobody took is refused.

use std::collections::BTreeMap;

use crate::delta::DeltaError;
use crate::delta::layout::BaseLayout;
use crate::delta::peft::keys::{Keys, Level, is_of_a_model};
use crate::delta::safetensors::{Header, HeaderLimits, TensorInfo, check_finite, check_fits_bf16, read_header};
use crate::ops::{HostTensor, OpsError, TensorData, TensorDtype, TensorReader};

/// Views into a checked safetensors file, by the keys that PEFT writes whatever the file's own are.
pub(crate) struct TensorSet<'a> {
    tensors: BTreeMap<String, Entry<'a>>,
    /// Keys that mean nothing to this base, in order.
    unknown: Vec<String>,
    level: Level,
    has_no_numbers: bool,
}

struct Entry<'a> {
    /// The file's own.
    key: String,
    dtype: TensorDtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> TensorSet<'a> {
    /// All tensors of a file: its header checked before anything is allocated, every number finite, also as bf16.
    pub(crate) fn read(file: &'a [u8], layout: &BaseLayout) -> Result<Self, DeltaError> {
        let header = read_header(file, &HeaderLimits::default())?;
        let mut entries = BTreeMap::new();
        for tensor in &header.tensors {
            // The header's check has put every range inside the file.
            let bytes = header.data(file, tensor).unwrap_or_default();
            check_finite(&tensor.name, tensor.dtype, bytes)?;
            check_fits_bf16(&tensor.name, tensor.dtype, bytes)?;
            entries.insert(tensor.name.clone(), (tensor.dtype, tensor.shape.clone(), bytes));
        }
        Self::of(entries, layout)
    }

    /// The tensors of a header whose data has not come: their shapes can be looked at, and they have no numbers.
    pub(crate) fn without_numbers(header: &Header, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let entry = |tensor: &TensorInfo| (tensor.name.clone(), (tensor.dtype, tensor.shape.clone(), &[][..]));
        let tensors = Self::of(header.tensors.iter().map(entry).collect(), layout)?;
        Ok(Self { has_no_numbers: true, ..tensors })
    }

    /// By the file's own keys.
    fn of(
        mut entries: BTreeMap<String, (TensorDtype, Vec<usize>, &'a [u8])>,
        layout: &BaseLayout,
    ) -> Result<Self, DeltaError> {
        let Keys { known, unknown, level } = Keys::read(entries.keys().map(String::as_str), layout)?;
        let entry = |(name, key): (String, String)| {
            let (dtype, shape, bytes) = entries.remove(key.as_str())?;
            Some((name, Entry { key, dtype, shape, bytes }))
        };
        let tensors = known.into_iter().filter_map(entry).collect();
        Ok(Self { tensors, unknown, level, has_no_numbers: false })
    }

    /// The tensors are there in name and shape alone.
    pub(crate) fn has_no_numbers(&self) -> bool {
        self.has_no_numbers
    }

    /// How the paths that the config means differ from the base's.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Keys that mean nothing to this base.
    pub(crate) fn unknown(&self) -> &[String] {
        &self.unknown
    }

    /// One of the keys where all of them, and more than one, are those of a whole model.
    pub(crate) fn whole_model(&self) -> Option<&str> {
        let mut keys = self.tensors.values().map(|entry| &entry.key).chain(&self.unknown);
        let first = keys.next()?;
        let mut count = 1;
        let all = is_of_a_model(first) && keys.inspect(|_| count += 1).all(|key| is_of_a_model(key));
        (all && count > 1).then_some(first.as_str())
    }

    /// The file's own key of a tensor that nobody took.
    pub(crate) fn own_key(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|entry| entry.key.as_str())
    }

    /// Some of the file's own keys, those for a module first, for people.
    pub(crate) fn examples(&self, prefix: &str) -> String {
        let keys = |of_module: bool| {
            let chosen = self.tensors.iter().filter(move |(name, _)| name.starts_with(prefix) == of_module);
            chosen.map(|(_, entry)| format!("`{}`", entry.key))
        };
        let examples: Vec<_> = keys(true).chain(keys(false)).take(2).collect();
        if examples.is_empty() { "no other tensor".to_owned() } else { examples.join(", ") }
    }

    /// Take a tensor of a known shape if it is there. A vector that the method keeps as a matrix of one row or column
    /// may come as a vector.
    pub(crate) fn take_shaped(&mut self, name: &str, expected: &[usize]) -> Result<Option<HostTensor>, DeltaError> {
        let Some(entry) = self.tensors.remove(name) else { return Ok(None) };
        let Entry { key, dtype, shape, bytes } = entry;
        if shape != expected && !is_flat(&shape, expected) {
            return Err(DeltaError::Shape { tensor: key, found: shape, expected: expected.to_vec() });
        }
        Ok(Some(HostTensor { data: decode(dtype, bytes)?, shape: expected.to_vec() }))
    }

    /// Take a tensor away, whatever it is. False: it is not there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// Whether a tensor is there and nobody took it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Take a tensor away if it equals the base's, compared in the file's dtype: training may have held the base in
    /// fewer bits. PEFT would go on with the rounded copy; here the base stays as it is. False: it is there and differs.
    pub(crate) fn drop_copy(&mut self, name: &str, base: &HostTensor) -> Result<bool, DeltaError> {
        let Some(entry) = self.tensors.get(name) else { return Ok(true) };
        let (dtype, shape) = (entry.dtype, &entry.shape);
        if *shape != base.shape {
            return Ok(false);
        }
        let copy = decode(dtype, entry.bytes)?;
        let copy = HostTensor { shape: shape.clone(), data: copy };
        let equal = copy.to_f32().iter().zip(base.to_f32()).all(|(copy, base)| *copy == dtype.round(base));
        if equal {
            self.tensors.remove(name);
        }
        Ok(equal)
    }

    /// The file's own keys of what nobody took, in order.
    pub(crate) fn left(&self) -> impl Iterator<Item = &str> {
        self.tensors.values().map(|entry| entry.key.as_str())
    }
}

/// `[n]` in place of `[1, n]` or `[n, 1]`.
fn is_flat(found: &[usize], expected: &[usize]) -> bool {
    matches!((found, expected), ([n], [1, m] | [m, 1]) if n == m)
}

fn decode(dtype: TensorDtype, bytes: &[u8]) -> Result<TensorData, OpsError> {
    let mut reader = TensorReader::new(dtype, bytes.len() / dtype.size(), "an adapter's numbers")?;
    reader.read(bytes);
    Ok(reader.finish())
}
