//! `POST /tokenize` and `/detokenize`, as vLLM has them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use http::Response;
use serde_json::json;

use super::super::body::{self, Received, json_response};
use super::super::fields::{Fields, Neutral};
use super::super::refused::Refused;
use super::super::site::Site;
use super::chat;
use super::delta::{self, Model};
use crate::types::generate::PromptInput;

pub(super) async fn tokenize(State(site): State<Arc<Site>>, request: Request) -> Result<Response<Body>, Refused> {
    let understood = Arc::clone(&site);
    let received = body::receive(request, move |fields| to_tokenize(fields, &understood)).await?;
    let Received { context, asked: (model, prompt), _held } = received;
    let prompt = site.gate.tokenize(prompt, &model.delta, context.client).await?;
    Ok(json_response(&json!({
        "count": prompt.ids.len(),
        "max_model_len": site.max_model_len,
        "tokens": prompt.ids,
        "token_strs": null,
    })))
}

fn to_tokenize(mut fields: Fields, site: &Site) -> Result<(Model, PromptInput), Refused> {
    let model = delta::take(&mut fields, site)?;
    let prompt = match (fields.take::<String>("prompt")?, chat::chat(&mut fields)?) {
        (Some(_), Some(_)) => return Err(Refused::Together { field: "prompt", other: "messages" }),
        (Some(text), None) => PromptInput::Text(text),
        (None, Some(chat)) => PromptInput::Chat(chat),
        (None, None) => return Err(Refused::Missing { field: "prompt" }),
    };
    fields.neutral(&[
        ("add_special_tokens", Neutral::Bool(true)),
        ("return_token_strs", Neutral::Bool(false)),
        ("tools", Neutral::Empty),
    ])?;
    fields.finish()?;
    Ok((model, prompt))
}

pub(super) async fn detokenize(State(site): State<Arc<Site>>, request: Request) -> Result<Response<Body>, Refused> {
    let understood = Arc::clone(&site);
    let received = body::receive(request, move |fields| to_detokenize(fields, &understood)).await?;
    let Received { context, asked: (model, ids), _held } = received;
    let text = site.gate.detokenize(ids, false, &model.delta, context.client).await?;
    Ok(json_response(&json!({ "prompt": text })))
}

/// An adapter may have tokens of its own.
fn to_detokenize(mut fields: Fields, site: &Site) -> Result<(Model, Vec<u32>), Refused> {
    let model = delta::take(&mut fields, site)?;
    let ids = fields.take("tokens")?.ok_or(Refused::Missing { field: "tokens" })?;
    fields.finish()?;
    Ok((model, ids))
}
