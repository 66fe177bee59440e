//! Which files of a repository are wanted.

/// Files a server cannot do without.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Files that are taken where a repository has them.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
];
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Where an adapter may have a chat template and tokens of its own, and what AdapterHub's library says of a head beside it.
const ADAPTER_OPTIONAL: [&str; 4] =
    ["chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "head_config.json"];
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Weights of an adapter, the best first.
pub(super) const ADAPTER_WEIGHTS: [&str; 5] =
    ["adapter_model.safetensors", ADAPTER_INDEX, "adapter_model.bin", "adapter.safetensors", "pytorch_adapter.bin"];
pub(super) const ADAPTER_INDEX: &str = "adapter_model.safetensors.index.json";

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A base model: config, tokenizer and weights, and what may lie beside them.
    Model,
    /// An adapter: config and weights, in the best form the repository has.
    Adapter,
}

impl Wanted {
    pub(super) fn required(self) -> &'static [&'static str] {
        match self {
            Self::Model => &REQUIRED,
            Self::Adapter => &[ADAPTER_CONFIG],
        }
    }

    pub(super) fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Model => &OPTIONAL,
            Self::Adapter => &ADAPTER_OPTIONAL,
        }
    }
}
