//! What stands around choices, whether they come as one document or as events.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::super::site::unix_seconds;
use super::asked::{Asked, Kind, Shape};
use crate::admission::{GenerationInfo, ServingDelta, ServingPart};
use crate::types::Usage;

/// What stands around choices, in a document and in each event.
pub(super) struct Frame {
    id: String,
    created: u64,
    model: String,
    pub(super) shape: Shape,
}

impl Frame {
    pub(super) fn new(id: &str, asked: &Asked) -> Self {
        let prefix = match asked.shape.kind {
            Kind::Chat => "chatcmpl",
            Kind::Text => "cmpl",
        };
        Self {
            id: format!("{prefix}-{id}"),
            created: unix_seconds(SystemTime::now()),
            model: asked.model.name.clone(),
            shape: asked.shape.clone(),
        }
    }

    /// Around these choices.
    pub(super) fn around(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": null,
            "choices": choices,
        })
    }
}

/// Token counts.
pub(super) fn usage(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": u64::from(prompt_tokens) + u64::from(completion_tokens),
        "prompt_tokens_details": { "cached_tokens": cached_tokens },
    })
}

/// Which adapter it was, and which version of it: nothing of the base.
pub(super) fn served_by(info: &GenerationInfo) -> Map<String, Value> {
    let part = |part: &ServingPart| json!({ "adapter": part.name.as_str(), "weight": part.weight, "adapter_version": part.version.to_string() });
    let fields = match &info.delta {
        ServingDelta::Base => Vec::new(),
        ServingDelta::Adapter { name, version } => {
            vec![("adapter", name.as_str().into()), ("adapter_version", version.to_string().into())]
        }
        ServingDelta::Mix { version, parts } => {
            vec![("mix", parts.iter().map(part).collect()), ("adapter_version", version.to_string().into())]
        }
        ServingDelta::Sent { version } => vec![("adapter_version", version.to_string().into())],
    };
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
