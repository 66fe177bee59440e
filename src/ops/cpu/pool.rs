//! A handful of threads that run one job at a time.
//!
//! A decode step joins about seven times per layer, so a join must cost about a microsecond: between jobs the workers
//! spin for a short while, then park, and an idle server burns nothing. The job is cut into chunks that are handed out
//! one by one; who computes a chunk must not matter to its result. This file knows nothing of matrices.
#![allow(unsafe_code)]

mod handoff;
#[cfg(test)]
mod model;
mod sync;

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use handoff::Handoff;

use crate::ops::OpsError;

/// How long a worker looks for the next job before it parks: longer than the gaps within a step.
const SPIN: Duration = Duration::from_micros(200);

/// Multiply-adds (or work of that order) below which a job is not worth waking anyone for.
const MIN_WORK: usize = 48 * 1024;

type Body = dyn Fn(usize) + Sync;

#[derive(Clone, Copy)]
struct Job {
    body: *const Body,
    chunks: usize,
}

// SAFETY: the pointer is to a `Sync` closure and is used only while `Pool::run` keeps that closure borrowed.
unsafe impl Send for Job {}

struct Shared {
    handoff: Handoff<Job>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Shared {
    /// Take chunks until none is left. A panic ends the job early and is kept for the caller of `run`.
    fn work(&self, job: Job) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let chunk = self.next.fetch_add(1, Ordering::Relaxed);
                if chunk >= job.chunks {
                    break;
                }
                // SAFETY: whoever is here has entered the open job or is its caller, so `run` has not returned and
                // the closure it borrowed is alive.
                unsafe { (*job.body)(chunk) };
            }
        }));
        if let Err(payload) = outcome {
            self.next.store(job.chunks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    fn worker(&self) {
        let mut seen = 0;
        let mut idle_since = Instant::now();
        let mut spins = 0_u32;
        while !self.handoff.is_stopped() {
            if let Some((job, generation)) = self.handoff.enter(seen) {
                seen = generation;
                self.work(job);
                self.handoff.leave();
                idle_since = Instant::now();
                continue;
            }
            std::hint::spin_loop();
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(64) && idle_since.elapsed() > SPIN {
                self.handoff.park(seen);
                idle_since = Instant::now();
            }
        }
    }
}

/// Threads that compute, the caller's included.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool of `threads`, the caller of [`Pool::run`] being one of them.
    pub(super) fn new(threads: usize) -> Result<Self, OpsError> {
        if threads == 0 {
            return Err(OpsError::Thread { index: 0, reason: "at least one thread is needed".to_owned() });
        }
        let shared = Arc::new(Shared { handoff: Handoff::new(), next: AtomicUsize::new(0), panic: Mutex::new(None) });
        let mut pool = Self { shared, workers: Vec::new(), busy: AtomicBool::new(false) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || shared.worker())
                .map_err(|error| OpsError::Thread { index, reason: error.to_string() })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller's included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Call `body` once for every number below `chunks`, on all threads unless `work` (multiply-adds of all chunks
    /// together) is small; returns when all calls have. A panic in a call is raised here after every thread has left.
    /// A call from within a job, or while another thread runs one, is computed by its own thread alone.
    pub(super) fn run(&self, work: usize, chunks: usize, body: impl Fn(usize) + Sync) {
        let alone = chunks <= 1 || work < MIN_WORK || self.workers.is_empty();
        if alone || self.busy.swap(true, Ordering::Acquire) {
            (0..chunks).for_each(body);
            return;
        }
        let body: &(dyn Fn(usize) + Sync + '_) = &body;
        // SAFETY: only the lifetime changes. The pointer is used by this call and by workers inside the job, and
        // `close` below waits for all of them before this frame ends; `work` does not unwind.
        let body: *const Body = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Body>(body) };
        let job = Job { body, chunks };
        let shared = &*self.shared;
        shared.next.store(0, Ordering::Relaxed);
        // SAFETY: `busy` makes us the only giver, and every job is closed below before another may begin.
        unsafe { shared.handoff.open(job) };
        shared.work(job);
        shared.handoff.close();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Cut `data` into blocks of `block` numbers (the last may be shorter) and call `body` with the index and the
    /// contents of each; `work` as in [`Pool::run`].
    pub(super) fn for_blocks<T: Send>(
        &self,
        work: usize,
        data: &mut [T],
        block: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let cut = Blocks { base: data.as_mut_ptr(), len: data.len(), block: block.max(1), marker: PhantomData };
        self.run(work, cut.len.div_ceil(cut.block), |index| {
            // SAFETY: `run` calls with each index once, and blocks of different indices do not overlap.
            body(index, unsafe { cut.get(index) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.handoff.stop();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of jobs; one that died of something else has nothing left to clean up.
            let _ = worker.join();
        }
    }
}

/// A mutable slice seen as disjoint blocks.
struct Blocks<'a, T> {
    base: *mut T,
    len: usize,
    block: usize,
    marker: PhantomData<&'a mut [T]>,
}

// SAFETY: stands for a `&mut [T]` of which each thread takes other elements, as with `chunks_mut`; needs `T: Send`.
unsafe impl<T: Send> Sync for Blocks<'_, T> {}

impl<'a, T> Blocks<'a, T> {
    /// # Safety
    /// No index may be asked for twice.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self, index: usize) -> &'a mut [T] {
        let start = index * self.block;
        assert!(start < self.len);
        // SAFETY: within the slice by the assertion and the minimum; disjoint from other blocks by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), self.block.min(self.len - start)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_whatever_the_number_of_threads() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            for chunks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(MIN_WORK, chunks, |chunk| {
                        counts[chunk].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn workers_that_parked_are_woken_by_the_next_job() {
        let pool = Pool::new(3).unwrap();
        let all_parked = || pool.shared.handoff.num_sleepers() == 2;
        for _ in 0..20 {
            while !all_parked() {
                std::thread::yield_now();
            }
            // Each chunk waits until all three are taken, which takes three threads.
            let arrived = AtomicUsize::new(0);
            pool.run(MIN_WORK, 3, |_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_in_a_job_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(MIN_WORK, 20, |chunk| assert_ne!(chunk, bad, "chunk {chunk} fails"));
            }));
            assert!(outcome.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(MIN_WORK, 10, |chunk| {
                sum.fetch_add(chunk, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 45);
        }
    }

    #[test]
    fn a_job_started_from_within_a_job_runs_alone_and_does_not_deadlock() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(MIN_WORK, 4, |_| {
            pool.run(MIN_WORK, 4, |inner| {
                sum.fetch_add(inner, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.load(Ordering::Relaxed), 24);
    }

    #[test]
    fn jobs_from_two_threads_at_once_are_both_done() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(MIN_WORK, 5, |chunk| {
                            sum.fetch_add(chunk, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 2 * 200 * 10);
    }

    #[test]
    fn blocks_cover_a_slice_with_a_shorter_last_one() {
        let pool = Pool::new(2).unwrap();
        let mut data = vec![0; 23];
        pool.for_blocks(MIN_WORK, &mut data, 5, |index, block| {
            assert_eq!(block.len(), if index == 4 { 3 } else { 5 });
            block.fill(index + 1);
        });
        assert!(data.iter().enumerate().all(|(at, value)| *value == at / 5 + 1));
    }

    #[test]
    fn small_work_stays_on_the_thread_that_asks() {
        let pool = Pool::new(3).unwrap();
        let caller = std::thread::current().id();
        pool.run(MIN_WORK - 1, 50, |_| assert_eq!(std::thread::current().id(), caller));
    }

    #[test]
    fn no_threads_is_refused() {
        assert!(matches!(Pool::new(0), Err(OpsError::Thread { index: 0, .. })));
    }
}
