//! `POST /v1/chat/completions`: a conversation to be answered.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use http::Response;
use serde_json::{Map, Value};

use super::super::body;
use super::super::fields::{Fields, Neutral};
use super::super::refused::Refused;
use super::super::site::Site;
use super::answer as answers;
use super::asked::{Asked, Kind, Shape};
use crate::admission::template_variables;
use crate::types::generate::{Chat, ChatMessage, PromptInput, TemplateValue};

/// Fields of this route that are not implemented.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("tools", Neutral::Empty),
    ("tool_choice", Neutral::Text(&["none", "auto"])),
    ("functions", Neutral::Empty),
    ("function_call", Neutral::Text(&["none", "auto"])),
    ("modalities", Neutral::Text(&["text"])),
    ("audio", Neutral::Absent),
    ("web_search_options", Neutral::Absent),
    ("reasoning_effort", Neutral::Absent),
    ("verbosity", Neutral::Absent),
    ("echo", Neutral::Bool(false)),
];

/// Those of the rendering, which `/tokenize` has too.
const RENDERING: &[(&str, Neutral)] = &[
    ("continue_final_message", Neutral::Bool(false)),
    ("add_special_tokens", Neutral::Bool(false)),
    ("documents", Neutral::Empty),
    ("chat_template", Neutral::Absent),
    ("mm_processor_kwargs", Neutral::Empty),
];

pub(super) async fn answer(State(site): State<Arc<Site>>, request: Request) -> Result<Response<Body>, Refused> {
    let understood = Arc::clone(&site);
    let received = body::receive(request, move |fields| asked(fields, &understood)).await?;
    answers::answer(&site, received).await
}

fn asked(mut fields: Fields, site: &Site) -> Result<Asked, Refused> {
    let chat = chat(&mut fields)?.ok_or(Refused::Missing { field: "messages" })?;
    let wanted: bool = fields.or_default("logprobs")?;
    let top: Option<u32> = fields.take("top_logprobs")?;
    if !wanted && top.is_some_and(|top| top > 0) {
        return Err(Refused::field("top_logprobs", "it is set and logprobs is not true"));
    }
    let shape = Shape {
        kind: Kind::Chat,
        logprobs: wanted.then(|| top.unwrap_or_default()),
        prompt_logprobs: None,
        echo: false,
        token_ids: false,
        tokens_as_ids: false,
    };
    let mut asked = Asked::take(&mut fields, site, vec![PromptInput::Chat(chat)], shape)?;
    asked.stopping.max_tokens = max_tokens(&mut fields)?;
    fields.neutral(NEUTRAL)?;
    fields.finish()?;
    Ok(asked)
}

/// OpenAI's new name of it, and the old one.
fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, Refused> {
    let (new, old) = (fields.take("max_completion_tokens")?, fields.take("max_tokens")?);
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            Err(Refused::Together { field: "max_completion_tokens", other: "another max_tokens" })
        }
        (new, old) => Ok(new.or(old)),
    }
}

/// Take a conversation, and how it is rendered; `None` where there are no messages.
pub(super) fn chat(fields: &mut Fields) -> Result<Option<Chat>, Refused> {
    let Some(messages) = fields.take::<Vec<Map<String, Value>>>("messages")? else { return Ok(None) };
    let messages = messages.into_iter().enumerate().map(|(index, fields)| message(index, fields));
    let messages = messages.collect::<Result<_, _>>()?;
    let mut template_kwargs = match fields.take_text("chat_template_kwargs") {
        Some(text) => template_variables(&text).map_err(|bad| Refused::field("chat_template_kwargs", bad))?,
        None => Vec::new(),
    };
    const PROMPTED: &str = "add_generation_prompt";
    if let Some(prompted) = fields.take::<bool>(PROMPTED)?
        && !template_kwargs.iter().any(|(name, _)| name == PROMPTED)
    {
        template_kwargs.push((PROMPTED.to_owned(), TemplateValue::Bool(prompted)));
    }
    fields.neutral(RENDERING)?;
    Ok(Some(Chat { messages, template_kwargs, allow_special_tokens: false }))
}

