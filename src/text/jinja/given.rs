//! What a call was given.

use super::ast::Name;
use super::error::{RenderError, failed};
use super::value::Value;

/// Arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Name, Value)>,
}

impl Given {
    pub(super) fn name(&mut self, name: Name, value: Value) -> Result<(), RenderError> {
        if self.named.iter().any(|(found, _)| *found == name) {
            return failed(format!("got multiple values for keyword argument '{name}'"));
        }
        self.named.push((name, value));
        Ok(())
    }

    /// The arguments for these parameters, absent ones `None`; more, and names that are not among them, are refused.
    pub(super) fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> Result<[Option<Value>; N], RenderError> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return failed(format!("{what} takes at most {N} arguments ({} given)", self.positional.len()));
        }
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|found| *found == &*name) {
                Some(at) if bound[at].is_none() => bound[at] = Some(value),
                Some(_) => return failed(format!("{what} got multiple values for argument '{name}'")),
                None => return failed(format!("{what} got an unexpected keyword argument '{name}'")),
            }
        }
        Ok(bound)
    }
}
