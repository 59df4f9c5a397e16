//! Our end of the wire: TLS, HTTP/2, browsers, proxies in front of us, and requests that do not come to their end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alchemi::config::TlsConfig;
use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::gateway::PATIENCE;
use crate::common::{Backend, Gateway, backends};
use crate::{Stage, chat, streamed, text};

/// A certificate for `localhost`, written where the gateway looks for it.
fn certificate(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// A connection by somebody who trusts `certificate` alone and offers `protocol`.
async fn over_tls(
    gateway: &Gateway,
    certificate: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(gateway.url().trim_start_matches("http://")).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

fn question(stage: &Stage, uri: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(uri)
        .header("authorization", format!("Bearer {}", stage.ada.token()))
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap()
}

async fn whole(answer: Response<Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn tls_speaks_both_versions_and_takes_a_new_certificate() {
    let stage = Stage::set().await;
    let folder = tempfile::tempdir().unwrap();
    let first = certificate(folder.path());
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let gateway = stage.gateway.beside(|config| config.tls = Some(TlsConfig { cert, key })).await;

    let stream = over_tls(&gateway, &first, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = question(&stage, "https://localhost/v1/chat/completions", &chat("gpt-4o"));
    let answer = client.send_request(asked).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
    let sent = stage.gateway.last_forwarded();
    let header = |name: &str| sent.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    assert_eq!((header("x-forwarded-proto"), header("x-forwarded-host")), (Some("https"), Some("localhost")));

    let stream = over_tls(&gateway, &first, b"http/1.1").await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut asked = question(&stage, "/v1/chat/completions", &streamed("gpt-4o"));
    asked.headers_mut().insert("host", "localhost".parse().unwrap());
    let answer = client.send_request(asked).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_11));
    assert!(whole(answer).await.ends_with("data: [DONE]\n\n"));

    // In clear there is nothing to be had.
    let plain = gateway.anybody().try_send(gateway.anybody().request(Method::GET, "/healthz")).await;
    assert!(plain.is_err(), "{plain:?}");

    let second = certificate(folder.path());
    let renewed = async {
        while over_tls(&gateway, &second, b"h2").await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the new certificate is taken");
    assert!(over_tls(&gateway, &first, b"h2").await.is_err(), "the old one is gone");
}

/// HTTP/2 in clear, as load balancers speak it to their backends.
async fn http2(gateway: &Gateway) -> http2::SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(gateway.url().trim_start_matches("http://")).await.unwrap();
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn http2_is_governed_like_http1() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let mut client = http2(&stage.gateway).await;
        let uri = "http://gateway.example/v1/chat/completions";
        let answer = client.send_request(question(&stage, uri, &streamed("gpt-4o"))).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
        assert!(whole(answer).await.ends_with("data: [DONE]\n\n"));

        let mut forged = question(&stage, uri, &chat("gpt-4o"));
        for name in ["x-alchemi-account-id", "x_alchemi_account_id", "x-litellm-customer-id"] {
            forged.headers_mut().append(name, "evil".parse().unwrap());
            forged.headers_mut().append(name, "evil".parse().unwrap());
        }
        assert_eq!(client.send_request(forged).await.unwrap().status(), 200);
        let sent = stage.gateway.last_forwarded();
        assert!(sent.headers.iter().all(|(_, value)| value != "evil"), "{:?}", sent.headers);

        let mut two_hosts = question(&stage, uri, &chat("gpt-4o"));
        two_hosts.headers_mut().insert("host", "elsewhere".parse().unwrap());
        let answer = client.send_request(two_hosts).await.unwrap();
        assert_eq!(answer.status(), 400);
        assert!(whole(answer).await.contains("invalid_host"));

        // Many at once on the one connection, each in the ledger.
        let many = (0..20).map(|_| client.clone().send_request(question(&stage, uri, &chat("gpt-4o-mini"))));
        let many = futures_util::future::join_all(many).await;
        assert!(many.into_iter().all(|answer| answer.unwrap().status() == 200));
        stage.settled(22).await;
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn http2_has_no_connection_header_to_close_by() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_bytes = 10_000).await;
    let mut client = http2(&stage.gateway).await;
    let large = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "x".repeat(20_000)}]});
    let uri = "http://gateway.example/v1/chat/completions";
    let answer = client.send_request(question(&stage, uri, &large)).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("connection")), (413, None));
    // The connection serves on.
    assert_eq!(client.send_request(question(&stage, uri, &chat("gpt-4o"))).await.unwrap().status(), 200);
}

#[tokio::test]
async fn browsers_of_named_origins_may_call_the_control_plane() {
    let ours = "https://console.example.com";
    let gateway = Gateway::start_with(Backend::Sqlite, |config| config.cors_origins = vec![ours.to_owned()]).await;
    let anybody = gateway.anybody();
    let preflight = async |origin: &str| {
        let request = anybody.request(Method::OPTIONS, "/v1/accounts").header("origin", origin);
        let request = request
            .header("access-control-request-method", "PATCH")
            .header("access-control-request-headers", "authorization,if-match,idempotency-key,x-account-id");
        anybody.send(request).await
    };
    let allowed = preflight(ours).await;
    assert_eq!((allowed.status.as_u16(), allowed.header("access-control-allow-origin")), (200, ours));
    assert!(allowed.header("access-control-allow-methods").contains("PATCH"));
    for name in ["authorization", "if-match", "idempotency-key", "x-account-id", "content-type"] {
        assert!(allowed.header("access-control-allow-headers").contains(name), "{name}");
    }
    assert!(!allowed.headers.contains_key("access-control-allow-credentials"), "bearer tokens, never cookies");
    for origin in ["https://evil.example.com", "http://console.example.com", "https://console.example.com.evil", "null"]
    {
        assert!(!preflight(origin).await.headers.contains_key("access-control-allow-origin"), "{origin}");
    }
    // Answers, refusals among them, can be read too.
    let operator = gateway.operator();
    for (client, status) in [(&operator, 200), (&anybody, 401)] {
        let reply = client.send(client.request(Method::GET, "/v1/accounts").header("origin", ours)).await;
        assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (status, ours));
        let exposed = reply.header("access-control-expose-headers");
        assert!(exposed.contains("etag") && exposed.contains("x-request-id"), "{exposed}");
    }
}

