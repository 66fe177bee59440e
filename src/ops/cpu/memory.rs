//! Allocations that can be refused, activation buffers, and how the allocator takes address space.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::ops::OpsError;

/// A huge page of x86-64, and the unit in which others group theirs.
const HUGE_PAGE: usize = 2 << 20;

/// f32 activations, row-major `[rows, cols]`.
#[derive(Debug)]
pub struct Buffer {
    pub(super) cols: usize,
    pub(super) data: Vec<f32>,
}

impl Buffer {
    pub(super) fn new(rows: usize, cols: usize) -> Result<Self, OpsError> {
        Ok(Self { cols, data: filled("an activation buffer", rows.saturating_mul(cols), 0.0)? })
    }

    pub(super) fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }
}

/// A slice that every step reads from end to end. From the size of a huge page on it starts on one, and the system is
/// asked for such pages: on small ones hardware stops reading ahead, and looks up an address, every 4 KiB.
#[derive(Debug)]
pub(super) struct Streamed<T> {
    start: NonNull<T>,
    len: usize,
    owned: PhantomData<T>,
}

// SAFETY: owns its elements and hands them out by the rules of references, as a `Box<[T]>` does.
unsafe impl<T: Send> Send for Streamed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Streamed<T> {}

impl<T: Copy> Streamed<T> {
    /// `len` copies of `value`; `len` is at least 1.
    pub(super) fn filled(what: &'static str, len: usize, value: T) -> Result<Self, OpsError> {
        let layout = Self::layout(len).filter(|layout| layout.size() > 0).ok_or_else(|| refused::<T>(what, len))?;
        // SAFETY: the layout has a size above zero.
        let start = NonNull::new(unsafe { alloc(layout) }.cast::<T>()).ok_or_else(|| refused::<T>(what, len))?;
        ask_for_huge_pages(start.as_ptr().cast(), layout.size());
        for index in 0..len {
            // SAFETY: `index` lies within the allocation, which is aligned for T.
            unsafe { start.add(index).write(value) };
        }
        Ok(Self { start, len, owned: PhantomData })
    }
}

impl<T> Streamed<T> {
    fn layout(len: usize) -> Option<Layout> {
        let layout = Layout::array::<T>(len).ok()?;
        if layout.size() < HUGE_PAGE { Some(layout) } else { layout.align_to(HUGE_PAGE).ok() }
    }
}

impl<T> Deref for Streamed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `filled` wrote `len` elements from `start` on, and they live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Streamed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Streamed<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: `filled` allocated with this layout; its elements are `Copy` and need no dropping.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

/// Only advice, for the whole huge pages within an allocation: without such pages, or on another system, nothing changes
/// but speed.
fn ask_for_huge_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        let before = start.align_offset(HUGE_PAGE).min(bytes);
        let whole = (bytes - before) / HUGE_PAGE * HUGE_PAGE;
        if whole > 0 {
            // SAFETY: whole pages of a fresh allocation; the advice changes no contents.
            unsafe { libc::madvise(start.add(before).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

/// Have the C library's allocator share so many arenas among all threads. By default each of the first threads gets one
/// of its own, for which 64 MiB of address space are set aside: where that is limited, a dozen threads leave none for
/// anything else. To be called before there are threads; another C library is left as it is.
pub fn limit_arenas(count: u32) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Of malloc.h.
        const M_ARENA_MAX: libc::c_int = -8;
        // SAFETY: sets a number of the allocator, under its own lock.
        unsafe { libc::mallopt(M_ARENA_MAX, count.min(i32::MAX as u32) as libc::c_int) };
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = count;
}

fn refused<T>(what: &'static str, len: usize) -> OpsError {
    OpsError::OutOfMemory { what, bytes: (len as u64).saturating_mul(size_of::<T>() as u64) }
}

/// `len` copies of `value`.
pub(super) fn filled<T: Copy>(what: &'static str, len: usize, value: T) -> Result<Vec<T>, OpsError> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| refused::<T>(what, len))?;
    numbers.resize(len, value);
    Ok(numbers)
}

/// `len` zeros in pages that the system provides when they are first written, and is asked to make huge.
pub(super) fn untouched(what: &'static str, len: usize) -> Result<Vec<u32>, OpsError> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<u32>(len).map_err(|_| refused::<u32>(what, len))?;
    // SAFETY: the layout has a size above zero.
    let words = unsafe { alloc_zeroed(layout) }.cast::<u32>();
    if words.is_null() {
        return Err(refused::<u32>(what, len));
    }
    ask_for_huge_pages(words.cast(), layout.size());
    // SAFETY: allocated by the global allocator with exactly the layout of `len` u32, all of them zero.
    Ok(unsafe { Vec::from_raw_parts(words, len, len) })
}

/// Grow-only scratch: at least `len` elements, the contents unspecified. Allocates only when a step is larger than
/// all before it.
pub(super) fn at_least<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) -> &mut [T] {
    if scratch.len() < len {
        scratch.resize(len, T::default());
    }
    &mut scratch[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused_with_their_bytes() {
        let error = Buffer::new(usize::MAX / 8, 4).unwrap_err();
        assert!(matches!(error, OpsError::OutOfMemory { bytes, .. } if bytes > 1 << 60));
        assert!(matches!(untouched("KV", usize::MAX / 2), Err(OpsError::OutOfMemory { .. })));
        assert!(matches!(untouched("KV", 1 << 60), Err(OpsError::OutOfMemory { .. })));
    }

    #[test]
    fn streamed_memory_is_filled_writable_and_on_a_huge_page_where_it_is_large() {
        let mut small = Streamed::filled("weights", 3, 7_u32).unwrap();
        small[1] = 8;
        assert_eq!(*small, [7, 8, 7]);
        let large = Streamed::filled("weights", HUGE_PAGE / 4 + 5, 9_u32).unwrap();
        assert_eq!((large.len(), large.as_ptr() as usize % HUGE_PAGE), (HUGE_PAGE / 4 + 5, 0));
        assert!(large.iter().all(|word| *word == 9));
        assert!(matches!(Streamed::filled("weights", usize::MAX / 2, 0_u32), Err(OpsError::OutOfMemory { .. })));
    }

    #[test]
    fn untouched_memory_reads_as_zero_and_can_be_empty() {
        assert!(untouched("KV", 0).unwrap().is_empty());
        assert!(untouched("KV", 5000).unwrap().iter().all(|word| *word == 0));
    }
}
