//! What a chat template that somebody sends is to whoever sent it.

use super::chat::ChatError;
use crate::types::{Problem, ToProblem};

/// Where an adapter keeps its own, as transformers names it.
const TEMPLATE: &str = "chat_template.jinja";

impl ToProblem for ChatError {
    /// Of a template that is compiled and not rendered; a chat that has none to be rendered with is the gate's to explain.
    fn to_problem(&self) -> Problem {
        match self {
            Self::Template(_) | Self::NotText => Problem::invalid("INVALID_CHAT_TEMPLATE", TEMPLATE, self),
            Self::Read { .. } | Self::Tokens(_) | Self::Refused { .. } | Self::Render { .. } | Self::Limit { .. } => {
                Problem::internal("checking a chat template", self)
            }
        }
    }
}
