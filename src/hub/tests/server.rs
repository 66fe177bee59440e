//! A stand-in for the hub on loopback, answering as the real one does: a listing under `/api`, small files behind a
//! relative redirect, large ones behind an absolute redirect to another place, ranges honoured everywhere.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

pub(super) const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone)]
pub(super) struct RepositoryFile {
    pub(super) content: Vec<u8>,
    pub(super) large: bool,
    /// Bytes that are really sent.
    pub(super) sent: usize,
    /// Sent in place of the content.
    pub(super) forged: Option<Vec<u8>>,
}

#[derive(Clone, Default)]
pub(super) struct Hub {
    pub(super) files: BTreeMap<String, RepositoryFile>,
    /// Status and `x-error-code` of the listing.
    pub(super) listing: Option<(u16, &'static str)>,
    /// Status and `x-error-code` of every file.
    pub(super) gate: Option<(u16, &'static str)>,
    /// The only token that opens it.
    pub(super) token: Option<&'static str>,
    /// Say that a body has no length and end it by closing.
    pub(super) unmeasured: bool,
}

impl Hub {
    pub(super) fn small(mut self, name: &str, content: &str) -> Self {
        self.add(name, content.as_bytes(), false);
        self
    }

    pub(super) fn large(mut self, name: &str, content: &[u8]) -> Self {
        self.add(name, content, true);
        self
    }

    fn add(&mut self, name: &str, content: &[u8], large: bool) {
        let file = RepositoryFile { content: content.to_vec(), large, sent: content.len(), forged: None };
        self.files.insert(name.to_owned(), file);
    }
}

struct Request {
    path: String,
    range: Option<u64>,
    authorization: Option<String>,
}

/// The server; stops when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) hub: Arc<Mutex<Hub>>,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let hub = Arc::new(Mutex::new(hub));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (Arc::clone(&hub), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { return };
                log.lock().unwrap().push(request.path.clone());
                // The client may have gone: a truncated answer makes it hang up.
                let _ = answer(&mut stream, &shared.lock().unwrap(), &request, address);
            }
        });
        Self { address, hub, requests, thread: Some(thread) }
    }

    /// Paths asked for since the last call.
    pub(super) fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An empty connection ends the thread.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let mut request = Request { path, range: None, authorization: None };
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            return Some(request);
        }
        let (name, value) = line.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=")?.split('-').next()?.parse().ok(),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    None
}

fn answer(stream: &mut TcpStream, hub: &Hub, request: &Request, address: SocketAddr) -> std::io::Result<()> {
    let path = request.path.split('?').next().unwrap_or_default();
    if path.starts_with("/api/models/") {
        return match hub.listing {
            Some(refusal) => refuse(stream, refusal),
            None => send(stream, "200 OK", "", listing(hub).as_bytes()),
        };
    }
    if let Some((_, name)) = path.split_once("/cdn/") {
        return match hub.files.get(name) {
            Some(file) => part(stream, hub, file, "", request.range),
            None => refuse(stream, (404, "")),
        };
    }
    let Some((_, place)) = path.split_once(&format!("/{SHA}/")) else { return refuse(stream, (404, "RepoNotFound")) };
    let authorized = hub.token.is_none_or(|token| request.authorization == Some(format!("Bearer {token}")));
    if let Some(refusal) = hub.gate.filter(|_| hub.token.is_none() || !authorized) {
        return refuse(stream, refusal);
    }
    let Some(file) = hub.files.get(place) else { return refuse(stream, (404, "EntryNotFound")) };
    let (commit, etag) = (format!("X-Repo-Commit: {SHA}\r\n"), etag(file));
    if path.contains("/resolve-cache/") {
        return part(stream, hub, file, &format!("{commit}ETag: \"{etag}\"\r\n"), request.range);
    }
    let head = if file.large {
        let size = file.content.len();
        format!(
            "{commit}X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nLocation: http://{address}/cdn/{place}\r\n"
        )
    } else {
        format!("{commit}ETag: \"{etag}\"\r\nLocation: /api-cache/resolve-cache/{SHA}/{place}?etag=1\r\n")
    };
    send(stream, if file.large { "302 Found" } else { "307 Temporary Redirect" }, &head, b"")
}

/// The hub names a small file's blob by git's sha1 of it; any digest of the same form will do.
fn etag(file: &RepositoryFile) -> String {
    let digest = hex(&file.content);
    if file.large { digest } else { digest[..40].to_owned() }
}

fn hex(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn listing(hub: &Hub) -> String {
    let sibling = |(name, file): (&String, &RepositoryFile)| {
        let mut sibling = serde_json::json!({ "rfilename": name, "size": file.content.len(), "blobId": etag(file) });
        if file.large {
            sibling["lfs"] = serde_json::json!({ "sha256": hex(&file.content), "size": file.content.len() });
        }
        sibling
    };
    let siblings: Vec<_> = hub.files.iter().map(sibling).collect();
    serde_json::json!({ "id": "org/name", "sha": SHA, "gated": false, "siblings": siblings }).to_string()
}

fn part(
    stream: &mut TcpStream,
    hub: &Hub,
    file: &RepositoryFile,
    head: &str,
    range: Option<u64>,
) -> std::io::Result<()> {
    let content = file.forged.as_ref().unwrap_or(&file.content);
    let size = content.len();
    let first = (range.unwrap_or(0) as usize).min(size);
    let head = format!("{head}Content-Range: bytes {first}-{}/{size}\r\n", size.saturating_sub(1));
    let body = &content[first..];
    let length = if hub.unmeasured { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "HTTP/1.1 206 Partial Content\r\nConnection: close\r\n{length}{head}\r\n")?;
    stream.write_all(&body[..file.sent.saturating_sub(first).min(body.len())])
}

fn refuse(stream: &mut TcpStream, (status, code): (u16, &'static str)) -> std::io::Result<()> {
    send(stream, &format!("{status} No"), &format!("X-Error-Code: {code}\r\n"), b"no")
}

fn send(stream: &mut TcpStream, status: &str, head: &str, body: &[u8]) -> std::io::Result<()> {
    let length = format!("Content-Length: {}\r\n", body.len());
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{length}{head}\r\n")?;
    stream.write_all(body)
}
