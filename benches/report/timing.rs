//! Calls that take turns, medians, and the speed of plain reading.

use std::hint::black_box;
use std::time::Instant;

use memmap2::MmapMut;

/// Seconds of several calls, one list per call, that were made in turn `rounds` times after one round to warm up.
pub(crate) fn take_turns<const N: usize>(
    rounds: usize,
    mut call: impl FnMut(usize) -> Result<(), super::Failure>,
) -> Result<[Vec<f64>; N], super::Failure> {
    let mut times = [(); N].map(|()| Vec::with_capacity(rounds));
    for round in 0..=rounds {
        for (index, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            call(index)?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(times)
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median of `a / b`, round by round.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> f64 {
    median(a.iter().zip(b).map(|(a, b)| a / b).collect())
}

/// Memory to read through, larger than any cache and on huge pages as the weights are.
pub(crate) struct Bandwidth {
    memory: MmapMut,
    threads: usize,
}

impl Bandwidth {
    pub(crate) fn new(threads: usize) -> Result<Self, super::Failure> {
        let mut memory = MmapMut::map_anon(320 << 20)?;
        #[cfg(target_os = "linux")]
        memory.advise(memmap2::Advice::HugePage)?;
        memory.fill(1);
        Ok(Self { memory, threads })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.len()
    }

    /// Read it all once, each thread a share.
    pub(crate) fn read(&self) {
        std::thread::scope(|scope| {
            for share in self.memory.chunks(self.bytes() / self.threads) {
                scope.spawn(move || {
                    let mut sums = [0_u64; 32];
                    for line in share.as_chunks::<8>().0.as_chunks::<32>().0 {
                        for (sum, word) in sums.iter_mut().zip(line) {
                            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
                        }
                    }
                    black_box(sums);
                });
            }
        });
    }
}
