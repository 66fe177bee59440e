//! Answers: pieces put together into one document, or handed on as events.

use axum::body::Body;
use http::{HeaderValue, Response};
use serde_json::{Map, Value, json};

use super::super::body::{Received, json_response};
use super::super::refused::Refused;
use super::super::site::Site;
use super::asked::{Asked, Kind, Shape};
use super::frame::{Frame, served_by, usage};
use super::pieces::{self, Finish, Piece};
use super::running::Running;
use super::stream;

/// Answer a request, whichever route it came by.
pub(super) async fn answer(site: &Site, received: Received<Asked>) -> Result<Response<Body>, Refused> {
    let Received { context, mut asked, _held } = received;
    let mut running = Running::admit(site, &context, &mut asked).await?;
    let id = asked.request_id.clone();
    let frame = Frame::new(asked.request_id.as_deref().unwrap_or(&context.request_id), &asked);
    let mut response = if asked.stream {
        stream::response(running, frame, asked.include_usage, site.stall_limit)
    } else {
        json_response(&whole(&mut running, &frame).await?)
    };
    if let Some(id) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

async fn whole(running: &mut Running, frame: &Frame) -> Result<Value, Refused> {
    let mut choices: Vec<Piece> = (0u32..).take(running.choices()).map(Piece::empty).collect();
    while let Some(piece) = running.next().await {
        let piece = piece?;
        if let Some(choice) = choices.get_mut(piece.index as usize) {
            choice.add(piece);
        }
    }
    let Shape { kind, .. } = frame.shape;
    let mut beside = Map::new();
    let choices = choices.into_iter().map(|choice| choice_of(choice, &frame.shape, &mut beside)).collect();
    let object = match kind {
        Kind::Chat => "chat.completion",
        Kind::Text => "text_completion",
    };
    let mut document = frame.around(object, choices);
    if let Value::Object(fields) = &mut document {
        fields.insert("usage".to_owned(), usage(running.usage()));
        fields.extend(beside);
        fields.extend(running.info().map(served_by).unwrap_or_default());
        if let Some(receipt) = running.receipt() {
            fields.insert("receipt".to_owned(), receipt.into());
        }
    }
    Ok(document)
}

/// A choice; of a chat, what is said of its prompt stands `beside` the choices.
fn choice_of(piece: Piece, shape: &Shape, beside: &mut Map<String, Value>) -> Value {
    let logprobs = pieces::entries(&piece.tokens, shape);
    let Piece { index, text, tokens: _, token_ids, opening, finish } = piece;
    let (reason, stop_reason) = finish.map_or_else(Default::default, Finish::into_values);
    let mut choice = Map::new();
    let of_prompt = match shape.kind {
        Kind::Chat => {
            choice.insert("message".to_owned(), json!({ "role": "assistant", "content": text, "refusal": null }));
            beside
        }
        Kind::Text => {
            choice.insert("text".to_owned(), text.into());
            &mut choice
        }
    };
    if let Some(opening) = opening {
        of_prompt.extend(opening.prompt_ids.map(|ids| ("prompt_token_ids".to_owned(), ids.into())));
        of_prompt.extend(opening.prompt_logprobs.map(|logprobs| ("prompt_logprobs".to_owned(), logprobs)));
    }
    choice.insert("index".to_owned(), index.into());
    choice.insert("logprobs".to_owned(), logprobs);
    choice.insert("finish_reason".to_owned(), reason);
    choice.insert("stop_reason".to_owned(), stop_reason);
    if shape.token_ids {
        choice.insert("token_ids".to_owned(), token_ids.into());
    }
    Value::Object(choice)
}
