//! A gRPC client that adds nothing to what it is told to send: tonic's own transport keeps the deadline itself, so it
//! cannot show what the server says at one.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use polydelta::grpc::pb::generation_service_client::GenerationServiceClient;
use tokio::net::TcpStream;
use tonic::body::Body;

#[derive(Clone)]
pub(crate) struct Plain {
    sender: SendRequest<Body>,
}

impl Plain {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        // Its end is seen by the calls on it.
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) async fn generation(address: SocketAddr) -> GenerationServiceClient<Self> {
        let origin = format!("http://{address}").parse().unwrap();
        GenerationServiceClient::with_origin(Self::connect(address).await, origin)
    }

    /// One request as it is.
    pub(crate) async fn send(&mut self, request: http::Request<Body>) -> hyper::Result<http::Response<Incoming>> {
        self.sender.send_request(request).await
    }
}

impl tower::Service<http::Request<Body>> for Plain {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
