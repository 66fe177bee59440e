//! The frames of one upload.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tonic::{Status, Streaming};

use super::super::convert::BadMessage;
use super::super::{convert, pb, status};
use super::{Adapters, off_reactor};
use crate::adapters::{Begin, CHAT_TEMPLATE_FILE, CONFIG_FILE, Published, Staged, UploadHeader, UploadSession};
use crate::admission::AdmissionError;
use crate::telemetry::metrics::{Metrics, UploadOutcome};
use crate::types::ClientKey;
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

/// RAII: what the metrics are told of one upload. One that is dropped unfinished was interrupted.
struct Record {
    metrics: Metrics,
    bytes: u64,
    outcome: UploadOutcome,
    /// The client's stream ended in an error, or fell silent.
    broken: bool,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.record_upload(self.outcome, self.bytes);
    }
}

/// Take an upload from its first frame to its acknowledgement.
pub(super) async fn receive(
    adapters: &Adapters,
    client: ClientKey,
    frames: Streaming<pb::UploadAdapterRequest>,
) -> Result<pb::UploadAdapterResponse, Status> {
    let mut record =
        Record { metrics: adapters.metrics.clone(), bytes: 0, outcome: UploadOutcome::Interrupted, broken: false };
    let result = take(adapters, client, frames, &mut record).await;
    if result.is_err() && !record.broken {
        record.outcome = UploadOutcome::Rejected;
    }
    result
}

async fn take(
    adapters: &Adapters,
    client: ClientKey,
    mut frames: Streaming<pb::UploadAdapterRequest>,
    record: &mut Record,
) -> Result<pb::UploadAdapterResponse, Status> {
    let first = next(&mut frames, adapters.upload_idle).await.inspect_err(|_| record.broken = true)?;
    let header = match first {
        Some(Frame::Header(header)) => checked(adapters, header, client).await?,
        Some(Frame::Chunk(_)) => return Err(status::from_upload_stream(&BadUploadStream::ChunkBeforeHeader)),
        None => return Err(status::from_upload_stream(&BadUploadStream::Empty)),
    };
    let begin = adapters.blocking(move |registry| registry.begin_upload(header, Instant::now())).await?;
    let mut session = match begin {
        Begin::Open(session) => session,
        Begin::Finished(published) => {
            record.outcome = UploadOutcome::Unchanged;
            return Ok(response(&published));
        }
    };
    while let Some(frame) = next(&mut frames, adapters.upload_idle).await.inspect_err(|_| record.broken = true)? {
        let Frame::Chunk(chunk) = frame else {
            return Err(status::from_upload_stream(&BadUploadStream::SecondHeader));
        };
        let bytes = chunk.data.len() as u64;
        session = write(adapters, session, chunk).await?;
        record.bytes += bytes;
    }
    let staged =
        adapters.in_background(move || session.finish()).await?.map_err(|error| status::from_adapter(&error))?;
    accept(adapters, client, staged, record).await
}

/// All that can be said from the header alone, with what of the files it carries: a refusal that no weights would change
/// comes before they are sent.
async fn checked(
    adapters: &Adapters,
    mut message: pb::UploadHeader,
    client: ClientKey,
) -> Result<UploadHeader, Status> {
    let (config, template) = (std::mem::take(&mut message.config), std::mem::take(&mut message.chat_template));
    let header = convert::upload_header(message, client).map_err(|bad| status::from_bad_message(&bad))?;
    if config.is_empty() && template.is_empty() {
        return Ok(header);
    }
    header.validate(adapters.registry.uploads().limits()).map_err(|error| status::from_adapter(&error))?;
    let hall = Arc::clone(&adapters.hall);
    let check = move || {
        let undeclared = |path, content: &[u8]| !content.is_empty() && !convert::declares(&header, path, content);
        if undeclared(CONFIG_FILE, &config) {
            return Err(status::from_bad_message(&BadMessage::Config));
        }
        if undeclared(CHAT_TEMPLATE_FILE, &template) {
            return Err(status::from_bad_message(&BadMessage::ChatTemplate));
        }
        if !config.is_empty() {
            hall.check_config(&config).map_err(|failure| status::load_failed(failure.as_ref()))?;
        }
        Ok((header, template))
    };
    // A few at a time: a config takes many times its size while it is read.
    let (header, template) = adapters.in_background(check).await??;
    if !template.is_empty() {
        check_template(adapters, template, client).await?;
    }
    Ok(header)
}

