//! The frames of one upload, as [`Intake`](crate::admission::Intake) takes them.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Status, Streaming};

use super::super::{convert, pb, status};
use super::describe::describe;
use crate::adapters::{AdapterRegistry, Published, UploadHeader};
use crate::admission::{Early, Intake, Taken, UploadArrival, UploadBegun};
use crate::types::{Class, ClientKey, Problem, ToProblem};
use pb::upload_adapter_request::Frame;

/// What a client can do wrong in the order of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::grpc) enum BadUploadStream {
    /// Nothing came.
    #[error("the upload has no header")]
    Empty,
    /// A message without a frame.
    #[error("a message of the upload has neither header nor chunk")]
    NoFrame,
    /// A chunk came first.
    #[error("the first frame of an upload is its header")]
    ChunkBeforeHeader,
    /// A header came again.
    #[error("an upload has one header")]
    SecondHeader,
    /// Nothing came for too long.
    #[error("nothing came for {limit:?}")]
    Idle {
        /// `--upload-idle-timeout`.
        limit: Duration,
    },
}

impl ToProblem for BadUploadStream {
    fn to_problem(&self) -> Problem {
        match self {
            Self::Empty | Self::ChunkBeforeHeader => Problem::invalid("MISSING_HEADER", "header", self),
            Self::NoFrame => Problem::invalid("INVALID_FIELD", "frame", self),
            Self::SecondHeader => Problem::invalid("SECOND_HEADER", "header", self),
            Self::Idle { limit } => {
                Problem::new(Class::TooSlow, "UPLOAD_IDLE", self).with("limit_ms", limit.as_millis())
            }
        }
    }
}

/// What an upload needs of the service.
pub(super) struct Upload<'a> {
    pub(super) intake: &'a Arc<Intake>,
    pub(super) registry: &'a AdapterRegistry,
    /// Longest silence between two frames.
    pub(super) idle: Duration,
    pub(super) client: ClientKey,
}

impl Upload<'_> {
    /// Take an upload from its first frame to its acknowledgement.
    pub(super) async fn receive(
        self,
        mut frames: Streaming<pb::UploadAdapterRequest>,
    ) -> Result<pb::UploadAdapterResponse, Status> {
        let Self { intake, registry, idle, client } = self;
        let arrival = intake.arrival(client);
        let first = next(&mut frames, idle).await?;
        let mut upload = match begin(arrival, first, client).await? {
            UploadBegun::Open(upload) => upload,
            UploadBegun::Finished(published) => return Ok(response(&published)),
        };
        while let Some(frame) = next(&mut frames, idle).await? {
            let Frame::Chunk(pb::UploadChunk { file_index, offset, data }) = frame else {
                upload.refuse();
                return Err(status::of(&BadUploadStream::SecondHeader));
            };
            upload = upload.write(file_index as usize, offset, data).await.map_err(|error| status::of(&error))?;
        }
        Ok(match upload.finish().await.map_err(|error| status::of(&error))? {
            Taken::Valid(valid) => {
                let adapter = convert::preview(&valid.staged, &valid.facts);
                pb::UploadAdapterResponse { adapter: Some(adapter), created: !valid.exists }
            }
            Taken::Published(published) => describe(registry, &published.adapter.name).map_or_else(
                // Deleted or replaced since.
                |_| response(&published),
                |adapter| pb::UploadAdapterResponse { adapter: Some(adapter), created: published.created },
            ),
        })
    }
}

async fn begin(arrival: UploadArrival, first: Option<Frame>, client: ClientKey) -> Result<UploadBegun, Status> {
    let refused = match first {
        Some(Frame::Header(message)) => match opening(message, client) {
            Ok((header, early)) => {
                return arrival.begin(header, early).await.map_err(|error| status::of(&error));
            }
            Err(bad) => status::of(&bad),
        },
        Some(Frame::Chunk(_)) => status::of(&BadUploadStream::ChunkBeforeHeader),
        None => status::of(&BadUploadStream::Empty),
    };
    arrival.refuse();
    Err(refused)
}

fn opening(mut message: pb::UploadHeader, client: ClientKey) -> Result<(UploadHeader, Early), convert::BadMessage> {
    let early = Early {
        config: std::mem::take(&mut message.config),
        chat_template: std::mem::take(&mut message.chat_template),
    };
    Ok((convert::upload_header(message, client)?, early))
}

/// The next frame; an error is the end of the client's stream, in whatever way it broke.
async fn next(frames: &mut Streaming<pb::UploadAdapterRequest>, idle: Duration) -> Result<Option<Frame>, Status> {
    let message = tokio::time::timeout(idle, frames.message())
        .await
        .map_err(|_| status::of(&BadUploadStream::Idle { limit: idle }))?
        .map_err(status::of_message_stream)?;
    match message {
        Some(pb::UploadAdapterRequest { frame: Some(frame) }) => Ok(Some(frame)),
        Some(pb::UploadAdapterRequest { frame: None }) => Err(status::of(&BadUploadStream::NoFrame)),
        None => Ok(None),
    }
}

fn response(published: &Published) -> pb::UploadAdapterResponse {
    pb::UploadAdapterResponse { adapter: Some(convert::published(published)), created: published.created }
}

#[cfg(test)]
mod tests;
