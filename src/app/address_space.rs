//! How the process keeps to a limited address space (`ulimit -v`): by default the allocator and the runtime set aside
//! gigabytes that they do not use, and what is left for requests would be nothing.

use crate::ops::cpu::limit_arenas;

/// What the allocator sets aside for an arena.
const ARENA: u64 = 64 << 20;
/// What a thread's stack takes.
const STACK: u64 = 2 << 20;
/// Threads for blocking work where nothing limits them; the runtime's own default.
const BLOCKING_THREADS: usize = 512;
/// So many are needed for the work that may wait for other work, and some beside it.
const FEWEST_BLOCKING_THREADS: usize = 16;

/// Have the allocator keep to its part of the limit. Before there are threads.
pub(super) fn confine_allocator() {
    if let Some(limit) = limit() {
        limit_arenas(arenas(limit));
    }
}

/// Threads for blocking work that the limit allows.
pub(super) fn blocking_threads() -> usize {
    limit().map_or(BLOCKING_THREADS, stacks)
}

/// An eighth of the limit.
fn arenas(limit: u64) -> u32 {
    u32::try_from(limit / 8 / ARENA).unwrap_or(u32::MAX).max(1)
}

/// A sixteenth of the limit.
fn stacks(limit: u64) -> usize {
    let fit = usize::try_from(limit / 16 / STACK).unwrap_or(usize::MAX);
    fit.clamp(FEWEST_BLOCKING_THREADS, BLOCKING_THREADS)
}

#[cfg(unix)]
fn limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

#[cfg(not(unix))]
fn limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_a_part_of_the_limit() {
        assert_eq!((arenas(512 << 20), stacks(512 << 20)), (1, 16));
        assert_eq!((arenas(8 << 30), stacks(8 << 30)), (16, 256));
        assert_eq!((arenas(0), stacks(0)), (1, 16));
        assert_eq!((arenas(u64::MAX), stacks(u64::MAX)), (u32::MAX, 512));
    }
}
