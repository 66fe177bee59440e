//! The connection of the client verbs.

use tonic::transport::{Channel, Endpoint};

use super::exit::CliError;
use crate::config::ClientArgs;

/// A connection to the server.
///
/// # Errors
/// [`CliError::BadAddress`] and [`CliError::Connect`].
pub(super) async fn connect(client: &ClientArgs) -> Result<Channel, CliError> {
    let address = &client.server;
    let uri = if address.contains("://") { address.clone() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| CliError::BadAddress { address: address.clone() })?;
    let endpoint = endpoint.connect_timeout(client.connect_timeout).tcp_nodelay(true);
    let connected = endpoint.connect().await;
    connected.map_err(|source| CliError::Connect { address: address.clone(), source: Box::new(source) })
}

/// A request under the deadline of `--timeout`.
pub(super) fn request<T>(client: &ClientArgs, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(limit) = client.timeout {
        request.set_timeout(limit);
    }
    request
}
