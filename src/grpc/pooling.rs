//! `PoolingService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::call::CallContext;
use super::generation::{arrival, respond};
use super::pb::pooling_service_server::PoolingService;
use super::{convert, pb, status};
use crate::admission::{Gate, GenerationInfo, PoolAnswer, PoolRequest};

/// What `PoolingService` is made of.
#[derive(Clone)]
pub struct Pooler {
    gate: Arc<Gate>,
    max_message_bytes: usize,
}

impl Pooler {
    /// An answer has at most `max_message_bytes`.
    #[must_use]
    pub fn new(gate: Arc<Gate>, max_message_bytes: usize) -> Self {
        Self { gate, max_message_bytes }
    }

    async fn pool(
        &self,
        context: Option<CallContext>,
        mut request: PoolRequest,
    ) -> Result<(GenerationInfo, PoolAnswer), Status> {
        request.max_answer_bytes = self.max_message_bytes as u64;
        let arrival = arrival(context, &mut request.request_id);
        let reading = self.gate.pool(request, arrival).await.map_err(|error| status::of(&error))?;
        let info = reading.info().clone();
        let answer = reading.finish().await.map_err(|error| status::of(&error))?;
        Ok((info, answer))
    }
}

#[tonic::async_trait]
impl PoolingService for Pooler {
    async fn embed(&self, request: Request<pb::EmbedRequest>) -> Result<Response<pb::EmbedResponse>, Status> {
        let context = request.extensions().get::<CallContext>().cloned();
        let request = convert::embed_request(request.into_inner()).map_err(|bad| status::of(&bad))?;
        let (info, answer) = self.pool(context, request).await?;
        Ok(respond(convert::embed_response(&info, answer), &info.request_id))
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let context = request.extensions().get::<CallContext>().cloned();
        let request = convert::score_request(request.into_inner()).map_err(|bad| status::of(&bad))?;
        let (info, answer) = self.pool(context, request).await?;
        Ok(respond(convert::score_response(&info, answer), &info.request_id))
    }
}
