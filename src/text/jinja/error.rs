//! Why a template is not compiled, and why it renders nothing.

/// Why a template is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct SyntaxError {
    /// Line of the template, from 1.
    pub line: u32,
    /// What is wrong, or what is not known.
    pub message: String,
}

/// Why a template rendered nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// Its words.
        message: String,
    },
    /// The rendering took more than it may.
    #[error("the rendering exceeds {limit}")]
    Limit {
        /// Which limit, in words.
        limit: &'static str,
    },
    /// An operation failed, as it does in Python.
    #[error("line {line}: {message}")]
    Failed {
        /// Line of the statement, from 1.
        line: u32,
        /// What failed.
        message: String,
    },
}

/// An operation fails; its statement's line is added on the way out.
pub(super) fn failed<T>(message: impl Into<String>) -> Result<T, RenderError> {
    Err(RenderError::Failed { line: 0, message: message.into() })
}

/// A value that may be nested too deep.
pub(super) fn nested<T>(value: Option<T>) -> Result<T, RenderError> {
    value.ok_or(RenderError::Limit { limit: "the nesting of values" })
}
