//! The listener itself: TLS, HTTP/2, browsers, proxies in front, and what is cut short.

use std::sync::Arc;
use std::time::Duration;

use alchemi::config::TlsConfig;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Gateway, Person, backends};
use crate::{Stage, chat};

/// A certificate for `localhost` in `folder`, and what a client has to trust.
fn certificate(folder: &std::path::Path) -> (TlsConfig, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsConfig { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    (files, made.cert.der().clone())
}

/// A TLS connection that offers these protocols; gives the one agreed upon.
async fn connect(
    address: &str,
    trusted: CertificateDer<'static>,
    offered: &[&str],
) -> (tokio_rustls::client::TlsStream<TcpStream>, Option<Vec<u8>>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    (stream, agreed)
}

/// A chat over HTTP/2 on a connection.
async fn chat_over_h2<S>(stream: S, token: &str) -> (StatusCode, HeaderMap, Value)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://localhost/v1/chat/completions")
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from(chat("gpt-4o").to_string())))
        .unwrap();
    let (head, body): (_, Incoming) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn tls_speaks_both_versions_of_http() {
    let folder = tempfile::tempdir().unwrap();
    let (files, trusted) = certificate(folder.path());
    let gateway = Gateway::start_with(Backend::Sqlite, |config| config.tls = Some(files)).await;
    let token = gateway.token(&Person::of("nobody-knows", "ada"));
    let address = gateway.url().trim_start_matches("http://").to_owned();

    let (stream, agreed) = connect(&address, trusted.clone(), &["h2", "http/1.1"]).await;
    assert_eq!(agreed.as_deref(), Some(&b"h2"[..]));
    let (status, headers, body) = chat_over_h2(stream, &token).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("account_unknown")), "{body}");
    assert!(headers.contains_key("x-request-id"));

    let (mut stream, agreed) = connect(&address, trusted, &["http/1.1"]).await;
    assert_eq!(agreed.as_deref(), Some(&b"http/1.1"[..]));
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    // Plain HTTP on a TLS port is nothing, and does not keep a connection.
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
}

#[tokio::test]
async fn http2_without_tls_is_metered_like_everything() {
    let stage = Stage::set().await;
    let address = stage.gateway.url().trim_start_matches("http://").to_owned();
    let stream = TcpStream::connect(address).await.unwrap();
    let (status, headers, body) = chat_over_h2(stream, stage.ada.token()).await;
    assert_eq!((status, &body["object"]), (StatusCode::OK, &json!("chat.completion")), "{body}");
    assert_eq!(headers["x-alchemi-decision"], "allow");
    stage.settled(1).await;
}

