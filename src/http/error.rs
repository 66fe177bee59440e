//! The one place where a [`Problem`] becomes an answer of HTTP, in the shape that OpenAI's API gives errors.
//!
//! Every match here is exhaustive, so that a new class or subject does not compile before somebody has chosen what it is
//! in HTTP.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::types::{Class, Problem, Subject, ToProblem};

/// Bytes of one text in an error.
const MAX_TEXT: usize = 1024;

/// Paths of fields as the gate names them, and where those are in the requests of HTTP, which are flat.
const PATHS: [(&str, &str); 8] = [
    ("sampling.", ""),
    ("stopping.", ""),
    ("options.", ""),
    ("chat.template_kwargs", "chat_template_kwargs"),
    ("chat.", ""),
    ("token_ids.ids", "prompt"),
    ("token_ids", "tokens"),
    ("inputs", "input"),
];

/// What an error is to the client; the log gets what it is to the operator.
pub(super) fn of(error: &dyn ToProblem) -> Response<Body> {
    of_problem(error.to_problem())
}

/// As [`of`], of a problem that no error stands for.
pub(super) fn of_problem(problem: Problem) -> Response<Body> {
    let (status, retry) = (status(problem.class), problem.retry);
    let mut response = Response::new(Body::from(document(problem).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(delay) = retry {
        // Whole seconds: clients that retry at once would be refused once more.
        headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
    }
    response
}

/// `{"error": …}`.
pub(super) fn document(problem: Problem) -> Value {
    let Problem { class, reason, message, subjects, numbers: _, retry: _, report } = problem;
    if let Some(report) = report {
        tracing::error!(reason, error = report.error, "{}", report.what);
    }
    let code = code(reason, class, &subjects);
    let param = subjects.into_iter().find_map(parameter);
    json!({ "error": { "message": clipped(message), "type": kind(class), "param": param, "code": code } })
}

fn status(class: Class) -> StatusCode {
    match class {
        Class::Invalid | Class::OutOfRange | Class::Unmet => StatusCode::BAD_REQUEST,
        Class::NotFound => StatusCode::NOT_FOUND,
        Class::AlreadyExists | Class::Conflict => StatusCode::CONFLICT,
        Class::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Class::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Class::Exhausted => StatusCode::TOO_MANY_REQUESTS,
        Class::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Class::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Class::DataLoss | Class::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn kind(class: Class) -> &'static str {
    match class {
        Class::Invalid
        | Class::OutOfRange
        | Class::Unmet
        | Class::NotFound
        | Class::AlreadyExists
        | Class::Conflict
        | Class::TooLarge
        | Class::TooSlow
        | Class::Unsupported => "invalid_request_error",
        Class::Exhausted => "rate_limit_error",
        Class::Unavailable | Class::DeadlineExceeded | Class::DataLoss | Class::Internal => "server_error",
    }
}

/// Reasons are the server's own, but for the one that every client of OpenAI's API knows: an adapter is a model to it.
fn code(reason: &str, class: Class, subjects: &[Subject]) -> String {
    let is_adapter = subjects.iter().any(|subject| matches!(subject, Subject::Adapter(_)));
    if class == Class::NotFound && is_adapter { "model_not_found".to_owned() } else { reason.to_ascii_lowercase() }
}

/// The field of the request that a subject names.
fn parameter(subject: Subject) -> Option<String> {
    match subject {
        Subject::Field(field) => {
            let here = |(path, here): &(&str, &str)| Some(format!("{here}{}", field.strip_prefix(path)?));
            Some(clipped(PATHS.iter().find_map(here).unwrap_or(field)))
        }
        Subject::Adapter(_) => Some("model".to_owned()),
        Subject::Upload(_) | Subject::Condition { .. } | Subject::Quota(_) => None,
    }
}

fn clipped(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_names_the_field_as_the_client_wrote_it() {
        let problem = Problem::invalid("INVALID_FIELD", "sampling.top_p", "top_p is 2");
        let error = &document(problem)["error"];
        assert_eq!(error["param"], "top_p");
        let words = (error["type"].as_str(), error["code"].as_str());
        assert_eq!(words, (Some("invalid_request_error"), Some("invalid_field")));
        let param = |field: &str| parameter(Subject::Field(field.to_owned()));
        assert_eq!(param("token_ids.ids[3]").as_deref(), Some("prompt[3]"));
        assert_eq!(param("chat.messages[0].role").as_deref(), Some("messages[0].role"));
        assert_eq!(param("n").as_deref(), Some("n"));
    }

    #[test]
    fn an_adapter_that_is_not_there_is_a_model_that_is_not_there() {
        let problem = Problem::new(Class::NotFound, "ADAPTER_NOT_FOUND", "no x").about(Subject::Adapter("x".into()));
        assert_eq!(of_problem(problem.clone()).status(), StatusCode::NOT_FOUND);
        let error = &document(problem)["error"];
        assert_eq!((error["param"].as_str(), error["code"].as_str()), (Some("model"), Some("model_not_found")));
    }

    #[test]
    fn what_may_be_tried_again_says_when() {
        let problem = Problem::new(Class::Exhausted, "QUEUE_FULL", "full").retry_after(Duration::from_millis(250));
        let response = of_problem(problem);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
