//! What a backend says of itself.

/// How a kernel set presents itself in logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// `reference`, `cpu` or `cuda`.
    pub name: &'static str,
    /// Instruction set path chosen at start, e.g. `avx512bf16`, `avx2`, `portable`.
    pub isa: &'static str,
    /// What else its numbers depend on: a GPU's compute capability, a library that multiplies. Empty where nothing does.
    pub variant: String,
    /// Compute threads.
    pub threads: usize,
}
