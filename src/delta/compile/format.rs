//! Whose files an adapter comes in.

/// Whose keys the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// PEFT.
    Peft,
    /// AdapterHub's library.
    AdapterHub,
}
