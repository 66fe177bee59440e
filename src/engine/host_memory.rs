//! How much host memory adapters may take on their way in: their files, the numbers read from them, and those that a
//! method works out from these.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What a load takes for each byte of its files at most: the file, and its numbers as f32 where it has f16.
const TIMES_FILES: u64 = 3;

/// It would never fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("loading it takes {bytes} bytes of memory, --load-memory is {limit}")]
pub struct TooLargeToLoad {
    /// Needed.
    pub bytes: u64,
    /// The budget.
    pub limit: u64,
}

/// The budget. Cheap to clone.
#[derive(Clone)]
pub struct HostMemory {
    inner: Arc<Inner>,
}

struct Inner {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

impl HostMemory {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { inner: Arc::new(Inner { limit, used: Mutex::new(0), freed: Condvar::new() }) }
    }

    /// The most bytes of files that an adapter may have.
    #[must_use]
    pub fn max_file_bytes(limit: u64) -> u64 {
        limit / TIMES_FILES
    }

    /// What a load of files of `file_bytes` takes by itself.
    #[must_use]
    pub fn of_files(file_bytes: u64) -> u64 {
        file_bytes.saturating_mul(TIMES_FILES)
    }

    /// Take `bytes`; blocks until others have given back enough.
    ///
    /// # Errors
    /// [`TooLargeToLoad`].
    pub fn take(&self, bytes: u64) -> Result<HostShare, TooLargeToLoad> {
        let Inner { limit, ref used, ref freed } = *self.inner;
        if bytes > limit {
            return Err(TooLargeToLoad { bytes, limit });
        }
        let used = used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut u64| *used + bytes > limit;
        let mut used = freed.wait_while(used, full).unwrap_or_else(PoisonError::into_inner);
        *used += bytes;
        drop(used);
        Ok(HostShare { memory: self.clone(), bytes })
    }
}

/// RAII: memory of a load.
#[derive(Debug)]
pub struct HostShare {
    memory: HostMemory,
    bytes: u64,
}

impl HostShare {
    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostMemory").field("limit", &self.inner.limit).finish_non_exhaustive()
    }
}

impl Drop for HostShare {
    fn drop(&mut self) {
        *self.memory.inner.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.memory.inner.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_can_never_fit_is_refused_and_what_does_not_fit_now_waits() {
        let memory = HostMemory::new(300);
        let of_files = HostMemory::of_files;
        assert_eq!(memory.take(of_files(101)).err(), Some(TooLargeToLoad { bytes: 303, limit: 300 }));
        assert!(memory.take(of_files(u64::MAX)).is_err());
        let first = memory.take(of_files(60)).unwrap();
        assert_eq!(first.bytes(), 180);
        let (taken, waits) = channel();
        let other = memory.clone();
        let waiting = std::thread::spawn(move || {
            let share = other.take(150).unwrap();
            taken.send(()).unwrap();
            share
        });
        let second = memory.take(of_files(40)).unwrap();
        assert!(waits.try_recv().is_err(), "there is nothing left");
        drop(first);
        waits.recv().unwrap();
        drop((second, waiting.join().unwrap()));
        assert_eq!(*memory.inner.used.lock().unwrap(), 0);
        assert_eq!(HostMemory::max_file_bytes(300), 100);
    }
}