#[tokio::test]
async fn browsers_of_the_named_origins_alone_may_read_the_control_plane() {
    let console = "https://console.example.com";
    let gateway = Gateway::start_with(Backend::Sqlite, |config| config.cors_origins = vec![console.to_owned()]).await;
    let preflight = async |origin: &str, method: &str| {
        let request = gateway.anybody().request(Method::OPTIONS, "/v1/accounts").header(header::ORIGIN, origin);
        let request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, method);
        gateway.anybody().send(request.header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,if-match")).await
    };
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let reply = preflight(console, method).await;
        assert!(reply.status.is_success());
        assert_eq!(reply.header("access-control-allow-origin"), console);
        assert!(reply.header("access-control-allow-methods").contains(method));
        let headers = reply.header("access-control-allow-headers");
        assert!(headers.contains("authorization") && headers.contains("if-match") && headers.contains("x-account-id"));
        assert!(!reply.headers.contains_key("access-control-allow-credentials"), "tokens, never cookies");
    }
    for origin in
        ["https://evil.example.com", "https://console.example.com.evil.com", "null", "http://console.example.com"]
    {
        assert!(!preflight(origin, "GET").await.headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    let operator = gateway.operator();
    let read = operator.send(operator.request(Method::GET, "/v1/accounts").header(header::ORIGIN, console)).await;
    assert_eq!(read.header("access-control-allow-origin"), console);
    assert!(read.header("access-control-expose-headers").contains("etag"));
    // A refusal can be read too.
    let refused = gateway.anybody().request(Method::GET, "/v1/accounts").header(header::ORIGIN, console);
    assert_eq!(gateway.anybody().send(refused).await.header("access-control-allow-origin"), console);
}

#[tokio::test]
async fn a_proxy_in_front_is_believed_only_when_it_is_named() {
    let named = vec!["127.0.0.0/8".to_owned()];
    for (trusted, client) in [(named, "203.0.113.7"), (Vec::new(), "127.0.0.1")] {
        let stage = Stage::with(Backend::Sqlite, |config| config.trusted_proxies = trusted).await;
        let operator = stage.gateway.operator();
        let forwarded = |request: reqwest::RequestBuilder| request.header("x-forwarded-for", "6.6.6.6, 203.0.113.7");
        let made = forwarded(operator.request(Method::POST, "/v1/accounts")).json(&json!({"account_name": "Seen"}));
        let account = operator.send(made).await.ok()["account_id"].as_str().unwrap().to_owned();
        let audit = operator.get(&format!("/v1/accounts/{account}/audit")).await.ok();
        assert_eq!(audit["items"][0]["source_ip"], client, "{audit}");
        let asked = forwarded(stage.ada.request(Method::POST, "/v1/chat/completions")).json(&chat("gpt-4o"));
        stage.ada.send(asked).await.ok();
        let seen = stage.gateway.last_forwarded();
        let told = seen.header_values("x-forwarded-for");
        assert_eq!(told, [client], "the upstream is told of the client that we believe in, and of no other");
    }
}

#[tokio::test]
async fn who_is_refused_before_a_large_body_is_told_to_close() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_bytes = 1 << 20).await;
    let head = |length: usize, token: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{{\"model\""
        )
    };
    for (request, status) in [(head(2 << 20, stage.ada.token()), "413"), (head(8_192, "a.b.c"), "401")] {
        let answer = stage.gateway.raw(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_seconds = 1).await;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 5000\r\n\r\n{{\"model\"",
        stage.ada.token()
    );
    let answer = stage.gateway.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    assert!(stage.gateway.forwarded().is_empty());
    assert_eq!(stage.counter().await, (0, 0));
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_unasked_is_not_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut read = [0; 4096];
                let _ = socket.read(&mut read).await;
                let _ = socket
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
                    .await;
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
        }
    });
    let stage = Stage::with(Backend::Sqlite, |config| config.upstream.urls = vec![upstream]).await;
    let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.text());
    assert!(reply.text().contains("upstream_unreadable"));
    // It may have been worked on.
    assert_eq!(stage.settled(1).await[0]["marks"], "cut");
}

#[tokio::test]
async fn opaque_tokens_are_asked_about_and_pay_like_others() {
    for backend in backends().await {
        let first = Gateway::start(backend).await;
        let client = first.issuer.api_client();
        let gateway = first
            .beside(|config| {
                config.identity.introspection_client_id = Some(client.id.clone());
                config.identity.introspection_client_secret = Some(client.secret.as_str().into());
            })
            .await;
        let account = gateway.account("Opaque").await;
        gateway.open_models(&account).await;
        gateway.allocate(&account, "1000").await;
        gateway.claims(&Person::of(&account, "ada"));
        let ada = gateway.anybody().with_token(&gateway.issuer.opaque("ada").unwrap());
        ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        assert_eq!(gateway.settled(&account, 1).await[0]["subject"], "ada");
        let unknown = gateway.anybody().with_token("an-opaque-token-that-nobody-made");
        assert_eq!(unknown.post("/v1/chat/completions", chat("gpt-4o")).await.status, StatusCode::UNAUTHORIZED);
    }
}
