//! `POST /v1/completions`: texts or ids to be continued.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use http::Response;

use super::super::body;
use super::super::fields::{Fields, Neutral};
use super::super::refused::Refused;
use super::super::site::Site;
use super::answer as answers;
use super::asked::{Asked, Kind, Shape};
use crate::types::generate::PromptInput;

/// Most prompts of a request: each takes a place in the server.
const MAX_PROMPTS: usize = 128;

/// OpenAI's `max_tokens` where a request leaves it unset.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Fields of this route that are not implemented.
const NEUTRAL: &[(&str, Neutral)] =
    &[("suffix", Neutral::Empty), ("prompt_embeds", Neutral::Absent), ("add_special_tokens", Neutral::Bool(true))];

pub(super) async fn answer(State(site): State<Arc<Site>>, request: Request) -> Result<Response<Body>, Refused> {
    let understood = Arc::clone(&site);
    let received = body::receive(request, move |fields| asked(fields, &understood)).await?;
    answers::answer(&site, received).await
}

fn asked(mut fields: Fields, site: &Site) -> Result<Asked, Refused> {
    let prompts = prompts(&mut fields, "prompt")?;
    let shape = Shape {
        kind: Kind::Text,
        logprobs: fields.take("logprobs")?,
        prompt_logprobs: None,
        echo: fields.or_default("echo")?,
        token_ids: false,
        tokens_as_ids: false,
    };
    let mut asked = Asked::take(&mut fields, site, prompts, shape)?;
    asked.stopping.max_tokens = Some(fields.take("max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS));
    fields.neutral(NEUTRAL)?;
    fields.finish()?;
    Ok(asked)
}

/// Take what is to be read, in whichever form it came.
pub(super) fn prompts(fields: &mut Fields, name: &'static str) -> Result<Vec<PromptInput>, Refused> {
    let text = fields.take_text(name).ok_or(Refused::Missing { field: name })?;
    let prompts = of_text(&text)
        .map_err(|_| Refused::field(name, "expected a text, a list of token ids, or a list of either"))?;
    if prompts.len() > MAX_PROMPTS {
        let reason = format!("it has {} entries, the limit is {MAX_PROMPTS}", prompts.len());
        return Err(Refused::field(name, reason));
    }
    Ok(prompts)
}

/// Its form shows in its first characters; so no value is made in between.
fn of_text(text: &[u8]) -> Result<Vec<PromptInput>, serde_json::Error> {
    let mut characters = text.iter().filter(|byte| !byte.is_ascii_whitespace());
    Ok(match (characters.next(), characters.next()) {
        (Some(b'['), Some(b'"')) => {
            serde_json::from_slice::<Vec<String>>(text)?.into_iter().map(PromptInput::Text).collect()
        }
        (Some(b'['), Some(b'[')) => {
            serde_json::from_slice::<Vec<Vec<u32>>>(text)?.into_iter().map(PromptInput::TokenIds).collect()
        }
        (Some(b'['), _) => vec![PromptInput::TokenIds(serde_json::from_slice(text)?)],
        _ => vec![PromptInput::Text(serde_json::from_slice(text)?)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prompt: &str) -> Result<Vec<PromptInput>, Refused> {
        prompts(&mut Fields::parse(format!("{{\"prompt\": {prompt}}}").into()).unwrap(), "prompt")
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| PromptInput::Text(text.to_owned());
        let ids = |ids: &[u32]| PromptInput::TokenIds(ids.to_vec());
        assert_eq!(of("\"a\"").unwrap(), [text("a")]);
        assert_eq!(of("[\"a\", \"b\"]").unwrap(), [text("a"), text("b")]);
        assert_eq!(of("[1, 2]").unwrap(), [ids(&[1, 2])]);
        assert_eq!(of("[[1, 2], [3]]").unwrap(), [ids(&[1, 2]), ids(&[3])]);
        // Refused by the gate, which says why.
        assert_eq!(of("[]").unwrap(), [ids(&[])]);
    }

    #[test]
    fn what_is_no_prompt_names_the_field() {
        for prompt in ["1", "{}", "[-1]", "[1.5]", "[\"a\", 1]", "[[\"a\"]]"] {
            let refused = of(prompt).unwrap_err().to_string();
            assert!(refused.starts_with("prompt: expected a text"), "{refused}");
        }
        assert_eq!(of("null").unwrap_err().to_string(), "prompt is required");
        let many = format!("[{}\"\"]", "\"\",".repeat(MAX_PROMPTS));
        assert_eq!(of(&many).unwrap_err().to_string(), "prompt: it has 129 entries, the limit is 128");
    }
}
