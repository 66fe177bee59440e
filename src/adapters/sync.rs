//! One way to lock: a panic elsewhere must not turn every later request into a panic.
//!
//! # Lock order
//!
//! Whoever holds one of these takes only those below it, and lets go before it calls anything that is not of this room:
//!
//! 1. `AdapterRegistry::changes`, held through a change of a name, the disk included;
//! 2. the table of uploads, the store's names, its objects: each alone;
//! 3. `AdapterRegistry::pins`;
//! 4. a shard of `AdapterRegistry::aliases`, `AdapterRegistry::catalog`: each alone;
//! 5. `LeaseTable`, `Residency`: each alone;
//! 6. the names that `FolderNames` cannot read, which requests ask for: below its own state;
//! 7. `EventLog`'s history: the last one.
//!
//! Observers are called, and who waits is woken, with none of them held: what they are to be told is gathered as
//! [`Signals`](super::events::Signals) and rung when the last lock is free. So is everything whose drop takes a lock:
//! leases, wishes and tickets are dropped outside. The engine's mailbox has a lock of its own that is never held while
//! one of these is taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock, also after another thread panicked while holding the lock. Critical sections of this room leave no
/// half-made state behind: they decide first and change last.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