#[tokio::test]
async fn proxies_in_front_are_believed_when_they_are_ours() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let behind = stage.gateway.beside(|config| config.trusted_proxies = vec!["127.0.0.0/8".to_owned()]).await;
        let believed = [("203.0.113.9", "https", "api.example.com")];
        let direct = [("127.0.0.1", "http", stage.gateway.url().trim_start_matches("http://"))];
        for (gateway, [(ip, proto, host)]) in [(&behind, believed), (&stage.gateway, direct)] {
            let forwarded = |request: reqwest::RequestBuilder| {
                request
                    .header("x-forwarded-for", "198.51.100.1, 203.0.113.9, 127.0.0.2")
                    .header("x-forwarded-proto", "https")
                    .header("x-forwarded-host", "api.example.com")
            };
            let ada = stage.ada.at(gateway.url());
            ada.send(forwarded(ada.request(Method::POST, "/v1/chat/completions")).json(&chat("gpt-4o"))).await.ok();
            let sent = stage.gateway.last_forwarded();
            for (name, value) in [("x-forwarded-for", ip), ("x-forwarded-proto", proto), ("x-forwarded-host", host)] {
                let all: Vec<_> = sent.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).collect();
                assert!(all.len() == 1 && all[0].1 == value, "{name}: {all:?}");
            }
            let operator = gateway.operator_for(&stage.account);
            let made = operator.request(Method::POST, "/v1/copilot/orgs").json(&json!({"name": format!("of {ip}")}));
            operator.send(forwarded(made)).await.ok();
            let events = operator.get("/v1/audit?limit=1").await.ok();
            assert_eq!(events["items"][0]["source_ip"], ip, "{events}");
        }
    }
}

/// Sends a head that promises `length` bytes, and `sent` of them; gives all that comes back until the gateway closes.
async fn promise(stage: &Stage, head: &str, length: usize, sent: usize) -> String {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n{head}\
         content-length: {length}\r\n\r\n{}",
        " ".repeat(sent)
    );
    stage.gateway.raw(head).await
}

#[tokio::test]
async fn a_large_body_that_is_refused_unread_ends_the_connection_and_says_so() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_bytes = 500_000).await;
    let token = format!("authorization: Bearer {}\r\n", stage.ada.token());
    for (head, status) in [("", "401"), ("authorization: Bearer a.b.c\r\n", "401"), (token.as_str(), "413")] {
        let answer = promise(&stage, head, 1_000_000, 0).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    // What is small is read, and the connection kept for the next.
    let small = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n";
    let both = stage.gateway.raw(format!("{small}\r\n{{}}{small}connection: close\r\n\r\n{{}}")).await;
    assert_eq!(both.matches("HTTP/1.1 401").count(), 2, "{both}");
    assert_eq!(stage.gateway.forwarded(), []);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let stage = Stage::with(Backend::Sqlite, |config| config.limits.body_seconds = 1).await;
    let token = format!("authorization: Bearer {}\r\n", stage.ada.token());
    for length in [100, 100_000] {
        let answer = promise(&stage, &token, length, 10).await;
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    }
    assert_eq!((stage.gateway.forwarded(), stage.counter().await), (vec![], (0, 0)));
}

#[tokio::test]
async fn too_many_headers_are_refused_in_words() {
    let stage = Stage::set().await;
    for (count, status, says) in [(99, "200", "ok"), (100, "431", "header_fields_too_large")] {
        let headers: String = (0..count - 1).map(|n| format!("x-{n}: y\r\n")).collect();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
        let answer = stage.gateway.raw(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(says), "{count}: {answer}");
        assert_eq!(answer.contains("x-request-id: "), status == "431", "{answer}");
    }
}

/// An upstream that answers everything with a switch of protocols that nobody asked for.
async fn switching() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = [0; 4096];
                let _ = socket.read(&mut read).await;
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
                let _ = socket.write_all(switch).await;
                let _ = socket.read(&mut read).await;
            });
        }
    });
    url
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_a_bad_answer() {
    let stage = Stage::set().await;
    let url = switching().await;
    let gateway = stage.gateway.beside(|config| config.upstream.urls = vec![url]).await;
    let ada = stage.ada.at(gateway.url());
    let reply = ada.post("/v1/chat/completions", chat("gpt-4o")).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (502, "upstream_unreadable"), "{}", reply.text());
    let row = &stage.settled(1).await[0];
    assert_eq!(text(row, "account_id"), stage.account);
    assert_eq!(stage.counter().await.1, 0);
    // Neither with the caller's own key, asked for or not.
    let own = gateway.anybody().with_token("sk-of-the-caller");
    for upgrade in [false, true] {
        let mut request = own.request(Method::GET, "/ui");
        if upgrade {
            request = request.header("connection", "upgrade").header("upgrade", "chat");
        }
        let reply = own.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (502, "upstream_unreadable"), "{}", reply.text());
    }
}
