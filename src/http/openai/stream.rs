//! Answers as server-sent events. A task of its own reads the engine: hyper does not poll a body whose client takes
//! nothing, and a generation that is not polled would keep its adapter on the device.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame as BodyFrame;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::super::call::EVENT_STREAM;
use super::super::error;
use super::asked::Kind;
use super::frame::{Frame, served_by, usage};
use super::pieces::{Finish, Opening, Piece};
use super::running::Running;
use crate::types::{Class, Problem, ToProblem};

/// Events a stream may be ahead of its reader. What the engine makes meanwhile waits in the request's own channel.
const AHEAD: usize = 16;

/// A stream that has nothing to say says so this often: proxies close those that are silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A response whose body is what `running` says. A reader who takes nothing for `stall_limit` is left.
pub(super) fn response(running: Running, frame: Frame, include_usage: bool, stall_limit: Duration) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let events = Events { roles: vec![false; running.choices()], frame, include_usage, first: true };
    let pump = tokio::spawn(Pump { running, events, sender, stall_limit }.run().in_current_span());
    let mut response = Response::new(Body::new(Streamed { receiver, pump, over: false }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn event(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

/// Makes events of pieces.
struct Events {
    frame: Frame,
    include_usage: bool,
    /// Which choices of a chat have said whose turn it is.
    roles: Vec<bool>,
    /// None was made.
    first: bool,
}

impl Events {
    fn piece(&mut self, piece: Piece, running: &Running) -> Bytes {
        let logprobs = if piece.tokens.is_empty() { Value::Null } else { piece.logprobs(&self.frame.shape) };
        let Piece { index, text, tokens: _, token_ids, opening, finish } = piece;
        let mut choice = Map::new();
        choice.insert("index".to_owned(), index.into());
        match self.frame.shape.kind {
            Kind::Chat => {
                let mut delta = Map::new();
                if let Some(said) = self.roles.get_mut(index as usize).filter(|said| !**said) {
                    *said = true;
                    delta.insert("role".to_owned(), "assistant".into());
                }
                delta.insert("content".to_owned(), text.into());
                choice.insert("delta".to_owned(), delta.into());
            }
            Kind::Text => drop(choice.insert("text".to_owned(), text.into())),
        }
        choice.insert("logprobs".to_owned(), logprobs);
        let (reason, stop_reason) = finish.map_or_else(Default::default, Finish::into_values);
        choice.insert("finish_reason".to_owned(), reason);
        choice.insert("stop_reason".to_owned(), stop_reason);
        if self.frame.shape.token_ids {
            choice.insert("token_ids".to_owned(), token_ids.into());
        }
        if let Some(Opening { prompt_ids: Some(ids), .. }) = opening {
            choice.insert("prompt_token_ids".to_owned(), ids.into());
        }
        let mut chunk = self.around(vec![choice.into()]);
        if std::mem::take(&mut self.first)
            && let (Value::Object(fields), Some(info)) = (&mut chunk, running.info())
        {
            fields.extend(served_by(info));
        }
        event(&chunk)
    }

    /// What comes behind the last piece.
    fn end(&self, running: &Running) -> Bytes {
        let mut end = Vec::new();
        let receipt = running.receipt();
        if self.include_usage || receipt.is_some() {
            let mut last = self.around(Vec::new());
            if let Value::Object(fields) = &mut last {
                if self.include_usage {
                    fields.insert("usage".to_owned(), usage(running.usage()));
                }
                fields.extend(receipt.map(|receipt| ("receipt".to_owned(), receipt.into())));
            }
            end.extend(event(&last));
        }
        end.extend(b"data: [DONE]\n\n");
        end.into()
    }

    fn around(&self, choices: Vec<Value>) -> Value {
        let object = match self.frame.shape.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        };
        let mut chunk = self.frame.around(object, choices);
        if let (true, Value::Object(fields)) = (self.include_usage, &mut chunk) {
            fields.insert("usage".to_owned(), json!(null));
        }
        chunk
    }
}

struct Pump {
    running: Running,
    events: Events,
    sender: mpsc::Sender<Bytes>,
    stall_limit: Duration,
}

/// How a pump ended.
enum Ended {
    /// Everything was said.
    Complete,
    /// The client is gone.
    Gone,
    /// The client took nothing for too long.
    Stalled,
}

impl Pump {
    /// Dropping the generations, in whatever way this ends, ends them in the engine.
    async fn run(mut self) -> Ended {
        loop {
            let piece = tokio::select! {
                piece = self.running.next() => Some(piece),
                () = self.sender.closed() => return Ended::Gone,
                () = tokio::time::sleep(KEEP_ALIVE) => None,
            };
            let (said, is_last) = match piece {
                None => (Bytes::from_static(b": keep-alive\n\n"), false),
                Some(Some(Ok(piece))) if piece.is_silent() => continue,
                Some(Some(Ok(piece))) => (self.events.piece(piece, &self.running), false),
                Some(Some(Err(error))) => (event(&error::document(error.to_problem())), true),
                Some(None) => (self.events.end(&self.running), true),
            };
            match self.sender.send_timeout(said, self.stall_limit).await {
                Ok(()) if is_last => return Ended::Complete,
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ended::Gone,
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Ended::Stalled,
            }
        }
    }
}

/// The events of a pump, and its end: a stream that breaks off says why.
struct Streamed {
    receiver: mpsc::Receiver<Bytes>,
    pump: JoinHandle<Ended>,
    over: bool,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(said) = ready!(self.receiver.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(BodyFrame::data(said))));
        }
        let ended = ready!(Pin::new(&mut self.pump).poll(cx));
        self.over = true;
        let problem = match ended {
            Ok(Ended::Complete | Ended::Gone) => return Poll::Ready(None),
            Ok(Ended::Stalled) => {
                Problem::new(Class::TooSlow, "STREAM_STALLED", "the stream was not read for too long")
            }
            Err(error) => Problem::internal("streaming", &error),
        };
        Poll::Ready(Some(Ok(BodyFrame::data(event(&error::document(problem))))))
    }
}
