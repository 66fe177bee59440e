//! `polydelta adapter upload`: a folder saved by peft goes to the server in chunks, from where it last broke off.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::bring::{BringError, Saved, bring};
use super::client::{connect, request};
use super::exit::CliError;
use super::interrupt::unless_interrupted;
use crate::adapters::{CHAT_TEMPLATE_FILE, CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::config::{ClientArgs, Environment, Terminal, UploadArgs};
use crate::files;
use crate::grpc::pb;
use crate::telemetry::{Progress, Spinner};
use crate::text::SavedTokens;
use pb::adapter_service_client::AdapterServiceClient;
use pb::upload_adapter_request::Frame;

/// The way out for an adapter with a chat template that is not taken.
const WITHOUT_TEMPLATE: &str = "its chat template is not taken; --no-chat-template uploads it without";
/// The same for the tokens of its tokenizer.
const WITHOUT_TOKENIZER: &str = "its tokenizer is not taken; --no-tokenizer uploads it without";
const CHUNK: usize = 512 * 1024;
/// Most bytes of a config that goes with the header.
const MAX_CONFIG: u64 = 1 << 20;
/// How often an upload goes on after the connection broke.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Bring an adapter, upload it and return what the server says of it.
///
/// # Errors
/// The folder or the hub, the connection, the server's refusal, Ctrl-C.
pub(super) async fn run(
    args: &UploadArgs,
    environment: &Environment,
    terminal: Terminal,
) -> Result<Option<pb::Adapter>, CliError> {
    let (source, environment) = (args.source.clone(), environment.clone());
    let saved = Saved { chat_template: !args.no_chat_template, tokens: !args.no_tokenizer };
    let brought = blocking(move || bring(&source, saved, &environment)).await?.inspect_err(|error| match error {
        BringError::ChatTemplate(_) => tracing::error!("{WITHOUT_TEMPLATE}"),
        BringError::Tokens(_) => tracing::error!("{WITHOUT_TOKENIZER}"),
        _ => {}
    })?;
    brought.notes().iter().for_each(|note| tracing::info!("{note}"));
    let template = brought.chat_template().map(<[u8]>::to_vec);
    let tokens = brought.saved_tokens().map(SavedTokens::to_file).transpose().map_err(BringError::from)?;
    let folder = brought.dir().to_owned();
    let mut spinner = Spinner::start(&format!("reading {}", folder.display()), terminal.progress);
    let (files, config) = blocking(move || digest_all(&folder, template, tokens)).await??;
    spinner.clear();
    let upload_id = args.upload_id.clone().unwrap_or_else(random_id);
    let header = header(args, &files, config, &upload_id);
    unless_interrupted(attempts(args, header, &files, terminal)).await.inspect_err(|error| {
        if broke_off(error) {
            tracing::error!("the upload broke off; to go on: --upload-id {upload_id}");
        }
        match refusal(error).as_deref() {
            Some("INVALID_CHAT_TEMPLATE") => tracing::error!("{WITHOUT_TEMPLATE}"),
            Some("INVALID_TOKENIZER") => tracing::error!("{WITHOUT_TOKENIZER}"),
            _ => {}
        }
    })
}

/// The server's reason.
fn refusal(error: &CliError) -> Option<String> {
    let CliError::Status(status) = error else { return None };
    status.get_details_error_info().map(|info| info.reason)
}

async fn attempts(
    args: &UploadArgs,
    header: pb::UploadHeader,
    files: &[LocalFile],
    terminal: Terminal,
) -> Result<Option<pb::Adapter>, CliError> {
    let mut service = AdapterServiceClient::new(connect(&args.client).await?);
    let mut attempt = 1;
    loop {
        match send(&args.client, &mut service, header.clone(), files, terminal).await {
            Ok(adapter) => return Ok(adapter),
            Err(CliError::Status(status)) if status.code() == Code::Unavailable && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether an upload ended on its way, so that sending the rest of it can help; a refusal stays one.
fn broke_off(error: &CliError) -> bool {
    let status = match error {
        CliError::Status(status) => status,
        CliError::Interrupted | CliError::TimedOut => return true,
        _ => return false,
    };
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => true,
        // The server waited too long for the next piece, or another stream goes on with it.
        Code::Aborted => status.get_details_error_info().is_some_and(|info| info.reason.starts_with("UPLOAD_")),
        _ => false,
    }
}

/// Where the content of a file is.
#[derive(Clone)]
enum Content {
    File(PathBuf),
    /// That goes by this name.
    Bytes(&'static str, Bytes),
}

impl Content {
    /// From `offset` on. Blocks.
    fn read_from(&self, offset: u64) -> Result<Box<dyn Read>, CliError> {
        match self {
            Self::File(path) => {
                let mut file = files::open(path).map_err(|source| file_error("opening", path, source))?;
                file.seek(SeekFrom::Start(offset)).map_err(|source| file_error("reading", path, source))?;
                Ok(Box::new(file))
            }
            Self::Bytes(_, bytes) => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(Box::new(io::Cursor::new(bytes.slice(offset..))))
            }
        }
    }

    /// For people.
    fn shown(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Bytes(name, _) => Path::new(name),
        }
    }
}

struct LocalFile {
    content: Content,
    name: &'static str,
    size: u64,
    sha256: String,
}

/// The files with their digests, and the config where the header can carry it. What is small goes first: a mistake in it
/// is told before the weights are sent.
fn digest_all(
    folder: &Path,
    template: Option<Vec<u8>>,
    tokens: Option<Vec<u8>>,
) -> Result<(Vec<LocalFile>, Vec<u8>), CliError> {
    let in_folder = |name| digest(name, Content::File(folder.join(name)));
    let beside = [(CHAT_TEMPLATE_FILE, template), (TOKENIZER_FILE, tokens)];
    let beside = beside.into_iter().filter_map(|(name, content)| Some((name, content?)));
    let beside = beside.map(|(name, content)| digest(name, Content::Bytes(name, content.into())));
    let config = in_folder(CONFIG_FILE);
    let files: Vec<_> =
        [config].into_iter().chain(beside).chain([in_folder(WEIGHTS_FILE)]).collect::<Result<_, _>>()?;
    let path = folder.join(CONFIG_FILE);
    let config = match files.first() {
        Some(file) if file.size <= MAX_CONFIG => {
            files::read(&path, MAX_CONFIG).map_err(|source| file_error("reading", &path, source))?
        }
        _ => Vec::new(),
    };
    Ok((files, config))
}

fn digest(name: &'static str, content: Content) -> Result<LocalFile, CliError> {
    let mut hasher = Sha256::new();
    let read = io::copy(&mut content.read_from(0)?, &mut hasher);
    let size = read.map_err(|source| file_error("reading", content.shown(), source))?;
    let sha256 = hex::encode(hasher.finalize());
    Ok(LocalFile { content, name, size, sha256 })
}

fn random_id() -> String {
    // RandomState is seeded by the operating system.
    let random = || RandomState::new().hash_one(std::process::id());
    format!("cli-{:016x}{:016x}", random(), random())
}

fn header(args: &UploadArgs, files: &[LocalFile], config: Vec<u8>, upload_id: &str) -> pb::UploadHeader {
    let file =
        |file: &LocalFile| pb::UploadFile { path: file.name.to_owned(), size: file.size, sha256: file.sha256.clone() };
    let template = files.iter().find_map(|file| match &file.content {
        Content::Bytes(CHAT_TEMPLATE_FILE, bytes) => Some(bytes.to_vec()),
        Content::Bytes(..) | Content::File(_) => None,
    });
    pb::UploadHeader {
        name: args.name.to_string(),
        files: files.iter().map(file).collect(),
        upload_id: upload_id.to_owned(),
        expected_version: args.expected_version.clone(),
        validate_only: args.validate_only,
        pin: args.pin,
        config,
        chat_template: template.unwrap_or_default(),
    }
}

/// Send what the server does not have yet.
async fn send(
    client: &ClientArgs,
    service: &mut AdapterServiceClient<Channel>,
    header: pb::UploadHeader,
    files: &[LocalFile],
    terminal: Terminal,
) -> Result<Option<pb::Adapter>, CliError> {
    let offsets = committed(client, service, &header.upload_id, files.len()).await?;
    let missing = files.iter().map(|file| file.size).sum::<u64>().saturating_sub(offsets.iter().sum());
    let label = format!("uploading {}", header.name);
    let progress = Progress::bytes(&label, missing, terminal.progress);
    let (frames, receiver) = mpsc::channel(2);
    let parts: Vec<_> = files.iter().map(|file| file.content.clone()).zip(offsets).collect();
    let reader = tokio::task::spawn_blocking(move || read_frames(header, parts, &frames, progress));
    let response = service.upload_adapter(request(client, ReceiverStream::new(receiver))).await;
    // The server's refusal says more than that it stopped listening.
    let response = response?.into_inner();
    let sent = reader.await.map_err(|source| file_error("reading", Path::new("the adapter"), source.into()))??;
    sent.finish();
    Ok(response.adapter)
}

/// How much of each file the server has.
async fn committed(
    client: &ClientArgs,
    service: &mut AdapterServiceClient<Channel>,
    upload_id: &str,
    files: usize,
) -> Result<Vec<u64>, CliError> {
    let message = pb::GetUploadRequest { upload_id: upload_id.to_owned() };
    let upload = match service.get_upload(request(client, message)).await {
        Ok(response) => response.into_inner().upload.unwrap_or_default(),
        Err(status) if status.code() == Code::NotFound => pb::Upload::default(),
        Err(status) => return Err(status.into()),
    };
    let mut offsets: Vec<_> = upload.files.iter().map(|file| file.committed_size).collect();
    offsets.resize(files, 0);
    Ok(offsets)
}

/// Blocks. Ends early where nobody listens any more: the call then says why.
fn read_frames(
    header: pb::UploadHeader,
    parts: Vec<(Content, u64)>,
    frames: &mpsc::Sender<pb::UploadAdapterRequest>,
    mut progress: Progress,
) -> Result<Progress, CliError> {
    let send = |frame| frames.blocking_send(pb::UploadAdapterRequest { frame: Some(frame) }).is_ok();
    if !send(Frame::Header(header)) {
        return Ok(progress);
    }
    for (file_index, (content, mut offset)) in parts.into_iter().enumerate() {
        let mut file = content.read_from(offset)?;
        loop {
            let mut data = Vec::with_capacity(CHUNK);
            let read = (&mut file).take(CHUNK as u64).read_to_end(&mut data);
            let length = read.map_err(|source| file_error("reading", content.shown(), source))?;
            if length == 0 {
                break;
            }
            let chunk = pb::UploadChunk { file_index: file_index as u32, offset, data: Bytes::from(data) };
            if !send(Frame::Chunk(chunk)) {
                return Ok(progress);
            }
            offset += length as u64;
            progress.advance(length as u64);
        }
    }
    Ok(progress)
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> CliError {
    CliError::File { action, path: path.display().to_string(), source }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CliError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|source| file_error("reading", Path::new("the adapter"), source.into()))
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_an_upload_that_broke_off_can_be_gone_on_with() {
        let with = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "polydelta.dev", std::collections::HashMap::new());
            broke_off(&Status::with_error_details(code, "", details).into())
        };
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown] {
            assert!(with(code, "X"), "{code:?}");
        }
        assert!(with(Code::Aborted, "UPLOAD_IDLE"));
        assert!(!with(Code::Aborted, "ADAPTER_VERSION_MISMATCH"));
        for code in [
            Code::InvalidArgument,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::ResourceExhausted,
            Code::OutOfRange,
            Code::Internal,
            Code::Unimplemented,
            Code::DataLoss,
        ] {
            assert!(!with(code, "X"), "{code:?}");
        }
    }
}
