//! Threads that bring adapters in, and take them away, without taking time from steps.
//!
//! Reading, hashing, checking, converting and packing a large adapter takes as much processor as it is given. While
//! requests run it is given what their steps leave, by threads of the lowest priority there is; work within it that is
//! made for several threads stays on them, and the threads that compute steps never help. While no request runs, threads
//! of normal priority do it: there is nobody to give way to but strangers on the machine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::EngineError;

/// Threads of each kind. The system divides among them what it gives to all; a short piece of work need not wait for a
/// long one.
const THREADS: usize = 4;

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
    /// While requests run.
    giving_way: ThreadPool,
    /// While none does.
    alone: ThreadPool,
}

impl Loaders {
    /// Start them beside an engine; `busy` tells whether it has requests to compute.
    ///
    /// # Errors
    /// [`EngineError::Thread`]: the system has none to spare.
    pub fn start(busy: impl Fn() -> bool + Send + Sync + 'static) -> Result<Self, EngineError> {
        let refused = |error| EngineError::Thread { thread: "loader", source: std::io::Error::other(error) };
        let pool = |name: &'static str| {
            ThreadPoolBuilder::new().num_threads(THREADS).thread_name(move |index| format!("{name}-{index}"))
        };
        let giving_way = pool("loader").start_handler(|_| give_way()).build().map_err(refused)?;
        let alone = pool("loader-alone").build().map_err(refused)?;
        Ok(Self { pools: Arc::new(Pools { busy: Box::new(busy), giving_way, alone }) })
    }

    fn pool(&self) -> &ThreadPool {
        if (self.pools.busy)() { &self.pools.giving_way } else { &self.pools.alone }
    }

    /// Run `work` on a loader thread and wait for it. A panic in it is raised here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool().install(work)
    }

    /// Have `work` run some time.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.pool().spawn(move || {
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
        for (busy, prefix) in [(true, "loader-"), (false, "loader-alone-")] {
            let names: Vec<String> = loaders(busy).run(|| (0..100).into_par_iter().map(|_| name()).collect());
            assert!(names.iter().all(|name| name.starts_with(prefix)), "{names:?}");
            assert_eq!(names.iter().any(|name| name.starts_with("loader-alone")), !busy);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_beside_requests_gives_way_and_other_work_does_not() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Counted from behind the name, which may hold anything: field 19.
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        assert_eq!(loaders(true).run(nice), NICE);
        assert_eq!(loaders(false).run(nice), before);
        assert_eq!(nice(), before, "the thread that asks stays as it is");
    }

    #[test]
    fn a_panic_reaches_who_waits_and_ends_no_thread() {
        let loaders = loaders(true);
        for _ in 0..2 * THREADS {
            loaders.spawn(|| panic!("a defect"));
            assert!(catch_unwind(AssertUnwindSafe(|| loaders.run(|| panic!("a defect")))).is_err());
        }
        assert_eq!(loaders.run(|| 7), 7);
    }
}
