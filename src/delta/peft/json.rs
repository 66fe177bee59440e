//! What of an `adapter_config.json` is read before its fields are, and what any JSON value means in one.

use crate::files::Json;

/// True for null, false, "", 0-length lists and objects: the values that switch nothing on.
#[must_use]
pub(crate) fn is_neutral(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(_) => false,
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
    }
}

/// The text without the byte order mark that editors of some systems put in front.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The base that a config says its adapter was trained on: a note of the trainer's, which decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedBase {
    /// A folder, or `ORG/NAME`.
    pub name: String,
    /// Its revision on the hub, where one is named.
    pub revision: Option<String>,
}

/// The base that the bytes of an `adapter_config.json` name.
#[must_use]
pub fn named_base(config: &[u8]) -> Option<NamedBase> {
    #[derive(serde::Deserialize)]
    struct Provenance {
        #[serde(alias = "model_name")] // AdapterHub's library
        base_model_name_or_path: Option<String>,
        revision: Option<String>,
    }
    let Provenance { base_model_name_or_path, revision } = serde_json::from_slice(without_mark(config)).ok()?;
    let some = |text: &String| !text.is_empty();
    Some(NamedBase { name: base_model_name_or_path.filter(some)?, revision: revision.filter(some) })
}
