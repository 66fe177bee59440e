//! A conversation in a file, as chat APIs have it.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::exit::{CliError, UsageError};
use crate::files;
use crate::grpc::pb;

/// Most bytes of a file with a conversation; what a server takes in one message is less.
const MAX_BYTES: u64 = 256 << 20;

/// One turn. Strict, so that nothing that was meant is left out in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    content: String,
}

/// Read the conversation in a file, or from standard input for `-`. Blocks.
///
/// # Errors
/// The file, or [`UsageError::Messages`].
pub(super) fn read(path: &Path) -> Result<Vec<pb::ChatMessage>, CliError> {
    let stdin = path == Path::new("-");
    let shown = || if stdin { "standard input".to_owned() } else { path.display().to_string() };
    let read = if stdin {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        files::read(path, MAX_BYTES)
    };
    let bytes = read.map_err(|source| CliError::File { action: "reading", path: shown(), source })?;
    parse(&bytes).map_err(|reason| UsageError::Messages { path: shown(), reason }.into())
}

fn parse(bytes: &[u8]) -> Result<Vec<pb::ChatMessage>, String> {
    // The messages alone, or the body of a request that has them.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let messages = match value {
        serde_json::Value::Object(mut body) => body.remove("messages").ok_or("it has no \"messages\"")?,
        other => other,
    };
    let turns: Vec<Turn> = serde_json::from_value(messages).map_err(|error| error.to_string())?;
    let message = |Turn { role, content }| pb::ChatMessage { role, content };
    Ok(turns.into_iter().map(message).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_is_left_out() {
        let turns = br#"[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]"#;
        let read = parse(turns).unwrap();
        assert_eq!((read.len(), read[1].role.as_str(), read[1].content.as_str()), (2, "user", "hi"));
        let body = [br#"{"model": "x", "messages": "#.as_slice(), turns, b"}"].concat();
        assert_eq!(parse(&body).unwrap(), read);
        for (bad, said) in [
            (r#"{"model": "x"}"#, "no \"messages\""),
            (r#"[{"role": "user"}]"#, "missing field `content`"),
            (r#"[{"role": "user", "content": "x", "images": []}]"#, "unknown field `images`"),
            ("hello", "expected value"),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
