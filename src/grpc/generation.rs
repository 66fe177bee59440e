//! `GenerationService`. Both generating calls read the same [`Generation`]: one collects it, the other passes it on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use super::call::{CallContext, client_of};
use super::convert::{self, Collected};
use super::pb::generation_service_server::GenerationService;
use super::{pb, status};
use crate::admission::{Arrival, Gate, Generation, GenerationError, GenerationEvent};

/// Messages a stream may be ahead of its reader. What the engine makes meanwhile waits in the request's own channel.
const AHEAD: usize = 16;

/// What `GenerationService` is made of.
#[derive(Clone)]
pub struct Generator {
    gate: Arc<Gate>,
    stall_limit: Duration,
    max_message_bytes: usize,
}

impl Generator {
    /// A stream whose reader takes nothing for `stall_limit` is ended, so that it does not hold an adapter for ever. An
    /// answer that is one message has at most `max_message_bytes`.
    #[must_use]
    pub fn new(gate: Arc<Gate>, stall_limit: Duration, max_message_bytes: usize) -> Self {
        Self { gate, stall_limit, max_message_bytes }
    }

    /// Admit a request, with the limit of its answer where that is one message; also says whether its client wants token
    /// ids.
    async fn admit(
        &self,
        request: Request<pb::GenerateRequest>,
        max_answer_bytes: Option<u64>,
    ) -> Result<(Generation, bool), Status> {
        let context = request.extensions().get::<CallContext>().cloned();
        let mut request = convert::generate_request(request.into_inner()).map_err(|bad| status::of(&bad))?;
        request.max_answer_bytes = max_answer_bytes;
        let arrival = arrival(context, &mut request.request_id);
        let token_ids = request.input.options.token_ids || request.input.options.echo;
        let generation = self.gate.admit(request, arrival).await.map_err(|error| status::of(&error))?;
        Ok((generation, token_ids))
    }
}

/// Who asks, and by when; a request without an id has its call's.
pub(super) fn arrival(context: Option<CallContext>, request_id: &mut String) -> Arrival {
    context.map_or_else(Arrival::now, |context| {
        if request_id.is_empty() {
            *request_id = context.request_id;
        } else {
            Span::current().record("generation_id", &*request_id);
        }
        let CallContext { client, connection, arrived, deadline, .. } = context;
        Arrival { client, connection, arrived, deadline }
    })
}

/// A response that says which request it is of, where the message named one.
pub(super) fn respond<T>(message: T, request_id: &str) -> Response<T> {
    let mut response = Response::new(message);
    if let Ok(value) = MetadataValue::try_from(request_id) {
        response.metadata_mut().insert("x-request-id", value);
    }
    response
}

#[tonic::async_trait]
impl GenerationService for Generator {
    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<pb::GenerateResponse>, Status> {
        let (mut generation, token_ids) = self.admit(request, Some(self.max_message_bytes as u64)).await?;
        let request_id = generation.info().request_id.clone();
        let mut collected = Collected::new(generation.info(), token_ids);
        while let Some(event) = generation.next().await {
            match event.map_err(|error| status::of(&error))? {
                GenerationEvent::PromptLogprob(token) => collected.add_prompt_logprob(token),
                GenerationEvent::Pooled(_) => unreachable!("the gate has nothing pooled of what is generated"),
                GenerationEvent::Delta(delta) => collected.add(delta),
                GenerationEvent::Finished { usage, timings, receipt } => {
                    return Ok(respond(collected.finish(usage, timings, receipt.as_deref()), &request_id));
                }
            }
        }
        Err(status::internal_error("generation", &GenerationError::EngineGone))
    }

    type GenerateStreamStream = Streamed;

    async fn generate_stream(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (generation, token_ids) = self.admit(request, None).await?;
        let request_id = generation.info().request_id.clone();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let pump = Pump { generation, sender, token_ids, stall_limit: self.stall_limit };
        let pump = tokio::spawn(pump.run().in_current_span());
        Ok(respond(Streamed { receiver, pump, over: false }, &request_id))
    }

    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        let client = client_of(&request);
        let input = convert::tokenize_input(request.into_inner()).map_err(|bad| status::of(&bad))?;
        let (prompt, delta) = input;
        let prompt = self.gate.tokenize(prompt, &delta, client).await;
        let prompt = prompt.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::TokenizeResponse { token_ids: prompt.ids, text: prompt.text }))
    }

    async fn detokenize(
        &self,
        request: Request<pb::DetokenizeRequest>,
    ) -> Result<Response<pb::DetokenizeResponse>, Status> {
        let client = client_of(&request);
        let request = request.into_inner();
        let delta = convert::detokenize_delta(&request).map_err(|bad| status::of(&bad))?;
        let pb::DetokenizeRequest { token_ids, skip_special_tokens, .. } = request;
        let text = self.gate.detokenize(token_ids, skip_special_tokens, &delta, client).await;
        let text = text.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::DetokenizeResponse { text }))
    }
}

/// Moves a generation into a stream, in a task of its own: hyper does not poll a body whose client takes nothing, and
/// a generation that is not polled would keep its adapter on the device.
struct Pump {
    generation: Generation,
    sender: mpsc::Sender<Result<pb::GenerateStreamResponse, Status>>,
    token_ids: bool,
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
    /// Dropping the generation, in whatever way this ends, ends the request in the engine.
    async fn run(mut self) -> Ended {
        let mut message = Ok(convert::started(self.generation.info()));
        loop {
            match self.sender.send_timeout(message, self.stall_limit).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Ended::Gone,
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Ended::Stalled,
            }
            let event = tokio::select! {
                event = self.generation.next() => event,
                () = self.sender.closed() => return Ended::Gone,
            };
            message = match event {
                None => return Ended::Complete,
                Some(Ok(GenerationEvent::PromptLogprob(token))) => Ok(convert::prompt_logprobs(token)),
                Some(Ok(GenerationEvent::Pooled(_))) => {
                    unreachable!("the gate has nothing pooled of what is generated")
                }
                Some(Ok(GenerationEvent::Delta(delta))) => Ok(convert::delta(delta, self.token_ids)),
                Some(Ok(GenerationEvent::Finished { usage, timings, receipt })) => {
                    Ok(convert::finished(usage, timings, receipt.as_deref()))
                }
                Some(Err(error)) => Err(status::of(&error)),
            };
        }
    }
}

/// The messages of a pump, and its end: a stream that breaks off says why.
pub struct Streamed {
    receiver: mpsc::Receiver<Result<pb::GenerateStreamResponse, Status>>,
    pump: JoinHandle<Ended>,
    over: bool,
}

impl Stream for Streamed {
    type Item = Result<pb::GenerateStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(message) = ready!(self.receiver.poll_recv(cx)) {
            return Poll::Ready(Some(message));
        }
        let ended = ready!(Pin::new(&mut self.pump).poll(cx));
        self.over = true;
        Poll::Ready(match ended {
            Ok(Ended::Complete | Ended::Gone) => None,
            Ok(Ended::Stalled) => Some(Err(status::stalled())),
            Err(error) => Some(Err(status::internal_error("streaming", &error))),
        })
    }
}

#[cfg(test)]
mod tests;
