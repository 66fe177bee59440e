//! Who calls: [`ClientKey`]s, from a peer's address or from the header that a trusted gateway writes.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use crate::types::ClientKey;

/// How clients are told apart. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ClientIdentity {
    header: Option<HeaderName>,
}

/// A header name that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of a header")]
pub struct InvalidHeaderName {
    /// As given.
    pub name: String,
}

impl ClientIdentity {
    /// By address, or where `header` is given by its value; a call without it goes by its address.
    ///
    /// # Errors
    /// [`InvalidHeaderName`].
    pub fn new(header: Option<&str>) -> Result<Self, InvalidHeaderName> {
        let parse = |name: &str| name.parse().map_err(|_| InvalidHeaderName { name: name.to_owned() });
        Ok(Self { header: header.map(parse).transpose()? })
    }

    /// The key of whoever the headers of a call name, else of its peer.
    pub(crate) fn of(&self, headers: &HeaderMap, peer: ClientKey) -> ClientKey {
        let named = self.header.as_ref().and_then(|name| headers.get(name));
        named.filter(|value| !value.is_empty()).map_or(peer, |value| key(b"header", value.as_bytes()))
    }
}

/// The key of an address. Of IPv6 the first 64 bits count: the rest is the client's own to choose.
pub(crate) fn of_peer(peer: IpAddr) -> ClientKey {
    match peer.to_canonical() {
        IpAddr::V4(address) => key(b"ipv4", &address.octets()),
        IpAddr::V6(address) => key(b"ipv6", &address.octets()[..8]),
    }
}

fn key(kind: &[u8], value: &[u8]) -> ClientKey {
    let mut hash = Sha256::new();
    hash.update(b"polydelta/client/v1\0");
    hash.update(kind);
    hash.update(b"\0");
    hash.update(value);
    ClientKey(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> ClientKey {
        of_peer(address.parse().unwrap())
    }

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static("x-client-id"), http::HeaderValue::from_static(value))])
    }

    #[test]
    fn an_address_is_a_client_and_of_ipv6_a_network_is() {
        assert_eq!(peer("10.0.0.1"), peer("::ffff:10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff::2"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
    }

    #[test]
    fn a_header_counts_only_where_the_operator_named_it() {
        let (address, trusting) = (ClientIdentity::default(), ClientIdentity::new(Some("X-Client-Id")).unwrap());
        let home = peer("10.0.0.1");
        assert_eq!(address.of(&headers("alice"), home), home);
        assert_eq!(trusting.of(&HeaderMap::new(), home), home);
        assert_eq!(trusting.of(&headers(""), home), home);
        let alice = trusting.of(&headers("alice"), home);
        assert_eq!(alice, trusting.of(&headers("alice"), peer("10.0.0.2")), "whichever gateway it came through");
        assert_ne!(alice, trusting.of(&headers("bob"), home));
        assert!(ClientIdentity::new(Some("not a header")).is_err());
    }
}
