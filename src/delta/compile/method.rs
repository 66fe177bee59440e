//! What the compiler of a method provides: [`Method`].

use super::compilation::Compilation;
use super::format::Format;
use crate::delta::DeltaError;

/// A method with its config, read and checked before any tensor is looked at.
pub(super) trait Method {
    /// For people.
    fn kind(&self) -> &'static str;

    /// Whose files it comes in.
    fn format(&self) -> Format {
        Format::Peft
    }

    /// What stands in the keys of its own tensors and of no other method's, where there is such a thing.
    fn own_key(&self) -> Option<&'static str> {
        None
    }

    /// Token ids that activate it, where it does not apply to every row.
    fn invocation_tokens(&self) -> &[u32] {
        &[]
    }

    /// Whether its ops have numbers that the file does not hold as such, so that they may be many more.
    fn works_out_numbers(&self) -> bool {
        false
    }

    /// Whether its config may name modules that the file has whole.
    fn takes_saved_modules(&self) -> bool {
        true
    }

    /// Take its tensors and attach its ops.
    ///
    /// # Errors
    /// The first reason to refuse.
    fn compile(&self, compilation: &mut Compilation<'_>) -> Result<(), DeltaError>;
}
