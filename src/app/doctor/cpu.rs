//! The processor: which instructions the kernels use, and how fast memory is.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::available_memory;
use crate::ops::cpu::{CpuBackend, CpuOptions, Reading};
use crate::ops::{Backend, Numerics, OpsError};

/// What is read, unless caches are so large that they could hold a good part of it.
const READ_BYTES: u64 = 512 << 20;
/// How many times the caches that must be: what is read in one order, again and again, has left them before its turn
/// comes.
const TIMES_CACHES: u64 = 2;
/// Reads go on for so long, and so many are made at least.
const MEASURE_FOR: Duration = Duration::from_millis(600);
const READS: usize = 5;

/// What the CPU has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct CpuReport {
    /// Instruction set path of each dtype.
    pub isa: IsaReport,
    /// Threads that compute unless `--threads` says otherwise.
    pub threads: usize,
    /// What the process may take.
    pub available_bytes: Option<u64>,
    /// How fast memory is read, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bandwidth>,
}

/// Instruction set paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct IsaReport {
    pub bf16: &'static str,
    pub f32: &'static str,
}

/// A measurement: the median of several reads of memory larger than the caches, by all threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Bandwidth {
    pub bytes_per_second: f64,
    pub read_bytes: u64,
    pub reads: usize,
}

/// Look, and measure where that is wanted: it takes a second or two.
///
/// # Errors
/// Threads or memory that the system refuses.
pub(super) fn report(is_measured: bool) -> Result<CpuReport, OpsError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let backend = |numerics| CpuBackend::new(CpuOptions { threads, numerics, isa: None });
    let bf16 = backend(Numerics::BF16)?.info().isa;
    let cpu = backend(Numerics::F32)?;
    let available_bytes = available_memory();
    let measured = || measure(&cpu, read_bytes(cache_bytes(Path::new("/")), available_bytes));
    let memory = is_measured.then(measured).transpose()?;
    Ok(CpuReport { isa: IsaReport { bf16, f32: cpu.info().isa }, threads, available_bytes, memory })
}

/// How much to read: more than caches hold, and no more than a quarter of what may be taken.
fn read_bytes(caches: u64, available: Option<u64>) -> u64 {
    READ_BYTES.max(TIMES_CACHES * caches).min(available.unwrap_or(u64::MAX) / 4)
}

fn measure(cpu: &CpuBackend, bytes: u64) -> Result<Bandwidth, OpsError> {
    let memory = Reading::new(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    let mut seconds = Vec::new();
    let begun = Instant::now();
    while seconds.len() < READS || begun.elapsed() < MEASURE_FOR {
        let start = Instant::now();
        // It is what is read that takes the time.
        let _ = cpu.read(&memory);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let bytes_per_second = memory.bytes() as f64 / seconds[seconds.len() / 2];
    Ok(Bandwidth { bytes_per_second, read_bytes: memory.bytes() as u64, reads: seconds.len() })
}

/// All caches of the last level, as Linux lists them; 0 where nothing is said of them.
fn cache_bytes(root: &Path) -> u64 {
    let cpus = fs::read_dir(root.join("sys/devices/system/cpu")).into_iter().flatten().flatten();
    // A cache is listed with each processor that shares it.
    let caches: BTreeSet<(String, u64)> = cpus
        .filter_map(|cpu| {
            let cache = cpu.path().join("cache/index3");
            let shared = fs::read_to_string(cache.join("shared_cpu_list")).ok()?;
            let size = fs::read_to_string(cache.join("size")).ok()?;
            Some((shared, size.trim().strip_suffix('K')?.parse().ok()?))
        })
        .collect();
    caches.iter().map(|(_, kibibytes)| kibibytes << 10).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_read_than_caches_hold_and_less_than_there_is() {
        let gib = 1 << 30;
        assert_eq!(read_bytes(32 << 20, Some(64 * gib)), 512 << 20);
        assert_eq!(read_bytes(gib, None), 2 * gib);
        assert_eq!(read_bytes(gib, Some(4 * gib)), gib);
    }

    #[test]
    fn a_cache_that_processors_share_counts_once() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, shared) in [("cpu0", "0-1\n"), ("cpu1", "0-1\n"), ("cpu2", "2-3\n"), ("cpufreq", "")] {
            let cache = root.path().join("sys/devices/system/cpu").join(cpu).join("cache/index3");
            fs::create_dir_all(&cache).unwrap();
            if !shared.is_empty() {
                fs::write(cache.join("shared_cpu_list"), shared).unwrap();
                fs::write(cache.join("size"), "32768K\n").unwrap();
            }
        }
        assert_eq!(cache_bytes(root.path()), 64 << 20);
        assert_eq!(cache_bytes(&root.path().join("nothing")), 0);
    }

    #[test]
    fn a_measurement_is_a_rate_of_what_was_read() {
        let cpu = CpuBackend::new(CpuOptions { threads: 2, numerics: Numerics::F32, isa: None }).unwrap();
        let found = measure(&cpu, 1 << 20).unwrap();
        assert!(found.bytes_per_second.is_finite() && found.bytes_per_second > 0.0, "{found:?}");
        assert!(found.reads >= READS && found.read_bytes >= 1 << 20, "{found:?}");
    }
}
