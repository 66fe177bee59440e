//! The way of numbers from the host to the device: through pinned memory, piece by piece, on the stream of copies, so that
//! steps go on meanwhile and nothing is copied whole on the host.

use std::sync::{Arc, Mutex, PoisonError};

use super::driver::{Device, DeviceMemory, Event, Pinned};
use crate::ops::OpsError;

/// Bytes of one piece.
const PIECE: usize = 4 << 20;

/// Sends numbers to a device. One thread at a time; others wait.
#[derive(Debug)]
pub(super) struct Uploader {
    device: Arc<Device>,
    pieces: Mutex<Vec<Piece>>,
}

/// Pinned memory, and when the device is done with it.
#[derive(Debug)]
struct Piece {
    memory: Pinned,
    done: Event,
}

impl Uploader {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), pieces: Mutex::default() }
    }

    /// Allocate memory that is filled by [`Self::send`].
    pub(super) fn allocate(&self, what: &'static str, bytes: usize) -> Result<DeviceMemory, OpsError> {
        DeviceMemory::new(&self.device, &self.device.copies, what, bytes)
    }

    /// Fill `rows` rows of `row_bytes` each from `offset` on: `fill` writes row i into the zeroed bytes it is given. When this
    /// returns, all of it is on the device and any stream may read it.
    ///
    /// # Errors
    /// [`OpsError`] of the driver, or where there is no pinned memory.
    pub(super) fn send(
        &self,
        target: &DeviceMemory,
        offset: usize,
        rows: usize,
        row_bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), OpsError> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let rows_each = (PIECE / row_bytes.max(1)).max(1);
        self.grow(&mut pieces, rows_each.min(rows.max(1)) * row_bytes)?;
        for (index, first) in (0..rows).step_by(rows_each).enumerate() {
            let piece = &mut pieces[index % 2];
            piece.done.wait()?;
            let count = rows_each.min(rows - first);
            let bytes = &mut piece.memory.bytes_mut()[..count * row_bytes];
            bytes.fill(0);
            for (row, bytes) in bytes.chunks_exact_mut(row_bytes).enumerate() {
                fill(first + row, bytes);
            }
            target.receive(offset + first * row_bytes, &piece.memory, count * row_bytes, &self.device.copies)?;
            piece.done.record(&self.device.copies)?;
        }
        self.device.wait(&self.device.copies)
    }

    /// Two pieces of at least `bytes`.
    fn grow(&self, pieces: &mut Vec<Piece>, bytes: usize) -> Result<(), OpsError> {
        if pieces.len() == 2 && pieces.iter().all(|piece| piece.memory.bytes().len() >= bytes) {
            return Ok(());
        }
        pieces.clear();
        for _ in 0..2 {
            let memory = Pinned::new(&self.device, bytes.max(1 << 16))?;
            pieces.push(Piece { memory, done: Event::new(&self.device)? });
        }
        Ok(())
    }
}
