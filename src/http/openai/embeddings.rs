//! `POST /v1/embeddings`: texts that are read instead of continued.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use http::{HeaderValue, Response};
use serde_json::{Value, json};

use super::super::body::{self, Received, json_response};
use super::super::fields::{Fields, Neutral};
use super::super::refused::Refused;
use super::super::site::Site;
use super::completions;
use super::delta::{self, Model};
use super::frame::served_by;
use crate::admission::{Arrival, PoolRequest, PooledText};
use crate::types::PromptInput;
use crate::types::pool::{EmbedOptions, PoolInput, PoolWanted, Pooling};

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Float,
    /// Of little-endian f32: what OpenAI's own client asks for unless told otherwise.
    Base64,
}

struct Asked {
    model: Model,
    input: PoolInput,
    encoding: Encoding,
}

pub(super) async fn answer(State(site): State<Arc<Site>>, request: Request) -> Result<Response<Body>, Refused> {
    let understood = Arc::clone(&site);
    let received = body::receive(request, move |fields| asked(fields, &understood)).await?;
    let Received { context, asked: Asked { model, input, encoding }, _held } = received;
    let arrival =
        Arrival { client: context.client, connection: context.connection, arrived: context.arrived, deadline: None };
    let request = PoolRequest {
        request_id: context.request_id,
        delta: model.delta,
        input,
        max_answer_bytes: site.max_message_bytes as u64,
    };
    let reading = site.gate.pool(request, arrival).await?;
    let adapter = served_by(reading.info());
    let id = HeaderValue::try_from(reading.info().request_id.as_str());
    let answer = reading.finish().await?;
    let data = answer.texts.into_iter().enumerate().map(|(index, PooledText { vectors, tokens: _ })| {
        json!({ "object": "embedding", "index": index, "embedding": encoding.encode(&vectors.concat()) })
    });
    let mut document = json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": model.name,
        "usage": { "prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.prompt_tokens },
    });
    if let Value::Object(fields) = &mut document {
        fields.extend(adapter);
    }
    let mut response = json_response(&document);
    if let Ok(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

fn asked(mut fields: Fields, site: &Site) -> Result<Asked, Refused> {
    let model = delta::take(&mut fields, site)?;
    let inputs: Vec<PromptInput> = completions::prompts(&mut fields, "input")?;
    let encoding = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(Refused::field("encoding_format", "expected float or base64")),
    };
    let pooling = match fields.take::<String>("pooling")?.as_deref() {
        None | Some("last") => Pooling::Last,
        Some("mean") => Pooling::Mean,
        Some("first") => Pooling::First,
        Some(_) => return Err(Refused::field("pooling", "expected last, mean or first")),
    };
    let options = EmbedOptions {
        pooling,
        // OpenAI's are of length 1.
        normalize: fields.take("normalize")?.unwrap_or(true),
        dimensions: fields.take("dimensions")?,
    };
    let input = PoolInput {
        inputs,
        wanted: PoolWanted::Embeddings(options),
        priority: fields.or_default::<i32>("priority")?.saturating_neg(),
        cache_salt: fields.or_default("cache_salt")?,
    };
    fields.ignore(&["user"]);
    fields.neutral(&[("add_special_tokens", Neutral::Bool(true)), ("truncate_prompt_tokens", Neutral::Absent)])?;
    fields.finish()?;
    Ok(Asked { model, input, encoding })
}

impl Encoding {
    fn encode(self, numbers: &[f32]) -> Value {
        match self {
            Self::Float => numbers.into(),
            Self::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                base64(&bytes).into()
            }
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= chunk.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // Its test vectors, section 10.
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
        assert_eq!(Encoding::Base64.encode(&[1.0]), "AACAPw==");
        assert_eq!(Encoding::Float.encode(&[1.5]), json!([1.5]));
    }
}
