//! Two doors on one connection: calls of gRPC say so in their content type, all others are plain HTTP.

use std::convert::Infallible;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, Response, header};
use http_body_util::Either;
use tower::Service;

/// `application/grpc`, and with what it is encoded as behind a `+` or a `;`.
const GRPC: &[u8] = b"application/grpc";

/// The services of a connection.
#[derive(Clone)]
pub(crate) struct Split<G, H> {
    grpc: G,
    plain: H,
}

impl<G, H> Split<G, H> {
    /// Calls of gRPC go to the one, all others to the other.
    pub(crate) fn new(grpc: G, plain: H) -> Self {
        Self { grpc, plain }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    kind.as_bytes().strip_prefix(GRPC).is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

impl<G, H, B, C, D> Service<Request<B>> for Split<G, H>
where
    G: Service<Request<B>, Response = Response<C>, Error = Infallible>,
    H: Service<Request<B>, Response = Response<D>, Error = Infallible>,
    G::Future: Send + 'static,
    H::Future: Send + 'static,
{
    type Response = Response<Either<C, D>>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        ready!(self.grpc.poll_ready(cx))?;
        self.plain.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if is_grpc(request.headers()) {
            let answer = self.grpc.call(request);
            return Box::pin(async move { Ok(answer.await?.map(Either::Left)) });
        }
        let answer = self.plain.call(request);
        Box::pin(async move { Ok(answer.await?.map(Either::Right)) })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn content_types_of_grpc_are_told_from_others() {
        let with = |kind: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;proto"] {
            assert!(is_grpc(&with(kind)), "{kind}");
        }
        for kind in ["application/json", "application/grpc-web", "application/grpcs", "text/plain"] {
            assert!(!is_grpc(&with(kind)), "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