async fn check_template(adapters: &Adapters, template: Vec<u8>, client: ClientKey) -> Result<(), Status> {
    let checked = adapters.templates.check_in_turn(template, client, adapters.hall.as_ref()).await;
    checked.map_err(|error| match error {
        AdmissionError::Chat { source, .. } => status::load_failed(&source),
        error => status::from_admission(&error),
    })
}

async fn next(frames: &mut Streaming<pb::UploadAdapterRequest>, idle: Duration) -> Result<Option<Frame>, Status> {
    let message = tokio::time::timeout(idle, frames.message())
        .await
        .map_err(|_| status::from_upload_stream(&BadUploadStream::Idle { limit: idle }))?
        .map_err(status::of_message_stream)?;
    match message {
        Some(pb::UploadAdapterRequest { frame: Some(frame) }) => Ok(Some(frame)),
        Some(pb::UploadAdapterRequest { frame: None }) => Err(status::from_upload_stream(&BadUploadStream::NoFrame)),
        None => Ok(None),
    }
}

/// Write a chunk and give the session back. A refused chunk ends the stream; a resumable upload stays open, unless what
/// has come of it shows that it can never be accepted.
async fn write(
    adapters: &Adapters,
    mut session: UploadSession,
    chunk: pb::UploadChunk,
) -> Result<UploadSession, Status> {
    let hall = Arc::clone(&adapters.hall);
    adapters
        .in_background(move || {
            let pb::UploadChunk { file_index, offset, data } = chunk;
            let written = session.write(file_index as usize, offset, &data, Instant::now());
            written.map_err(|error| status::from_adapter(&error))?;
            if let Some(head) = session.head()
                && let Err(failure) = hall.check_head(&head)
            {
                session.refuse();
                return Err(status::load_failed(failure.as_ref()));
            }
            Ok(session)
        })
        .await?
}

/// Every byte is there and is the one declared: compile it, and give it its name.
async fn accept(
    adapters: &Adapters,
    client: ClientKey,
    staged: Staged,
    record: &mut Record,
) -> Result<pb::UploadAdapterResponse, Status> {
    let read = off_reactor(move || staged.chat_template().map(|template| (staged, template))).await?;
    let (staged, template) = read.map_err(|error| status::from_adapter(&error))?;
    if let Some(template) = template {
        check_template(adapters, template, client).await?;
    }
    let turn = Arc::clone(&adapters.checks).acquire_owned().await;
    let turn = turn.map_err(|closed| status::internal_error("upload", &closed))?;
    let hall = Arc::clone(&adapters.hall);
    let check = off_reactor(move || {
        // The turn goes with the work and not with the client, who may leave before it is done.
        let _turn = turn;
        hall.check(&staged).map(|facts| (staged, facts))
    })
    .await?;
    let (staged, facts) = check.map_err(|failure| status::load_failed(failure.as_ref()))?;
    if staged.validate_only() {
        record.outcome = UploadOutcome::Validated;
        let exists = adapters.registry.get(staged.name()).is_ok();
        return Ok(pb::UploadAdapterResponse { adapter: Some(convert::preview(&staged, &facts)), created: !exists });
    }
    let published = adapters.blocking(move |registry| registry.publish(staged, facts, SystemTime::now())).await?;
    record.outcome = match (published.created, published.replaced) {
        (true, _) => UploadOutcome::Created,
        (false, Some(_)) => UploadOutcome::Replaced,
        (false, None) => UploadOutcome::Unchanged,
    };
    let (name, pinned) = (&published.adapter.name, published.adapter.pinned);
    if pinned && let Err(error) = adapters.load(name, client).await {
        // The upload is stored and stays so; what is not on the device is not pinned there.
        tracing::warn!(%name, %error, "an adapter could not be loaded and is not pinned");
        let name = name.clone();
        adapters.blocking(move |registry| registry.unpin(&name)).await?;
    }
    Ok(adapters.describe(name).map_or_else(
        // Deleted or replaced since.
        |_| response(&published),
        |adapter| pb::UploadAdapterResponse { adapter: Some(adapter), created: published.created },
    ))
}

fn response(published: &Published) -> pb::UploadAdapterResponse {
    pb::UploadAdapterResponse { adapter: Some(convert::published(published)), created: published.created }
}

#[cfg(test)]
mod tests;
