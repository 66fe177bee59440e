//! PEFT's files as written: the config's fields and the rules by which it names modules. Knows no tensor.

pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod targets;
