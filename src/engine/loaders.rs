//! Threads that bring adapters in, and take them away, without taking time from steps.
//!
//! Reading, hashing, checking, converting and packing a large adapter takes as much processor as it is given. While
//! requests run it is given what their steps leave, by one thread of the lowest priority there is, and by another the
//! files of uploads: each such thread that is ready takes a slice of a step now and then, so there are few. A small
//! adapter is a few milliseconds of work that a request waits for, and is brought in by a thread of normal priority.
//! Work within work that is made for several threads stays where it is, and the threads that compute steps never help.
//! While no request runs, threads of normal priority do all of it: there is nobody to give way to but strangers on the
//! machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::EngineError;

/// Threads while no request runs; a short piece of work need not wait for a long one.
const THREADS: usize = 4;

/// Files of an adapter up to which it is small.
const SMALL_BYTES: u64 = 8 << 20;

/// The lowest priority of a thread: 1.5 % beside one of normal priority, and all of a processor that idles.
const NICE: i32 = 19;

/// The threads. Cheap to clone; they end with the last clone.
#[derive(Clone)]
pub struct Loaders {
    pools: Arc<Pools>,
}

struct Pools {
    /// Whether requests run.
    busy: Box<dyn Fn() -> bool + Send + Sync>,
    /// Large adapters, while requests run.
    large: ThreadPool,
    /// What may be done some time, while requests run.
    background: ThreadPool,
    /// Small adapters, while requests run.
    small: ThreadPool,
    /// Everything, while no request runs.
    alone: ThreadPool,
}

impl Loaders {
    /// Start them beside an engine; `busy` tells whether it has requests to compute.
    ///
    /// # Errors
    /// [`EngineError::Thread`]: the system has none to spare.
    pub fn start(busy: impl Fn() -> bool + Send + Sync + 'static) -> Result<Self, EngineError> {
        let refused = |error| EngineError::Thread { thread: "loader", source: std::io::Error::other(error) };
        let pool = |name: &'static str, threads| {
            ThreadPoolBuilder::new().num_threads(threads).thread_name(move |index| format!("{name}-{index}"))
        };
        let pools = Pools {
            busy: Box::new(busy),
            large: pool("load-large", 1).start_handler(|_| give_way()).build().map_err(refused)?,
            background: pool("load-files", 1).start_handler(|_| give_way()).build().map_err(refused)?,
            small: pool("load-small", 1).build().map_err(refused)?,
            alone: pool("load-alone", THREADS).build().map_err(refused)?,
        };
        Ok(Self { pools: Arc::new(pools) })
    }

    /// Whether an adapter whose files have so many bytes is a few milliseconds of work.
    #[must_use]
    pub fn is_small(bytes: u64) -> bool {
        bytes <= SMALL_BYTES
    }

    /// Run `work` at an adapter of so many bytes on a loader thread and wait for it. A panic in it is raised here.
    pub fn run<T: Send>(&self, bytes: u64, work: impl FnOnce() -> T + Send) -> T {
        let pool = match (self.pools.busy)() {
            false => &self.pools.alone,
            true if Self::is_small(bytes) => &self.pools.small,
            true => &self.pools.large,
        };
        pool.install(work)
    }

    /// Have `work` run some time.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let pool = if (self.pools.busy)() { &self.pools.background } else { &self.pools.alone };
        pool.spawn(move || {
            // It is logged where it happens; there is nobody to tell, and the others go on.
            let _ = catch_unwind(AssertUnwindSafe(work));
        });
    }
}

/// Give way to every thread of normal priority.
#[cfg(target_os = "linux")]
fn give_way() {
    // Linux sets the priority of the calling thread alone.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "loader threads have the priority of all others");
    }
}

/// Elsewhere a process has one priority.
#[cfg(not(target_os = "linux"))]
fn give_way() {
    let _ = NICE;
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn loaders(busy: bool) -> Loaders {
        Loaders::start(move || busy).unwrap()
    }

    #[test]
    fn work_within_work_stays_on_the_threads_for_it() {
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        for (busy, bytes, prefix) in
            [(true, 1 << 30, "load-large"), (true, 1 << 20, "load-small"), (false, 1 << 30, "load-alone")]
        {
            let names: Vec<String> = loaders(busy).run(bytes, || (0..100).into_par_iter().map(|_| name()).collect());
            assert!(names.iter().all(|name| name.starts_with(prefix)), "{names:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn large_work_beside_requests_gives_way_and_other_work_does_not() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Counted from behind the name, which may hold anything: field 19.
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        assert_eq!(loaders(true).run(SMALL_BYTES + 1, nice), NICE);
        assert_eq!(loaders(true).run(SMALL_BYTES, nice), before);
        assert_eq!(loaders(false).run(1 << 30, nice), before);
        let (sender, niceness) = std::sync::mpsc::channel();
        loaders(true).spawn(move || sender.send(nice()).unwrap());
        assert_eq!(niceness.recv().unwrap(), NICE);
        assert_eq!(nice(), before, "the thread that asks stays as it is");
    }

    #[test]
    fn a_panic_reaches_who_waits_and_ends_no_thread() {
        let loaders = loaders(true);
        for _ in 0..2 * THREADS {
            loaders.spawn(|| panic!("a defect"));
            assert!(catch_unwind(AssertUnwindSafe(|| loaders.run(1 << 30, || panic!("a defect")))).is_err());
        }
        assert_eq!(loaders.run(1 << 30, || 7), 7);
    }
}
