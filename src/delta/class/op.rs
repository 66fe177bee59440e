//! What the file of a class provides: [`ClassOp`].

use super::loading::Loading;
use crate::delta::change::Change;
use crate::delta::error::DeltaError;
use crate::delta::layout::Site;
use crate::ops::{Backend, HostMatrix, OpsError, WeightFormat};
use crate::types::VirtualTokens;

/// How an op of a class becomes `weight` times itself, or why there is no such thing.
pub(crate) type Weighting<T> = Result<fn(T, f32) -> T, &'static str>;

/// An op of one class, on the host. What it does to a row is its file's `apply`.
pub(crate) trait ClassOp {
    /// Numbers it holds.
    fn parameters(&self) -> usize;

    /// Bytes it takes on the device, where matrices lie in this format; all other numbers are f32.
    fn device_bytes(&self, _weights: WeightFormat) -> u64 {
        4 * self.parameters() as u64
    }

    /// Rank of a low-rank op.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// s of an op that has one.
    fn scaling(&self) -> Option<f32> {
        None
    }

    /// Whether it comes after the base's bias, for an op that may come before it.
    fn after_bias(&self) -> Option<bool> {
        None
    }

    /// Whether it is in place of the base's, for an op that may be or may be added to it.
    fn replaces(&self) -> Option<bool> {
        None
    }

    /// What it puts at the head of every sequence.
    fn virtual_tokens(&self) -> Option<VirtualTokens> {
        None
    }

    /// Where it works besides the site that it is attached to.
    fn other_site(&self) -> Option<Site> {
        None
    }

    /// Numbers that may have been computed from those of the file and may have overflown. Those of the file itself are
    /// checked as they are read.
    fn computed(&self) -> &[f32] {
        &[]
    }

    /// How far it is from changing nothing; `None` where its numbers are in place of the base's, or stand for themselves.
    ///
    /// # Errors
    /// [`DeltaError::Candle`].
    fn change(&self) -> Result<Option<Change>, DeltaError> {
        Ok(None)
    }

    /// How an op becomes `weight` times itself, where ops of several adapters may stand at one site and what they add to a
    /// row adds up, each linear in its numbers: what a mix is made of. Else why not, as the end of a sentence about the
    /// class.
    fn weighting() -> Weighting<Self>
    where
        Self: Sized,
    {
        Err("is not linear in its numbers")
    }

    /// The op with its matrices as kernels read them.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    fn laid_out(self) -> Result<Self, OpsError>
    where
        Self: Sized,
    {
        Ok(self)
    }

    /// Its matrices once laid out, in the order in which [`Self::load`] takes their weights.
    fn matrices(&self) -> Vec<HostMatrix<'_>> {
        Vec::new()
    }

    /// Put it on the device, at the places that a site means to a step.
    ///
    /// # Errors
    /// [`OpsError::OutOfMemory`].
    fn load<B: Backend>(self, site: Site, loading: &mut Loading<'_, B>) -> Result<(), OpsError>
    where
        Self: Sized;
}
