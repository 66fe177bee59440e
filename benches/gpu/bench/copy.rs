//! What the device's memory moves: copies from one place of it to another, read and written.

use std::time::Instant;

use cudarc::driver::CudaContext;

use super::timing::median;
use crate::support::Failure;

/// Copies between two waits.
const COPIES: usize = 4;

/// Bytes in a second, those that are read and those that are written.
pub(super) fn bandwidth(ordinal: u32, bytes: usize, rounds: usize) -> Result<f64, Failure> {
    let context = CudaContext::new(ordinal as usize)?;
    let stream = context.new_stream()?;
    let from = stream.alloc_zeros::<u8>(bytes)?;
    let mut to = stream.alloc_zeros::<u8>(bytes)?;
    let mut times = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        stream.synchronize()?;
        let began = Instant::now();
        for _ in 0..COPIES {
            stream.memcpy_dtod(&from, &mut to)?;
        }
        stream.synchronize()?;
        if round > 0 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    Ok((2 * COPIES * bytes) as f64 / median(times))
}
