//! PEFT's files as written: the config's fields and the rules by which it names modules. Knows keys and no
//! numbers.

pub(crate) mod defaults;
pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod keys;
pub(crate) mod saved;
pub(crate) mod saved_embedding;
pub(crate) mod targets;
