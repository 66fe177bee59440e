//! A server behind something that speaks TLS for it, as servers in a cluster are.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::command::{Served, code, polydelta, text};

/// Speaks TLS as `localhost` and passes everything on; returns its port and its certificate.
fn proxy(runtime: &Runtime, to: SocketAddr) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust the certificate goes away here.
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(to).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (port, made.cert.pem())
}

#[test]
fn a_server_is_asked_over_tls_and_only_where_its_certificate_is_trusted() {
    let store = tempfile::tempdir().unwrap();
    let server = Served::start(&store);
    let runtime = Runtime::new().unwrap();
    let (port, certificate) = proxy(&runtime, server.url.trim_start_matches("http://").parse().unwrap());
    let roots = store.path().join("roots.pem");
    std::fs::write(&roots, certificate).unwrap();
    let list = |trusted: bool| {
        let mut list = polydelta(&["adapter", "list", "--server", &format!("https://localhost:{port}/")]);
        if trusted {
            list.env("SSL_CERT_FILE", &roots);
        }
        list.output().unwrap()
    };
    let listed = list(true);
    assert_eq!(code(&listed), 0, "{}", text(&listed.stderr));
    assert!(text(&listed.stdout).starts_with("NAME"), "{}", text(&listed.stdout));
    let refused = list(false);
    assert_eq!(code(&refused), 4);
    assert!(text(&refused.stderr).contains("certificate"), "{}", text(&refused.stderr));
}
