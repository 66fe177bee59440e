//! What threads share memory by, as [`super::handoff`] uses it. The model of that file puts other types in their place,
//! which try every order of events.
#![allow(unsafe_code)]

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Condvar, Mutex};
pub(super) use std::thread::yield_now;

/// `std::cell::UnsafeCell`, opened by closures so that a model can watch who is inside.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Look at it. The pointer is valid; who reads through it answers for nobody's writing meanwhile.
    pub(super) fn with<R>(&self, look: impl FnOnce(*const T) -> R) -> R {
        look(self.0.get())
    }

    /// Change it. The pointer is valid; who writes through it answers for nobody's looking meanwhile.
    pub(super) fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
        change(self.0.get())
    }
}
