//! Typed access to `config.json`, which comes in two spellings: transformers v4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and v5 (`rope_parameters`, `dtype`, `layer_types`). Says what a field is; never what it means.

use serde_json::{Map, Value};

use super::ModelError;

/// A JSON object and the dotted path it was found at, so that every error names its field.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { object, path }
    }

    /// The value of a field; JSON null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// True where the field is written, even as null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// Names of the fields.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.object.keys().map(String::as_str)
    }

    pub(super) fn is_object(&self, field: &str) -> bool {
        self.get(field).is_some_and(Value::is_object)
    }

    /// Refuse a written null where transformers has no place for one: it is not the same as an absent field there.
    pub(super) fn not_null(&self, fields: &[&str]) -> Result<(), ModelError> {
        match fields.iter().find(|field| self.has(field) && self.get(field).is_none()) {
            Some(field) => Err(self.bad(field, "anything but null, or no such field")),
            None => Ok(()),
        }
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        self.typed(field, "an object", Value::as_object)
    }

    pub(super) fn usize(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let small = |value: &'a Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 1 << 31);
        self.typed(field, "a whole number below 2^31", small)
    }

    pub(super) fn positive(&self, field: &str) -> Result<usize, ModelError> {
        match self.usize(field)? {
            Some(0) => Err(self.bad(field, "at least 1")),
            Some(number) => Ok(number),
            None => Err(ModelError::MissingField { field: self.name(field) }),
        }
    }

    /// A size of the network: at least 1 and no more than any real one has by far, so that products of sizes fit.
    pub(super) fn size(&self, field: &str, max: usize, expected: &'static str) -> Result<usize, ModelError> {
        let size = self.positive(field)?;
        if size <= max { Ok(size) } else { Err(self.bad(field, expected)) }
    }

    pub(super) fn positive_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        if self.get(field).is_some() { self.positive(field) } else { Ok(default) }
    }

    pub(super) fn f64(&self, field: &str) -> Result<Option<f64>, ModelError> {
        self.typed(field, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub(super) fn f64_or(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.f64(field)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.typed(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn str(&self, field: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn f64_list(&self, field: &str) -> Result<Vec<f64>, ModelError> {
        let list = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let found = self.typed(field, "a list of numbers", list)?;
        found.ok_or_else(|| ModelError::MissingField { field: self.name(field) })
    }

    /// Empty where it is absent.
    pub(super) fn usize_list(&self, field: &str) -> Result<Vec<usize>, ModelError> {
        let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
        let list = |value: &Value| value.as_array()?.iter().map(number).collect::<Option<Vec<usize>>>();
        Ok(self.typed(field, "a list of whole numbers", list)?.unwrap_or_default())
    }

    pub(super) fn str_list(&self, field: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let list = |value: &'a Value| value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<&'a str>>>();
        self.typed(field, "a list of strings", list)
    }

    pub(super) fn bad(&self, field: &str, expected: &'static str) -> ModelError {
        ModelError::BadField { field: self.name(field), found: self.shown(field), expected }
    }

    pub(super) fn unsupported(&self, field: &str, hint: &'static str) -> ModelError {
        ModelError::Unsupported { field: self.name(field), found: self.shown(field), hint }
    }

    fn typed<T>(
        &self,
        field: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.bad(field, expected)),
        }
    }

    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn shown(&self, field: &str) -> String {
        let text = self.object.get(field).map_or_else(|| "absent".to_owned(), Value::to_string);
        text.chars().take(80).collect()
    }
}
