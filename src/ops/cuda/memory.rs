//! What lies on the device: activations, matrices, vectors, rotary tables and the KV cache.

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::abi::{Address, KvLayer, MatrixView, RowsView, Untyped};
use super::driver::{Device, DeviceMemory};
use super::uploader::Uploader;
use crate::ops::{ComputeDtype, HostData, HostMatrix, KvShape, OpsError, WeightFormat, nearest_f16};

/// Numbers that a 16-byte piece of the narrowest dtype holds: rows of matrices are as long as a multiple of it.
const NUMBERS_OF_PIECE: usize = 8;

/// f32 rows, and the form that GEMMs read.
#[derive(Debug)]
pub struct Buffer {
    pub(super) values: DeviceMemory,
    pub(super) input: Option<DeviceMemory>,
    cols: usize,
}

impl Buffer {
    /// Zeroed rows; with the form that GEMMs of a dtype read, where that is not f32 itself.
    pub(super) fn new(
        device: &Arc<Device>,
        rows: usize,
        cols: usize,
        input: Option<ComputeDtype>,
    ) -> Result<Self, OpsError> {
        let allocate = |bytes: Option<usize>| {
            let bytes = bytes.ok_or(OpsError::OutOfMemory { what: "a buffer", bytes: u64::MAX })?;
            let memory = DeviceMemory::new(device, &device.compute, "a buffer", bytes)?;
            memory.clear(&device.compute)?;
            Ok(memory)
        };
        let bytes = |cols: usize, size: usize| rows.checked_mul(cols).and_then(|numbers| numbers.checked_mul(size));
        let form = input.filter(|dtype| *dtype != ComputeDtype::F32);
        let input = form.map(|dtype| allocate(bytes(stride(cols), dtype.size()))).transpose()?;
        Ok(Self { values: allocate(bytes(cols, size_of::<f32>()))?, input, cols })
    }

    /// Rows of their own.
    pub(super) fn of(uploader: &Uploader, cols: usize, values: &[f32]) -> Result<Self, OpsError> {
        Ok(Self { values: floats(uploader, "rows", values)?, input: None, cols })
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn view(&self) -> RowsView {
        let input = self.input.as_ref().map_or(Address::NULL, |input| Address::new(input.address()));
        let input_stride = if self.input.is_some() { stride(self.cols) as u32 } else { 0 };
        RowsView { values: Address::new(self.values.address()), input, cols: self.cols as u32, input_stride }
    }
}

/// Columns of a row of a matrix, those behind the last included, which are zero.
pub(super) fn stride(cols: usize) -> usize {
    cols.next_multiple_of(NUMBERS_OF_PIECE)
}

/// Floats on the device.
fn floats(uploader: &Uploader, what: &'static str, values: &[f32]) -> Result<DeviceMemory, OpsError> {
    let memory = uploader.allocate(what, size_of_val(values))?;
    send_list(uploader, (&memory, 0), values, |value| value.to_le_bytes())?;
    Ok(memory)
}

/// Send items to memory from an offset on, one behind the other.
pub(super) fn send_list<T, const SIZE: usize>(
    uploader: &Uploader,
    (memory, offset): (&DeviceMemory, usize),
    items: &[T],
    encode: impl Fn(&T) -> [u8; SIZE],
) -> Result<(), OpsError> {
    /// Items sent as one row.
    const RUN: usize = 1024;
    let (runs, rest) = items.as_chunks::<RUN>();
    uploader.send(memory, offset, runs.len(), RUN * SIZE, |run, bytes| write(&runs[run], bytes, &encode))?;
    let (sent, rest_count) = (runs.len() * RUN * SIZE, usize::from(!rest.is_empty()));
    uploader.send(memory, offset + sent, rest_count, rest.len() * SIZE, |_, bytes| write(rest, bytes, &encode))
}

/// A vector of floats.
#[derive(Debug)]
pub struct Vector {
    memory: DeviceMemory,
}

impl Vector {
    pub(super) fn new(uploader: &Uploader, values: &[f32]) -> Result<Self, OpsError> {
        Ok(Self { memory: floats(uploader, "a vector", values)? })
    }

