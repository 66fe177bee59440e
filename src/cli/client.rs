//! The connection of the client verbs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Uri;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::exit::CliError;
use crate::config::ClientArgs;

/// The port of a server whose flags do not say, for an address without one.
const PORT: u16 = 50051;

/// A connection to the server; over TLS where its address begins with https.
///
/// # Errors
/// [`CliError::BadAddress`] and [`CliError::Connect`].
pub(super) async fn connect(client: &ClientArgs) -> Result<Channel, CliError> {
    let failed = |source| CliError::Connect { address: client.server.clone(), source: Box::new(source) };
    let uri = uri(&client.server)?;
    let tls = uri.scheme_str() == Some("https");
    let mut endpoint = Endpoint::from(uri).connect_timeout(client.connect_timeout).tcp_nodelay(true);
    if tls {
        // The system's roots, which SSL_CERT_FILE and SSL_CERT_DIR replace, and Mozilla's, for systems without.
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots()).map_err(failed)?;
    }
    endpoint.connect().await.map_err(failed)
}

/// An address as people write it: a URL, `HOST:PORT`, `HOST`, `:PORT` or `PORT`.
fn uri(address: &str) -> Result<Uri, CliError> {
    let bad = |reason| CliError::BadAddress { address: address.to_owned(), reason };
    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let text = address.trim().trim_end_matches('/');
    let digits = text.strip_prefix(':').unwrap_or(text);
    let url = match text.split_once("://") {
        Some(("http" | "https", _)) => text.to_owned(),
        Some(_) => return Err(bad("http and https are spoken")),
        None => match digits.parse::<u16>() {
            Ok(port) => format!("http://{}", SocketAddr::new(LOOPBACK, port)),
            Err(_) => format!("http://{text}"),
        },
    };
    let uri: Uri = url.parse().map_err(|_| bad("this is not an address like 127.0.0.1:50051 or https://host"))?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("a server has no path"));
    }
    let authority = uri.authority().ok_or_else(|| bad("there is no host"))?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(bad("there is no host, or more than a host and a port"));
    }
    if authority.as_str().ends_with(':') || (authority.port().is_some() && uri.port_u16().is_none()) {
        return Err(bad("its port is no number up to 65535"));
    }
    if text.contains("://") || uri.port_u16().is_some() {
        return Ok(uri);
    }
    format!("{url}:{PORT}").parse().map_err(|_| bad("an IPv6 address stands in brackets, as in [::1]:50051"))
}

/// A request under the deadline of `--timeout`.
pub(super) fn request<T>(client: &ClientArgs, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(limit) = client.timeout {
        request.set_timeout(limit);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_as_people_write_them() {
        let of = |text: &str| uri(text).unwrap().to_string();
        assert_eq!(of("http://127.0.0.1:50051"), "http://127.0.0.1:50051/");
        assert_eq!(of("http://127.0.0.1:50051/"), "http://127.0.0.1:50051/");
        assert_eq!(of("127.0.0.1:50051"), "http://127.0.0.1:50051/");
        assert_eq!(of("localhost:1"), "http://localhost:1/");
        assert_eq!(of("gpu-1"), "http://gpu-1:50051/");
        assert_eq!(of("[::1]:1"), "http://[::1]:1/");
        assert_eq!(of(":1"), "http://127.0.0.1:1/");
        assert_eq!(of("50052"), "http://127.0.0.1:50052/");
        assert_eq!(of("https://example.org"), "https://example.org/", "443, as everywhere");
        for bad in ["", "ftp://x", "http://", "http://x/path", "x y", "user@host:1", "::1", "host:99999", "host:"] {
            assert!(matches!(uri(bad), Err(CliError::BadAddress { .. })), "{bad:?}: {:?}", uri(bad));
        }
    }
}