/// A message; what a client echoes of an answer it got is taken as long as it says nothing.
fn message(index: usize, mut fields: Map<String, Value>) -> Result<ChatMessage, Refused> {
    let path = |field: &str| format!("messages[{index}].{field}");
    let role = match fields.remove("role") {
        Some(Value::String(role)) => role,
        _ => return Err(Refused::field(path("role"), "expected a text")),
    };
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.into_iter().enumerate().map(|(part, value)| {
                text_part(value).ok_or_else(|| Refused::Unsupported { field: path(&format!("content[{part}]")) })
            });
            // As vLLM joins them.
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        None | Some(Value::Null) => String::new(),
        Some(_) => return Err(Refused::field(path("content"), "expected a text, or a list of parts")),
    };
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    match fields.iter().find(|(_, value)| says_something(value)) {
        Some((name, _)) => Err(Refused::Unsupported { field: path(&name.chars().take(64).collect::<String>()) }),
        None => Ok(ChatMessage { role, content }),
    }
}

/// `{"type": "text", "text": "…"}`.
fn text_part(value: Value) -> Option<String> {
    let Value::Object(mut part) = value else { return None };
    let is_text = part.get("type").is_some_and(|kind| kind == "text");
    match part.remove("text") {
        Some(Value::String(text)) if is_text => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<Chat>, Refused> {
        chat(&mut Fields::parse(text.to_owned().into()).unwrap())
    }

    #[test]
    fn contents_are_texts_or_parts_of_text() {
        let chat = of(r#"{"messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": [], "audio": null}]}"#);
        let messages = chat.unwrap().unwrap().messages;
        let contents: Vec<_> =
            messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        assert_eq!(contents, [("system", "be brief"), ("user", "a\nb"), ("assistant", "")]);
        assert_eq!(of("{}").unwrap(), None);
    }

    #[test]
    fn what_a_message_says_beyond_text_is_refused_by_its_path() {
        for (message, path) in [
            (r#"{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}"#, "content[1]"),
            (r#"{"role": "assistant", "content": "", "tool_calls": [{}]}"#, "tool_calls"),
            (r#"{"role": "user", "content": "x", "name": "Ann"}"#, "name"),
        ] {
            let refused = of(&format!("{{\"messages\": [{message}]}}")).unwrap_err().to_string();
            assert_eq!(refused, format!("messages[0].{path} is not supported here"));
        }
        let refused = of(r#"{"messages": [{"content": "x"}]}"#).unwrap_err().to_string();
        assert_eq!(refused, "messages[0].role: expected a text");
    }

    #[test]
    fn variables_of_the_template_keep_their_order() {
        let text = r#"{"messages": [], "chat_template_kwargs": {"z": 1, "a": true}, "add_generation_prompt": false}"#;
        let variables = of(text).unwrap().unwrap().template_kwargs;
        let names: Vec<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["z", "a", "add_generation_prompt"]);
        assert!(of(r#"{"messages": [], "chat_template_kwargs": 1}"#).is_err());
        assert!(of(r#"{"messages": [], "continue_final_message": true}"#).is_err());
    }

    #[test]
    fn the_most_tokens_have_two_names() {
        let of = |text: &str| max_tokens(&mut Fields::parse(text.to_owned().into()).unwrap());
        assert_eq!(of("{}").unwrap(), None);
        assert_eq!(of(r#"{"max_tokens": 3}"#).unwrap(), Some(3));
        assert_eq!(of(r#"{"max_tokens": 3, "max_completion_tokens": 3}"#).unwrap(), Some(3));
        assert!(of(r#"{"max_tokens": 3, "max_completion_tokens": 4}"#).is_err());
    }
}