    pub(super) fn address(&self) -> Address<f32> {
        Address::new(self.memory.address())
    }
}

/// A matrix `[out, in]`, row-major, its segments one below the other.
#[derive(Debug)]
pub struct Weight {
    /// Those of one adapter share theirs.
    _memory: Arc<DeviceMemory>,
    address: u64,
    format: WeightFormat,
    cols: usize,
    /// First row of each segment, and the number of rows.
    bounds: Vec<usize>,
}

impl Weight {
    /// Each of `weights`, which are stacks of segments, in one allocation.
    ///
    /// # Errors
    /// [`OpsError::Shape`], [`OpsError::OutOfMemory`].
    pub(super) fn group(
        uploader: &Uploader,
        format: WeightFormat,
        weights: &[&[HostMatrix<'_>]],
    ) -> Result<Vec<Self>, OpsError> {
        let mut offsets = Vec::with_capacity(weights.len());
        let mut bytes = 0_usize;
        for segments in weights {
            offsets.push(bytes);
            let size = matrix_bytes(format, segments)?.next_multiple_of(super::driver::ALIGNMENT);
            bytes = bytes.checked_add(size).ok_or(OpsError::OutOfMemory { what: "weights", bytes: u64::MAX })?;
        }
        if weights.is_empty() {
            return Ok(Vec::new());
        }
        let memory = Arc::new(uploader.allocate("weights", bytes)?);
        let place =
            |(segments, offset): (&&[HostMatrix<'_>], usize)| Self::place(uploader, format, segments, &memory, offset);
        weights.iter().zip(offsets).map(place).collect()
    }

    /// Send a stack of segments to its place.
    fn place(
        uploader: &Uploader,
        format: WeightFormat,
        segments: &[HostMatrix<'_>],
        memory: &Arc<DeviceMemory>,
        offset: usize,
    ) -> Result<Self, OpsError> {
        let cols = segments.first().map_or(0, |first| first.cols);
        let row_bytes = stride(cols) * format.size();
        let mut bounds = vec![0];
        for segment in segments {
            let first = bounds[bounds.len() - 1];
            uploader.send(memory, offset + first * row_bytes, segment.rows, row_bytes, |row, bytes| {
                write_row(format, segment, row, bytes);
            })?;
            bounds.push(first + segment.rows);
        }
        let (address, memory) = (memory.address() + offset as u64, Arc::clone(memory));
        Ok(Self { _memory: memory, address, format, cols, bounds })
    }

    pub(super) fn address(&self) -> Address<Untyped> {
        Address::new(self.address)
    }

    pub(super) fn stride(&self) -> usize {
        stride(self.cols)
    }

    /// All rows.
    pub(super) fn view(&self) -> MatrixView {
        self.rows_view(0..self.bounds[self.bounds.len() - 1])
    }

    /// Rows of one segment, which are its output columns too.
    pub(super) fn segment(&self, segment: usize) -> Range<usize> {
        self.bounds[segment]..self.bounds[segment + 1]
    }

    /// Some rows.
    pub(super) fn rows_view(&self, rows: Range<usize>) -> MatrixView {
        let first = (rows.start * self.stride() * self.format.size()) as u64;
        MatrixView {
            values: Address::new(self.address + first),
            rows: rows.len() as u32,
            cols: self.cols as u32,
            stride: self.stride() as u32,
            pad: 0,
        }
    }
}

/// Bytes of a stack of segments.
fn matrix_bytes(format: WeightFormat, segments: &[HostMatrix<'_>]) -> Result<usize, OpsError> {
    let expected = segments.first().map_or(0, |first| first.cols);
    let mut bytes = Some(0_usize);
    for segment in segments {
        if segment.cols != expected || segment.rows == 0 || segment.cols == 0 {
            return Err(OpsError::Shape { rows: segment.rows, cols: segment.cols, expected });
        }
        let more = segment.rows.checked_mul(stride(expected)).and_then(|numbers| numbers.checked_mul(format.size()));
        bytes = bytes.zip(more).and_then(|(bytes, more)| bytes.checked_add(more));
    }
    bytes.ok_or(OpsError::OutOfMemory { what: "weights", bytes: u64::MAX })
}

/// One row as the device keeps it.
fn write_row(format: WeightFormat, matrix: &HostMatrix<'_>, row: usize, bytes: &mut [u8]) {
    let range = row * matrix.cols..(row + 1) * matrix.cols;
    match (format, matrix.data) {
        (WeightFormat::F32, HostData::F32(data)) => write(&data[range], bytes, |value| value.to_le_bytes()),
        (WeightFormat::F32, HostData::Bf16(data)) => write(&data[range], bytes, |value| value.to_f32().to_le_bytes()),
        (WeightFormat::Bf16, HostData::F32(data)) => {
            write(&data[range], bytes, |value| bf16::from_f32(*value).to_le_bytes());
        }
        (WeightFormat::Bf16, HostData::Bf16(data)) => write(&data[range], bytes, |value| value.to_le_bytes()),
        (WeightFormat::F16, HostData::F32(data)) => {
            write(&data[range], bytes, |value| nearest_f16(*value).to_le_bytes());
        }
        (WeightFormat::F16, HostData::Bf16(data)) => {
            write(&data[range], bytes, |value| nearest_f16(value.to_f32()).to_le_bytes());
        }
    }
}

fn write<T, const SIZE: usize>(values: &[T], bytes: &mut [u8], encode: impl Fn(&T) -> [u8; SIZE]) {
    for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<SIZE>().0) {
        *bytes = encode(value);
    }
}

/// Cos and sin.
#[derive(Debug)]
pub struct Rope {
    pub(super) half: usize,
    cos: Vector,
    sin: Vector,
}

impl Rope {
    pub(super) fn new(uploader: &Uploader, table: &crate::ops::RopeTable) -> Result<Self, OpsError> {
        let (cos, sin) = (Vector::new(uploader, &table.cos)?, Vector::new(uploader, &table.sin)?);
        Ok(Self { half: table.rotary_dim / 2, cos, sin })
    }

    pub(super) fn tables(&self) -> (Address<f32>, Address<f32>) {
        (self.cos.address(), self.sin.address())
    }
}

/// K and V of all layers. Kernels use nothing of a place that nobody has written.
#[derive(Debug)]
pub struct KvCache {
    k: DeviceMemory,
    v: DeviceMemory,
    pub(super) shape: KvShape,
    layer_bytes: usize,
    /// Hidden states by place, where any are kept.
    pub(super) kept: Option<Buffer>,
}

impl KvCache {
    pub(super) fn new(device: &Arc<Device>, shape: KvShape, size: usize) -> Result<Self, OpsError> {
        let places = shape.blocks.checked_mul(shape.block_size);
        let layer_bytes = places.and_then(|places| places.checked_mul(shape.kv_dim() * size));
        let bytes = layer_bytes.and_then(|bytes| bytes.checked_mul(shape.layers));
        let too_large = OpsError::OutOfMemory { what: "the KV cache", bytes: u64::MAX };
        let (Some(layer_bytes), Some(bytes)) = (layer_bytes, bytes) else { return Err(too_large) };
        let plane = || DeviceMemory::new(device, &device.compute, "the KV cache", bytes);
        let places = shape.blocks * shape.block_size;
        let kept = (shape.kept > 0).then(|| Buffer::new(device, places, shape.kept, None)).transpose()?;
        Ok(Self { k: plane()?, v: plane()?, shape, layer_bytes, kept })
    }

    pub(super) fn layer(&self, layer: usize) -> KvLayer {
        let at = (layer * self.layer_bytes) as u64;
        KvLayer {
            k: Address::new(self.k.address() + at),
            v: Address::new(self.v.address() + at),
            kv_heads: self.shape.kv_heads as u32,
            head_dim: self.shape.head_dim as u32,
            block_size: self.shape.block_size as u32,
            pad: 0,
        }
    }

    /// K and V of all layers, and the bytes of a layer.
    pub(super) fn planes(&self) -> (Address<u8>, Address<u8>, u64) {
        (Address::new(self.k.address()), Address::new(self.v.address()), self.layer_bytes as u64)
    }

    /// Bytes of K (or of V) of a block in one layer.
    pub(super) fn block_bytes(&self) -> u64 {
        (self.layer_bytes / self.shape.blocks.max(1)) as u64
    }
}
