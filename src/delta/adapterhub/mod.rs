//! Files of AdapterHub's `adapters` library as written: what tells its config from PEFT's, which has the same name, and the
//! keys of its tensors. Knows keys and no numbers.

pub(crate) mod keys;

use super::peft::fields::Fields;

/// Where the library keeps the adapter's own config, beside what it says of the model.
pub(crate) const CONFIG: &str = "config";

/// Fields that describe the adapter's origin and never the maths.
pub(crate) const IGNORED: [&str; 9] = [
    "config_id",
    "label2id",
    "model_class",
    "model_name",
    "name",
    "num_labels",
    "type",
    "version",
    // What adapter-transformers called the base.
    "base_model",
];

/// Whether a config is the library's.
pub(crate) fn wrote(fields: &Fields) -> bool {
    let own = |name: &str| {
        matches!(name, CONFIG | "config_id" | "architecture" | "model_class") || name.starts_with("config.")
    };
    !fields.has("peft_type") && fields.any(own)
}
