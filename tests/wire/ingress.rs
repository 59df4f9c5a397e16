//! Paths, hosts, ids, and who is believed about the client.

use std::net::IpAddr;

use alchemi::clock::Timestamp;
use alchemi::id::{CountingIds, RandomIds};
use alchemi::problem::Problem;
use alchemi::proxy::ingress::{Arrival, Peer, RequestId, TrustedProxies, admit, normalise};
use http::{HeaderMap, Request, Version};
use percent_encoding::percent_decode_str;
use proptest::prelude::*;

use super::server::LOCAL;

fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn arrive(uri: &str, headers: &[(&str, &str)], trusted: &str) -> Result<Arrival, Problem> {
    admit(&mut request(uri, headers), LOCAL, &trusted.parse().unwrap())
}

fn code(result: Result<Arrival, Problem>) -> (u16, &'static str) {
    result.map_or_else(|problem| (problem.status(), problem.code()), |_| (200, "ok"))
}

#[test]
fn the_normal_path_is_what_is_routed_and_sent() {
    let mut odd = request("/v1/ch%61t/completions?a=%2f;b", &[("host", "h")]);
    admit(&mut odd, LOCAL, &TrustedProxies::default()).unwrap();
    assert_eq!(odd.uri(), "/v1/chat/completions?a=%2f;b");
    let mut plain = request("http://h/v1/models", &[("host", "h")]);
    admit(&mut plain, LOCAL, &TrustedProxies::default()).unwrap();
    assert_eq!(plain.uri().path(), "/v1/models");
}

#[test]
fn targets_are_bounded() {
    let long = format!("/{}", "a".repeat(16 * 1024));
    assert_eq!(code(arrive(&long, &[("host", "h")], "")), (414, "uri_too_long"));
    assert_eq!(code(arrive("/a//b", &[("host", "h")], "")), (400, "invalid_path"));
    assert_eq!(code(arrive("/a?\u{e9}", &[("host", "h")], "")), (400, "invalid_path"));
}

#[test]
fn hosts_are_plain_and_single() {
    for host in ["h", "api.example.com", "h:80", "127.0.0.1:8080", "[::1]", "[::1]:443", "my_host"] {
        assert_eq!(code(arrive("/a", &[("host", host)], "")), (200, "ok"), "{host}");
    }
    for host in [
        "", "h/?", "h?", "h#", "u@h", "h:", "h:x", "h:99999", "h:+80", "h,h", "h h", "[::1", "::1", "[::1]x", "[x]",
        "http://h", "h\\x", "h;x", "\u{e9}",
    ] {
        assert_eq!(code(arrive("/a", &[("host", host)], "")), (400, "invalid_host"), "{host}");
    }
    assert_eq!(code(arrive("/a", &[], "")), (400, "invalid_host"));
    assert_eq!(code(arrive("/a", &[("host", "h"), ("host", "h")], "")), (400, "invalid_host"));
    assert_eq!(code(arrive("http://x/a", &[("host", "h")], "")), (400, "invalid_host"));
    assert_eq!(code(arrive("http://x/a", &[], "")), (400, "invalid_host"));
    assert_eq!(code(arrive("http://H/a", &[("host", "h")], "")), (200, "ok"));
}

#[test]
fn http2_names_its_host_in_the_authority() {
    let of = |uri: &str, headers: &[(&str, &str)]| {
        let mut request = request(uri, headers);
        *request.version_mut() = Version::HTTP_2;
        admit(&mut request, LOCAL, &TrustedProxies::default())
    };
    assert_eq!(of("https://h/a", &[]).unwrap().host, "h");
    assert_eq!(code(of("https://u@h/a", &[])), (400, "invalid_host"));
    assert_eq!(code(of("https://h/a", &[("host", "x")])), (400, "invalid_host"));
    assert_eq!(code(of("/a", &[])), (400, "invalid_host"));
}

#[test]
fn a_get_brings_no_body() {
    assert_eq!(code(arrive("/a", &[("host", "h"), ("content-length", "0")], "")), (200, "ok"));
    assert_eq!(code(arrive("/a", &[("host", "h"), ("content-length", "1")], "")), (400, "body_not_allowed"));
    assert_eq!(code(arrive("/a", &[("host", "h"), ("transfer-encoding", "chunked")], "")), (400, "body_not_allowed"));
}

#[test]
fn request_ids_are_ours_and_correlation_ids_theirs() {
    let id = RequestId::new(&RandomIds, Timestamp::from_secs(1_700_000_000));
    assert_eq!(uuid::Uuid::parse_str(id.as_str()).unwrap().get_version_num(), 7);
    assert_eq!(id.header_value(), id.as_str());
    let ids = CountingIds::default();
    assert_ne!(RequestId::new(&ids, Timestamp::default()), RequestId::new(&ids, Timestamp::default()));

    let correlation = |value: &str| arrive("/a", &[("host", "h"), ("x-request-id", value)], "").unwrap().correlation_id;
    assert_eq!(correlation("mine").unwrap(), "mine");
    assert_eq!(correlation(&"x".repeat(128)).unwrap().len(), 128);
    for dropped in ["", "two words", &"x".repeat(129), "\u{e9}"] {
        assert_eq!(correlation(dropped), None);
    }
}

