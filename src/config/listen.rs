//! An address to listen on, as people write it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Where to listen: a host and a port. A name is resolved when the server binds it, and not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Every interface, IPv6 and IPv4.
    Any,
    Ip(IpAddr),
    Name(String),
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// No port.
    #[error("it has no port; ADDRESS:PORT, as in 127.0.0.1:50051 or localhost:50051, is an address")]
    NoPort,
    /// Not a port.
    #[error("{text:?} is no port: a number up to 65535, where 0 takes a free one")]
    Port {
        /// The text where the port should be.
        text: String,
    },
    /// Colons that could mean anything.
    #[error("an IPv6 address stands in brackets, as in [::1]:50051")]
    Brackets,
    /// Not a host.
    #[error("{text:?} is neither an IP address nor a host name")]
    Host {
        /// The text where the host should be.
        text: String,
    },
}

impl ListenAddress {
    /// The port; 0 takes a free one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// At another port.
    #[must_use]
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The addresses it stands for, where no resolver is needed: `localhost` is the loopback of both families
    /// (RFC 6761), and every interface is IPv6's wildcard, which takes IPv4 too, and IPv4's for systems without IPv6.
    #[must_use]
    pub fn known(&self) -> Option<Vec<SocketAddr>> {
        let (v4, v6): (IpAddr, IpAddr) = match &self.host {
            Host::Ip(ip) => return Some(vec![SocketAddr::new(*ip, self.port)]),
            Host::Any => (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()),
            Host::Name(name) if name.eq_ignore_ascii_case("localhost") => {
                (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())
            }
            Host::Name(_) => return None,
        };
        let first_v6 = self.host == Host::Any;
        let both = if first_v6 { [v6, v4] } else { [v4, v6] };
        Some(both.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }

    /// One socket of its addresses is enough: the others would be the same interfaces again.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.host == Host::Any
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }
}

/// `HOST:PORT`, where the host is an IP address (IPv6 in brackets) or a name; `:PORT` and `*:PORT` are every interface,
/// `PORT` alone is that port of the loopback.
impl FromStr for ListenAddress {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let text = text.trim();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or_else(|| ListenError::Port { text: text.to_owned() })
        };
        let Some((host, after)) = text.rsplit_once(':') else {
            let only_port = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let host = Host::Name("localhost".to_owned());
            return if only_port { Ok(Self { host, port: port(text)? }) } else { Err(ListenError::NoPort) };
        };
        if host.contains([':', '[', ']']) {
            let scheme = host.contains("//");
            return Err(if scheme { ListenError::Host { text: host.to_owned() } } else { ListenError::Brackets });
        }
        let named = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            // All digits and dots is an IP address gone wrong.
            let numeric = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            !numeric && name.len() <= 253 && name.bytes().all(allowed)
        };
        let port = port(after)?;
        let host = match host {
            "" | "*" => Host::Any,
            name if named(name) => Host::Name(name.to_owned()),
            other => return Err(ListenError::Host { text: other.to_owned() }),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => write!(f, "*:{}", self.port),
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Vec<String> {
        let address: ListenAddress = text.parse().unwrap();
        address.known().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        assert_eq!(known("127.0.0.1:50051"), ["127.0.0.1:50051"]);
        assert_eq!(known("[::1]:0"), ["[::1]:0"]);
        assert_eq!(known("localhost:50051"), ["127.0.0.1:50051", "[::1]:50051"]);
        assert_eq!(known("LocalHost:1"), ["127.0.0.1:1", "[::1]:1"]);
        assert_eq!(known("50051"), ["127.0.0.1:50051", "[::1]:50051"]);
        assert_eq!(known(":50051"), ["[::]:50051", "0.0.0.0:50051"]);
        assert_eq!(known("*:50051"), ["[::]:50051", "0.0.0.0:50051"]);
        assert_eq!("gpu-1.example:50051".parse::<ListenAddress>().unwrap().known(), None, "the resolver is asked");
    }

    #[test]
    fn what_is_no_address_is_told_why() {
        let why = |text: &str| text.parse::<ListenAddress>().unwrap_err();
        assert_eq!(why("localhost"), ListenError::NoPort);
        assert_eq!(why(""), ListenError::NoPort);
        assert_eq!(why("localhost:"), ListenError::Port { text: String::new() });
        assert_eq!(why("localhost:x"), ListenError::Port { text: "x".into() });
        assert_eq!(why("99999"), ListenError::Port { text: "99999".into() });
        assert_eq!(why("127.0.0.1:65536"), ListenError::Port { text: "65536".into() });
        assert_eq!(why("::1:50051"), ListenError::Brackets);
        assert_eq!(why("http://localhost:50051"), ListenError::Host { text: "http://localhost".into() });
        assert_eq!(why("a b:1"), ListenError::Host { text: "a b".into() });
        assert_eq!(why("1.2.3:1"), ListenError::Host { text: "1.2.3".into() });
    }

    #[test]
    fn addresses_print_as_they_are_written() {
        for text in ["127.0.0.1:50051", "[::1]:0", "localhost:50051", "*:9464"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }
}
