//! A client that adds nothing to what it is told to send.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::harness::within;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Of an answer that is an error: status, code, and the field that it names.
    pub(crate) fn error(&self) -> (u16, String, Option<String>) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.text);
        assert!(error["type"].is_string(), "{}", self.text);
        let code = error["code"].as_str().unwrap().to_owned();
        (self.status.as_u16(), code, error["param"].as_str().map(str::to_owned))
    }

    /// Of a stream: the data of its events.
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let events = self.text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

/// A request of JSON.
pub(crate) fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::POST).uri(path).header("host", "localhost");
    request.header("content-type", "application/json").body(body.to_string().into()).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder().uri(path).header("host", "localhost").body(Full::default()).unwrap()
}

/// Send a request over a connection of its own and wait for the head of its answer; the connection lives as long as what
/// drives it.
pub(crate) async fn open(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> (http::Response<Incoming>, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    (within(sender.send_request(request)).await.unwrap(), connection)
}

pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let (response, _connection) = open(address, request).await;
    let (head, body) = response.into_parts();
    let body = within(body.collect()).await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, text: String::from_utf8(body.to_vec()).unwrap() }
}

/// Post what must be answered.
pub(crate) async fn ask(address: SocketAddr, path: &str, body: &Value) -> Value {
    let answer = send(address, post(path, body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}
