//! One way to lock: a panic elsewhere must not turn every later request into a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock, also after another thread panicked while holding the lock. Critical sections of this room leave no
/// half-made state behind: they decide first and change last.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
