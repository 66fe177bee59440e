//! What structs of the ABI are made of: addresses on the device, and numbers that are copied byte by byte.

use std::marker::PhantomData;

/// Address of `T`s on the device; 0 is null.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Address<T> {
    at: u64,
    what: PhantomData<fn() -> T>,
}

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Address<T> {}

impl<T> Default for Address<T> {
    fn default() -> Self {
        Self::NULL
    }
}

impl<T> Address<T> {
    pub(super) const NULL: Self = Self { at: 0, what: PhantomData };

    pub(super) fn new(at: u64) -> Self {
        Self { at, what: PhantomData }
    }

    /// The address `count` items further on.
    pub(super) fn add(self, count: usize) -> Self {
        Self::new(self.at + (count * size_of::<T>()) as u64)
    }

    pub(super) fn get(self) -> u64 {
        self.at
    }
}

/// Memory whose type the kernel's dtype decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untyped;

/// Structs of the ABI are copied to the device byte by byte, padding included: none has any that is not a field.
pub(super) trait Plain: Copy + 'static {
    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: implementors are `repr(C)` structs, or numbers, without padding, so that every byte is initialised.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

impl Plain for u32 {}
impl Plain for f32 {}
impl Plain for i32 {}
impl<T: 'static> Plain for Address<T> {}

/// Declares structs of the ABI. That none has padding is checked when this compiles.
macro_rules! plain {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding must be a field");

        impl Plain for $name {}
    )*};
}
pub(super) use plain;
