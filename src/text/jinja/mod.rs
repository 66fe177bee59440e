//! Jinja as transformers runs it: the language of chat templates, with Python's values and with limits.
//!
//! Templates come with models from strangers, so a rendering may take a bounded number of steps, bytes, and levels,
//! and touches nothing but what it was given. The language is that of `jinja2.sandbox.ImmutableSandboxedEnvironment`
//! with `trim_blocks`, `lstrip_blocks`, loop controls, and what transformers adds (`tojson` without HTML escapes,
//! `raise_exception`, `strftime_now`, `{% generation %}`). What it does not know is refused where the template is
//! compiled, by name.
//!
//! This is not minijinja since that bounds neither the bytes of a value (`x ~ x`, forty times) nor prints as Python does
//! inside `~`, `join` and `%`. This room must not know of chats, tokens or files.

mod arithmetic;
mod ast;
mod budget;
mod call;
mod checks;
mod compare;
mod error;
mod evaluate;
mod execute;
mod filters;
mod format;
mod given;
mod json;
mod lexer;
mod methods;
mod numbers;
mod parser;
mod sequences;
mod strings;
mod value;

pub use budget::Limits;
pub use error::{RenderError, SyntaxError};
pub use value::Value;

use std::time::SystemTime;

/// A compiled template. Shared between threads; a rendering has a state of its own.
#[derive(Debug)]
pub struct Template {
    body: Vec<ast::Statement>,
    literals: Vec<String>,
}

impl Template {
    /// Compile `source`.
    ///
    /// # Errors
    /// Not valid Jinja, nested too deep, or a tag, filter, test or method that this implementation does not have.
    pub fn compile(source: &str) -> Result<Self, SyntaxError> {
        let (body, literals) = parser::parse(source)?;
        Ok(Self { body, literals })
    }

    /// Every piece of text that the template itself can write: what stands between tags, and string constants.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.literals.iter().map(String::as_str)
    }

    /// Render with these variables. `now` (UTC) is what `strftime_now` prints.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render(
        &self,
        variables: Vec<(String, Value)>,
        now: SystemTime,
        limits: Limits,
    ) -> Result<String, RenderError> {
        execute::Machine::new(now, limits).render(&self.body, variables)
    }
}

#[cfg(test)]
mod tests;
