//! The tensors of an upload, taken out one by one so that what nobody took is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::format::Format;
use crate::delta::DeltaError;
use crate::delta::adapterhub;
use crate::delta::layout::BaseLayout;
use crate::delta::peft::keys::{Keys, Level, is_of_a_model};
use crate::delta::safetensors::{
    Header, HeaderLimits, SafetensorsError, TensorInfo, check_finite, check_fits_bf16, read_header,
};
use crate::ops::{HostTensor, OpsError, TensorData, TensorDtype, TensorReader};

/// Views into a checked safetensors file, by the keys that PEFT writes, or those of [`adapterhub`], whatever the file's own are.
pub(crate) struct TensorSet<'a> {
    tensors: BTreeMap<String, Entry<'a>>,
    /// Keys that mean nothing to this base, in order.
    unknown: Vec<String>,
    level: Level,
    has_no_numbers: bool,
}

#[derive(Clone)]
struct Entry<'a> {
    /// The file's own.
    key: String,
    dtype: TensorDtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorSet<'a> {
    /// All tensors of a file: its header checked before anything is allocated, every number finite, also as bf16.
    pub(crate) fn read(file: &'a [u8], format: Format, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let header = read_header(file, &HeaderLimits::default())?;
        let mut entries = BTreeMap::new();
        for tensor in &header.tensors {
            // The header's check has put every range inside the file.
            let bytes = header.data(file, tensor).unwrap_or_default();
            check_finite(&tensor.name, tensor.dtype, bytes)?;
            check_fits_bf16(&tensor.name, tensor.dtype, bytes)?;
            entries.insert(tensor.name.clone(), (tensor.dtype, tensor.shape.clone(), bytes));
        }
        Self::of(entries, format, layout)
    }

    /// The tensors of a header whose data has not come: their shapes can be looked at, and they have no numbers.
    pub(crate) fn without_numbers(header: &Header, format: Format, layout: &BaseLayout) -> Result<Self, DeltaError> {
        let entry = |tensor: &TensorInfo| (tensor.name.clone(), (tensor.dtype, tensor.shape.clone(), &[][..]));
        let tensors = Self::of(header.tensors.iter().map(entry).collect(), format, layout)?;
        Ok(Self { has_no_numbers: true, ..tensors })
    }

    /// By the file's own keys.
    fn of(
        mut entries: BTreeMap<String, (TensorDtype, Vec<usize>, &'a [u8])>,
        format: Format,
        layout: &BaseLayout,
    ) -> Result<Self, DeltaError> {
        let names = entries.keys().map(String::as_str);
        let Keys { known, unknown, level } = match format {
            Format::Peft => Keys::read(names, layout)?,
            Format::AdapterHub => {
                let adapterhub::keys::Keys { known, unknown } = adapterhub::keys::Keys::read(names, layout)?;
                Keys { known, unknown, level: Level::default() }
            }
        };
        let entry = |(name, key): (String, String)| {
            let (dtype, shape, bytes) = entries.remove(key.as_str())?;
            Some((name, Entry { key, dtype, shape, bytes: Cow::Borrowed(bytes) }))
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
        let Some(Entry { dtype, bytes, .. }) = self.take_as(name, expected, |dtype| !dtype.is_integer())? else {
            return Ok(None);
        };
        Ok(Some(HostTensor { data: decode(dtype, &bytes)?, shape: expected.to_vec() }))
    }

    /// As [`TensorSet::take_shaped`], and leave it there for others.
    pub(crate) fn peek_shaped(&mut self, name: &str, expected: &[usize]) -> Result<Option<HostTensor>, DeltaError> {
        let Some(entry) = self.tensors.get(name).cloned() else { return Ok(None) };
        let taken = self.take_shaped(name, expected);
        self.tensors.insert(name.to_owned(), entry);
        taken
    }

    /// Take a tensor of indices of a known shape if it is there; without any where there are no numbers yet. Each row of the
    /// tensor, along its first size, has a bound of its own below which its indices are.
    pub(crate) fn take_indices(
        &mut self,
        name: &str,
        expected: &[usize],
        dtypes: IndexDtypes,
        bounds: impl Fn(usize) -> usize,
    ) -> Result<Option<Indices<'a>>, DeltaError> {
        let Some(Entry { key, dtype, bytes, .. }) = self.take_as(name, expected, |dtype| dtypes.contain(dtype))? else {
            return Ok(None);
        };
        let Cow::Borrowed(bytes) = bytes else { unreachable!("tensors of indices are as the file has them") };
        let indices = Indices { dtype, bytes };
        let of_row = expected.iter().skip(1).product::<usize>().max(1);
        for (at, index) in indices.wide().enumerate() {
            let bound = bounds(at / of_row);
            if usize::try_from(index).ok().is_none_or(|index| index >= bound) {
                return Err(DeltaError::Index { tensor: key, at, index, bound });
            }
        }
        Ok(Some(indices))
    }

    fn take_as(
        &mut self,
        name: &str,
        expected: &[usize],
        takes: impl Fn(TensorDtype) -> bool,
    ) -> Result<Option<Entry<'a>>, DeltaError> {
        let Some(entry) = self.tensors.remove(name) else { return Ok(None) };
        if entry.shape != expected && !is_flat(&entry.shape, expected) {
            return Err(DeltaError::Shape { tensor: entry.key, found: entry.shape, expected: expected.to_vec() });
        }
        if !takes(entry.dtype) {
            let dtype = entry.dtype.as_str().to_owned();
            return Err(SafetensorsError::UnsupportedDtype { tensor: entry.key, dtype }.into());
        }
        Ok(Some(entry))
    }

    /// The shape of a tensor that nobody took.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Give a tensor the name of another.
    pub(crate) fn rename(&mut self, name: &str, other: String) {
        if let Some(entry) = self.tensors.remove(name) {
            self.tensors.insert(other, entry);
        }
    }

    /// Make the rows of a matrix, or its columns where `across`, so many: what is beyond them is taken off and handed over; what
    /// is lacking is that of `fill`, or zeros.
    pub(crate) fn resize(
        &mut self,
        name: &str,
        across: bool,
        size: usize,
        fill: Option<&HostTensor>,
    ) -> Result<HostTensor, DeltaError> {
        let none = HostTensor { shape: vec![0, 0], data: TensorData::F32(Vec::new()) };
        let (no_numbers, Some(entry)) = (self.has_no_numbers, self.tensors.get_mut(name)) else { return Ok(none) };
        let [rows, cols] = entry.shape[..] else { return Ok(none) };
        let before = if across { cols } else { rows };
        entry.shape[usize::from(across)] = size;
        let beyond = before.saturating_sub(size);
        let shape = if across { vec![rows, beyond] } else { vec![beyond, cols] };
        if no_numbers {
            return Ok(HostTensor { shape, data: TensorData::F32(Vec::new()) });
        }
        let (bytes, dtype) = (entry.dtype.size(), entry.dtype);
        // Rows of a matrix are one piece, of its columns one for each row.
        let (pieces, of_one) = if across { (rows, bytes) } else { (1, cols * bytes) };
        let kept = before.min(size) * of_one;
        // An embedding is large: what is kept of it stays where it is.
        if let (Cow::Borrowed(all), false, true) = (&entry.bytes, across, size <= before) {
            let all: &'a [u8] = all;
            let (inside, outside) = all.split_at(kept);
            entry.bytes = Cow::Borrowed(inside);
            return Ok(HostTensor { shape, data: decode(dtype, outside)? });
        }
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for piece in entry.bytes.chunks_exact((entry.bytes.len() / pieces.max(1)).max(1)) {
            inside.extend_from_slice(&piece[..kept]);
            outside.extend_from_slice(&piece[kept..]);
            let lacking = before..size.max(before);
            match fill {
                Some(fill) => {
                    let numbers = fill.selected(&lacking.collect::<Vec<_>>())?.to_f32();
                    numbers.iter().for_each(|number| dtype.encode(*number, &mut inside));
                }
                None => inside.resize(inside.len() + lacking.len() * of_one, 0),
            }
        }
        let beyond = HostTensor { shape, data: decode(dtype, &outside)? };
        entry.bytes = Cow::Owned(inside);
        Ok(beyond)
    }

    /// Take a tensor away, whatever it is. False: it is not there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.tensors.remove(name).is_some()
    }

    /// Whether a tensor is there and nobody took it.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor is there, and nobody took it, whose name lies between two, the first included.
    pub(crate) fn has_between(&self, first: &str, end: &str) -> bool {
        self.tensors.range::<str, _>((Bound::Included(first), Bound::Excluded(end))).next().is_some()
    }

    /// Take a tensor away if it equals the base's, compared in the file's dtype: training may have held the base in
    /// fewer bits. PEFT would go on with the rounded copy; here the base stays as it is. False: it is there and differs.
    pub(crate) fn drop_copy(&mut self, name: &str, base: &HostTensor) -> Result<bool, DeltaError> {
        let Some(entry) = self.tensors.get(name) else { return Ok(true) };
        let (dtype, shape) = (entry.dtype, &entry.shape);
        if *shape != base.shape || dtype.is_integer() {
            return Ok(false);
        }
        let copy = decode(dtype, &entry.bytes)?;
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

/// How a file may hold indices.
#[derive(Clone, Copy)]
pub(crate) enum IndexDtypes {
    Integers,
    /// Or whole numbers as f32.
    IntegersOrF32,
}

impl IndexDtypes {
    fn contain(self, dtype: TensorDtype) -> bool {
        match self {
            Self::Integers => dtype.is_integer(),
            Self::IntegersOrF32 => dtype.is_integer() || dtype == TensorDtype::F32,
        }
    }
}

/// Indices of a file, each within its bound.
#[derive(Clone, Copy)]
pub(crate) struct Indices<'a> {
    dtype: TensorDtype,
    bytes: &'a [u8],
}

impl<'a> Indices<'a> {
    /// How many there are.
    pub(crate) fn len(self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// All of them, row-major.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> + Clone + use<'a> {
        self.wide().map(|index| index as usize)
    }

    /// The same, before they are known to be within any bound; what is no whole number is below every one.
    fn wide(self) -> impl Iterator<Item = i64> + Clone + use<'a> {
        let float = |bytes| Some(f32::from_le_bytes(bytes)).filter(|index| index.fract() == 0.0);
        let one = move |bytes: &[u8]| match *bytes {
            [a] => i64::from(a),
            [a, b] => i64::from(i16::from_le_bytes([a, b])),
            [a, b, c, d] if self.dtype == TensorDtype::F32 => float([a, b, c, d]).map_or(-1, |index| index as i64),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => bytes.first_chunk().map_or(-1, |bytes| i64::from_le_bytes(*bytes)),
        };
        self.bytes.chunks_exact(self.dtype.size()).map(one)
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
