//! The header's bytes in order. Read with pread through a window, so that a file that shrinks ends in an error and
//! nothing depends on where the file's own cursor stands.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::GgufError;

/// Most bytes before the tensors' own; the largest vocabularies take some 15 MB.
pub(crate) const MAX_GGUF_HEADER_BYTES: u64 = 64 << 20;
/// Most bytes of a key, or of a tensor's name.
const MAX_NAME_BYTES: u64 = 512;
/// Bytes read from the disk at a time.
const WINDOW: usize = 256 << 10;

/// A cursor on the header of a file.
pub(super) struct Reader<'a> {
    file: &'a File,
    /// Of the whole file.
    bytes: u64,
    window: Vec<u8>,
    /// Bytes of the window that were taken.
    taken: usize,
    /// Where the window begins in the file.
    start: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a File, bytes: u64) -> Self {
        Self { file, bytes, window: Vec::new(), taken: 0, start: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn position(&self) -> u64 {
        self.start + self.taken as u64
    }

    /// Refuse a length that cannot be: `count` things of at least `size` bytes each are to come.
    pub(super) fn expect(&self, what: &'static str, count: u64, size: u64) -> Result<(), GgufError> {
        let end = self.bytes.min(MAX_GGUF_HEADER_BYTES);
        let max = end.saturating_sub(self.position()) / size;
        if count <= max {
            return Ok(());
        }
        // More than the file has, whatever the limit: it is cut off, or its numbers mean nothing.
        Err(GgufError::TooLarge { what, found: count, max })
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    /// A count, held against a limit.
    pub(super) fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let found = self.u64()?;
        if found > max { Err(GgufError::TooLarge { what, found, max }) } else { Ok(found) }
    }

    /// A key or the name of a tensor.
    pub(super) fn name(&mut self) -> Result<String, GgufError> {
        let bytes = self.count("bytes of a name", MAX_NAME_BYTES)?;
        let name = String::from_utf8_lossy(&self.bytes(bytes)?).into_owned();
        let fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(name) } else { Err(GgufError::BadName { name: name.chars().take(64).collect() }) }
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        self.take().map(u64::from_le_bytes)
    }

    /// The next `count` bytes. Memory is taken only for what the file can have.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, GgufError> {
        self.expect("bytes of a value", count, 1)?;
        let mut bytes = Vec::new();
        let size = count as usize;
        bytes.try_reserve_exact(size).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        bytes.resize(size, 0);
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, mut target: &mut [u8]) -> Result<(), GgufError> {
        while !target.is_empty() {
            if self.taken == self.window.len() {
                self.next_window()?;
            }
            let part = target.len().min(self.window.len() - self.taken);
            let (head, rest) = target.split_at_mut(part);
            head.copy_from_slice(&self.window[self.taken..self.taken + part]);
            (self.taken, target) = (self.taken + part, rest);
        }
        Ok(())
    }

    fn next_window(&mut self) -> Result<(), GgufError> {
        let start = self.position();
        if start >= MAX_GGUF_HEADER_BYTES {
            let max = MAX_GGUF_HEADER_BYTES;
            return Err(GgufError::TooLarge { what: "bytes of the header", found: start + 1, max });
        }
        let end = self.bytes.min(MAX_GGUF_HEADER_BYTES).min(start + WINDOW as u64);
        let truncated = || GgufError::Truncated { bytes: self.bytes };
        if end <= start {
            return Err(truncated());
        }
        let mut window = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut window, start).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => truncated(),
            _ => error.into(),
        })?;
        (self.window, self.taken, self.start) = (window, 0, start);
        Ok(())
    }
}
