//! What a rendering may take.

use super::error::RenderError;

/// Most levels of statements, expressions and macro calls inside each other; a level takes about one stack frame, and
/// all of them fit the stack of a thread of the runtime.
pub(super) const MAX_DEPTH: u32 = 200;

/// Most levels of values inside each other: printing, comparing and dropping them is recursive.
pub(super) const MAX_NESTING: u32 = 64;

/// What an element of a list is charged for: a value.
pub(super) const ELEMENT_BYTES: usize = 32;

/// What a rendering may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Statements, expressions and iterations.
    pub steps: u64,
    /// Bytes of all values ever made, and bytes ever searched: bounds memory and time.
    pub bytes: u64,
    /// Bytes of the result.
    pub output: usize,
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    steps: u64,
    bytes: u64,
    pub(super) output: usize,
    depth: u32,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { steps: limits.steps, bytes: limits.bytes, output: limits.output, depth: 0 }
    }

    pub(super) fn step(&mut self) -> Result<(), RenderError> {
        self.steps = self.steps.checked_sub(1).ok_or(RenderError::Limit { limit: "the number of steps" })?;
        Ok(())
    }

    /// Before so many bytes are made or searched.
    pub(super) fn bytes(&mut self, bytes: usize) -> Result<(), RenderError> {
        let left = self.bytes.checked_sub(bytes as u64);
        self.bytes = left.ok_or(RenderError::Limit { limit: "the size of values" })?;
        Ok(())
    }

    /// Before so many elements are made or searched.
    pub(super) fn elements(&mut self, count: usize) -> Result<(), RenderError> {
        self.bytes(count.saturating_mul(ELEMENT_BYTES))
    }

    pub(super) fn enter(&mut self) -> Result<(), RenderError> {
        self.step()?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(RenderError::Limit { limit: "the depth of recursion" });
        }
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }
}
