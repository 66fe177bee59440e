//! OpenAI's API, with what vLLM adds to it and what no other server has: adapters by name, version and mix, and receipts.
//!
//! | part | job |
//! |---|---|
//! | `delta` | which model is meant |
//! | `sampling` | how tokens are chosen, when they end |
//! | `asked` | a request to generate, whichever route it came by |
//! | `completions`, `chat` | what is particular to each |
//! | `running`, `pieces` | several prompts read side by side; events of the gate as pieces of choices |
//! | `answer`, `stream`, `frame` | pieces as one document, or as events, and what stands around them |
//! | `logprobs` | log-probabilities in their three shapes |
//! | `models`, `tokens`, `embeddings` | the other routes |

mod answer;
mod asked;
mod chat;
mod completions;
mod delta;
mod embeddings;
mod frame;
mod logprobs;
mod models;
mod pieces;
mod running;
mod sampling;
mod stream;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::site::Site;

/// The routes, without what they are made of.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/embeddings", post(embeddings::answer))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
}
