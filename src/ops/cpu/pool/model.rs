//! [`super::handoff`] in every order of events that the memory model allows, as far as loom goes: the same file over
//! loom's types. (Loom knows sequential consistency of fences, not of accesses: hence the fences there.)

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex};
    pub(super) use loom::thread::yield_now;
}

#[allow(clippy::duplicate_mod, dead_code)]
#[path = "handoff.rs"]
mod handoff;

use std::sync::PoisonError;

use loom::sync::Arc;
use loom::thread;

use handoff::Handoff;

/// Take jobs until told to stop; returns what was found in them.
fn taker(handoff: &Handoff<u32>) -> Vec<u32> {
    let (mut seen, mut jobs) = (0, Vec::new());
    while !handoff.is_stopped() {
        match handoff.enter(seen) {
            Some((job, generation)) => {
                seen = generation;
                jobs.push(job);
                handoff.leave();
            }
            None => handoff.park(seen),
        }
    }
    jobs
}

fn explored(takers: usize, preemptions: usize, check: fn(usize)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || check(takers));
}

fn give_two_jobs(takers: usize) {
    let handoff = Arc::new(Handoff::new());
    let threads: Vec<_> = (0..takers)
        .map(|_| {
            let handoff = Arc::clone(&handoff);
            thread::spawn(move || taker(&handoff))
        })
        .collect();
    for job in 1..=2 {
        // SAFETY: this thread alone gives, each job is closed before the next, and a number borrows nothing.
        unsafe { handoff.open(job) };
        handoff.close();
    }
    handoff.stop();
    for thread in threads {
        let jobs = thread.join().unwrap();
        assert!([&[][..], &[1], &[2], &[1, 2]].contains(&&jobs[..]), "{jobs:?}");
    }
}

#[test]
fn a_taker_sees_each_job_at_most_once_and_never_one_that_is_being_written() {
    explored(1, 4, give_two_jobs);
}

#[test]
fn two_takers_leave_before_the_next_job_is_written() {
    explored(2, 2, give_two_jobs);
}

/// A job that stays open until it was taken: a taker that sleeps through it would leave all threads waiting, which loom
/// reports as a deadlock.
fn wait_to_be_taken(takers: usize) {
    let handoff = Arc::new(Handoff::new());
    let taken = Arc::new((loom::sync::Mutex::new(0), loom::sync::Condvar::new()));
    let threads: Vec<_> = (0..takers)
        .map(|_| {
            let (handoff, taken) = (Arc::clone(&handoff), Arc::clone(&taken));
            thread::spawn(move || {
                let mut seen = 0;
                while !handoff.is_stopped() {
                    let Some((_, generation)) = handoff.enter(seen) else {
                        handoff.park(seen);
                        continue;
                    };
                    seen = generation;
                    *taken.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    taken.1.notify_one();
                    handoff.leave();
                }
            })
        })
        .collect();
    // SAFETY: this thread alone gives, one job, and a number borrows nothing.
    unsafe { handoff.open(7) };
    let mut count = taken.0.lock().unwrap_or_else(PoisonError::into_inner);
    while *count < takers {
        count = taken.1.wait(count).unwrap_or_else(PoisonError::into_inner);
    }
    drop(count);
    handoff.close();
    handoff.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn no_taker_sleeps_through_an_open_job() {
    explored(1, 4, wait_to_be_taken);
    explored(2, 2, wait_to_be_taken);
}