fn client(headers: &[(&str, &str)], trusted: &str) -> (String, bool, String) {
    let headers = [&[("host", "own")], headers].concat();
    let arrival = arrive("/a", &headers, trusted).unwrap();
    (arrival.client_ip.to_string(), arrival.https, arrival.host.to_str().unwrap().to_owned())
}

#[test]
fn forwarding_headers_count_only_from_trusted_proxies() {
    let said =
        [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "api.example.com")];
    let own = ("127.0.0.1".to_owned(), false, "own".to_owned());
    assert_eq!(client(&said, ""), own);
    assert_eq!(client(&said, "10.0.0.0/8"), own);
    let believed = ("1.2.3.4".to_owned(), true, "api.example.com".to_owned());
    assert_eq!(client(&said, "127.0.0.0/8"), believed);
    assert_eq!(client(&said, "10.0.0.0/8, 127.0.0.1"), believed);
    let standard = [("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:80\";proto=https;host=api.example.com")];
    assert_eq!(client(&standard, "127.0.0.1").0, "2001:db8::1");
    assert_eq!(client(&standard, "127.0.0.1").2, "api.example.com");
}

#[test]
fn the_client_is_the_last_hop_that_is_not_ours() {
    let ip = |chain: &str, trusted: &str| client(&[("x-forwarded-for", chain)], trusted).0;
    assert_eq!(ip("6.6.6.6, 1.2.3.4", "127.0.0.1"), "1.2.3.4");
    assert_eq!(ip("6.6.6.6, 1.2.3.4, 10.1.1.1", "127.0.0.1,10.0.0.0/8"), "1.2.3.4");
    assert_eq!(ip("1.2.3.4:5678", "127.0.0.1"), "1.2.3.4");
    assert_eq!(ip("::ffff:1.2.3.4", "127.0.0.1"), "1.2.3.4");
    assert_eq!(ip("1.2.3.4, unknown", "127.0.0.1"), "127.0.0.1");
    assert_eq!(ip("10.0.0.1, 10.0.0.2", "127.0.0.1,10.0.0.0/8"), "10.0.0.1");
    let bad_host = client(&[("x-forwarded-host", "a/b")], "127.0.0.1");
    assert_eq!(bad_host.2, "own");
}

#[test]
fn an_ipv4_peer_on_an_ipv6_socket_is_still_itself() {
    let trusted: TrustedProxies = "127.0.0.1".parse().unwrap();
    let peer = Peer { ip: "::ffff:127.0.0.1".parse::<IpAddr>().unwrap(), tls: true };
    let mut request = request("/a", &[("host", "h"), ("x-forwarded-for", "1.2.3.4")]);
    let arrival = admit(&mut request, peer, &trusted).unwrap();
    assert_eq!((arrival.client_ip.to_string().as_str(), arrival.https), ("1.2.3.4", true));
    let mut headers = HeaderMap::new();
    arrival.forward(&mut headers);
    assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "h");
}

#[test]
fn the_whole_internet_is_never_trusted() {
    for bad in ["0.0.0.0/0", "::/0", "10.0.0.0/33", "localhost", "10.0.0.0/8,x"] {
        assert!(bad.parse::<TrustedProxies>().is_err(), "{bad}");
    }
    assert!("".parse::<TrustedProxies>().unwrap() == TrustedProxies::default());
}

proptest! {
    /// A path that is let in is stable: nothing is left to decode, merge or cut.
    #[test]
    fn normal_paths_stay_what_they_are(path in "/[a-z0-9/.%;~A-F2-7\\\\:]{0,24}") {
        if let Ok(normal) = normalise(&path) {
            prop_assert_eq!(normalise(&normal).unwrap(), normal.as_ref());
            let decoded = percent_decode_str(&normal).decode_utf8().unwrap();
            prop_assert_eq!(percent_decode_str(&decoded).decode_utf8().unwrap(), decoded.as_ref());
            prop_assert_eq!(decoded.matches('/').count(), path.matches('/').count());
            prop_assert!(!decoded.contains("//") && !decoded.contains(['\\', ';', '%', '#', '?', '\0']));
            prop_assert!(!decoded.split('/').any(|s| s == "." || s == ".."));
        }
    }

    /// Anything at all: no panic.
    #[test]
    fn any_text_is_judged(path in ".{0,40}") {
        let _ = normalise(&path);
    }
}
