//! What clients may send, what the upstream is told, what clients learn.

use alchemi::clock::Timestamp;
use alchemi::context::Domain;
use alchemi::id::CountingIds;
use alchemi::layer::headers::RequestHeaders;
use alchemi::proxy::headers::{CallerFacts, CallerHeaders, ContextHeaders, Decision, Leaks, answer, stamp};
use alchemi::proxy::ingress::RequestId;
use alchemi::proxy::signed::ContextSigner;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    headers.iter().map(pair).collect()
}

fn take(headers: &[(&str, &str)]) -> Result<(RequestHeaders, HeaderMap), &'static str> {
    let mut map = map(headers);
    let taken = RequestHeaders::take(&mut map).map_err(|problem| {
        assert_eq!(problem.status(), 400);
        problem.code()
    })?;
    Ok((taken, map))
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_no_client_may_send_is_stripped() {
    let spoofed = [
        "x-alchemi-account-id",
        "x-alchemi-subject",
        "x-alchemi-roles",
        "x-alchemi-context",
        "x-alchemi-anything",
        "X-Alchemi-Account-Id",
        "x_alchemi_account_id",
        "x.alchemi.account.id",
        "X-Alchemi_Team.Id",
        "x_alchemi_team_id",
        "x-account-id",
        "x_account_id",
        "x.account.id",
        "x-account",
        "x-account-foo",
        "x-litellm-api-key",
        "x-litellm-end-user-id",
        "x-litellm-customer-id",
        "x_litellm_tags",
        "x.litellm.tags",
        "x-litellm-anything",
        "x-forwarded-for",
        "x_forwarded_for",
        "x-forwarded-uri",
        "x-real-ip",
        "forwarded",
        "x-request-id",
        "host",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "transfer-encoding",
        "content-length",
        "connection",
        "expect",
        "http2-settings",
        // What says how to read the body, in another's spelling.
        "content_type",
        "Content.Encoding",
        "content_length",
        "transfer_encoding",
    ];
    for name in spoofed {
        let (_, left) = take(&[(name, "v1"), ("accept", "x")]).unwrap();
        assert_eq!(names(&left), ["accept"], "{name}");
    }
    for name in
        ["content-type", "user-agent", "anthropic-version", "x-stainless-lang", "traceparent", "idempotency-key"]
    {
        let (_, left) = take(&[(name, "v1")]).unwrap();
        assert_eq!(left[name], "v1");
    }
}

#[test]
fn headers_that_connection_names_are_stripped() {
    let (_, left) = take(&[
        ("connection", "close, x-one , X-Account-Id"),
        ("connection", "Keep-Alive,x-two,,\"bad\""),
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-three", "3"),
    ])
    .unwrap();
    assert_eq!(names(&left), ["x-three"]);
}

#[test]
fn the_request_headers_are_read() {
    let (taken, left) = take(&[
        ("x-alchemi-domain", "console"),
        ("x-alchemi-team-id", "t1"),
        ("x-alchemi-agent-id", "a1"),
        ("x-alchemi-connection-id", "c1"),
        ("x-account-id", "acc"),
        ("x-alchemi-explain", "1"),
    ])
    .unwrap();
    assert_eq!(taken.domain, Some(Domain::Console));
    assert_eq!(taken.team_id.as_deref(), Some("t1"));
    assert_eq!(taken.agent_id.as_deref(), Some("a1"));
    assert_eq!(taken.connection_id.as_deref(), Some("c1"));
    assert_eq!(taken.account_id.as_deref(), Some("acc"));
    assert!(taken.explain && left.is_empty());
}

#[test]
fn disguised_request_headers_are_not_read() {
    let (taken, left) = take(&[("x_account_id", "a"), ("x.alchemi.domain", "nowhere"), ("x_api_key", "k")]).unwrap();
    assert!(taken.account_id.is_none() && taken.domain.is_none() && taken.bearer.is_none());
    assert_eq!(names(&left), ["x_api_key"]);
}

#[test]
fn repeated_listed_and_malformed_values_are_refused() {
    for name in ["x-account-id", "x-alchemi-team-id", "x-alchemi-agent-id", "x-alchemi-connection-id"] {
        let long = "x".repeat(256);
        for values in [&["a", "b"][..], &["a", "a"], &["a,b"], &[""], &["a b"], &["\u{e9}"], &[&long]] {
            let headers: Vec<_> = values.iter().map(|value| (name, *value)).collect();
            assert_eq!(take(&headers).err(), Some("invalid_header"), "{name}: {values:?}");
        }
    }
    assert_eq!(take(&[("x-alchemi-domain", "both")]).err(), Some("invalid_header"));
    assert_eq!(take(&[("x-alchemi-domain", "console"), ("x-alchemi-domain", "console")]).err(), Some("invalid_header"));
}

fn token(headers: &[(&str, &str)]) -> Result<Option<String>, &'static str> {
    take(headers).map(|(taken, _)| taken.bearer.map(|bearer| bearer.token().to_owned()))
}

#[test]
fn one_token_is_found_wherever_sdks_put_it() {
    let some = |token: &str| Ok(Some(token.to_owned()));
    for header in [
        ("authorization", "Bearer t.o.k"),
        ("authorization", "bearer   t.o.k"),
        ("x-api-key", "t.o.k"),
        ("api-key", "t.o.k"),
    ] {
        assert_eq!(token(&[header]), some("t.o.k"), "{header:?}");
    }
    assert_eq!(token(&[("authorization", "Bearer t"), ("x-api-key", "t"), ("api-key", "t")]), some("t"));
    for pair in [
        [("authorization", "Bearer a"), ("x-api-key", "b")],
        [("x-api-key", "a"), ("api-key", "b")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        [("x-api-key", "a"), ("x-api-key", "b")],
    ] {
        assert_eq!(token(&pair), Err("ambiguous_credentials"), "{pair:?}");
    }
    for malformed in
        ["Basic dTpw", "Bearer", "Bearer ", "Bearer a b", "a", "", "Bearer \u{e9}", "Bearer \ta", "Token a", "Bearera"]
    {
        assert_eq!(token(&[("authorization", malformed)]), Ok(None), "{malformed}");
    }
    assert_eq!(token(&[("cookie", "token=a"), ("proxy-authorization", "Bearer a")]), Ok(None));
}

#[test]
fn a_token_is_never_shown() {
    let (taken, _) = take(&[("authorization", "Bearer canary")]).unwrap();
    assert!(!format!("{taken:?}").contains("canary"));
}

fn id() -> RequestId {
    RequestId::new(&CountingIds::default(), Timestamp::default())
}

fn facts() -> CallerFacts<'static> {
    CallerFacts {
        account_id: "acme",
        subject: "sub-1",
        roles: &[],
        scopes: &[],
        product_domains: &[],
        domain: Domain::Copilot,
        org_id: None,
        team_id: None,
        user_id: None,
    }
}

fn context<'a>(id: &'a RequestId, facts: CallerFacts<'a>, written: &'a CallerHeaders) -> ContextHeaders<'a> {
    ContextHeaders {
        facts,
        written,
        agent_id: None,
        reserved: false,
        signer: None,
        now: Timestamp::from_secs(1_700_000_000),
        request_id: id,
        credential: None,
        litellm: true,
    }
}

#[test]
fn the_upstream_is_told_once_who_is_calling() {
    let id = id();
    let roles = ["account_admin".to_owned(), "odd, one".to_owned(), "ümlaut".to_owned()];
    let domains = ["console".to_owned(), "copilot".to_owned()];
    let credential = HeaderValue::from_static("Bearer sk-ours");
    let signer = ContextSigner::try_from("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned()).unwrap();
    let facts = CallerFacts {
        subject: "a%b c\u{e9}\r\nx: y",
        roles: &roles,
        product_domains: &domains,
        org_id: Some("o"),
        team_id: Some("t"),
        user_id: Some("u"),
        ..facts()
    };
    let written = facts.headers(true);
    let context = ContextHeaders {
        agent_id: Some("g"),
        reserved: true,
        signer: Some(&signer),
        credential: Some(&credential),
        ..context(&id, facts, &written)
    };
    let (caller, mut headers) = take(&[
        ("authorization", "Bearer theirs"),
        ("x-api-key", "theirs"),
        ("api_key", "theirs"),
        ("cookie", "token=theirs"),
        ("x-goog-api-key", "theirs"),
        ("ocp-apim-subscription-key", "theirs"),
        ("accept-encoding", "gzip"),
        ("range", "bytes=0-3"),
        ("if-none-match", "*"),
        ("openai-organization", "org-x"),
        ("x-alchemi-account-id", "evil"),
        ("x_alchemi_account_id", "evil"),
        ("x-request-id", "evil"),
        ("content-type", "application/json"),
    ])
    .unwrap();
    context.set(&mut headers, &caller);
    let trace = id.as_str().replace('-', "");
    let signed = headers["x-alchemi-context"].to_str().unwrap().to_owned();
    let expected = [
        ("authorization", "Bearer sk-ours"),
        ("content-type", "application/json"),
        ("traceparent", &format!("00-{trace}-{}-00", &trace[16..])),
        ("x-alchemi-account-id", "acme"),
        ("x-alchemi-agent-id", "g"),
        ("x-alchemi-context", &signed),
        ("x-alchemi-domain", "copilot"),
        ("x-alchemi-org-id", "o"),
        ("x-alchemi-product-domains", "console,copilot"),
        ("x-alchemi-reservation-id", id.as_str()),
        ("x-alchemi-roles", "account_admin,odd%2C%20one,%C3%BCmlaut"),
        ("x-alchemi-scopes", ""),
        ("x-alchemi-subject", "a%25b%20c%C3%A9%0D%0Ax:%20y"),
        ("x-alchemi-team-id", "t"),
        ("x-alchemi-user-id", "u"),
        ("x-litellm-call-id", id.as_str()),
        ("x-litellm-customer-id", "acme:u"),
        ("x-litellm-tags", "account:acme,domain:copilot,org:o,team:t,agent:g"),
        ("x-request-id", id.as_str()),
    ];
    assert_eq!(headers, map(&expected));
    assert_eq!(headers.len(), expected.len(), "every header stands once");
    // An independent reader of JWTs believes it, with the shared key alone.
    let key = jsonwebtoken::DecodingKey::from_secret(b"0123456789abcdef0123456789abcdef");
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    validation.validate_exp = false;
    let token = jsonwebtoken::decode::<serde_json::Value>(&signed, &key, &validation).unwrap();
    assert_eq!(token.claims["account_id"], "acme");
    assert_eq!(token.claims["roles"][0], "account_admin");
    assert_eq!(token.claims["exp"], 1_700_000_060_i64);
}

#[test]
fn without_our_own_credential_theirs_still_stays_here() {
    let id = id();
    let (caller, mut headers) = take(&[("authorization", "Bearer theirs"), ("x-api-key", "theirs")]).unwrap();
    let written = facts().headers(false);
    ContextHeaders { litellm: false, ..context(&id, facts(), &written) }.set(&mut headers, &caller);
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-api-key"));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("x-litellm-")));
}

#[test]
fn a_request_that_passes_through_keeps_what_is_its_own() {
    let own = [("authorization", "Bearer sk-1"), ("cookie", "a=b"), ("accept-encoding", "gzip")];
    let (_, headers) = take(&[&own[..], &[("x-litellm-tags", "x"), ("x-alchemi-roles", "x")]].concat()).unwrap();
    assert_eq!(headers, map(&own));
}

#[test]
fn a_valid_trace_is_continued() {
    let id = id();
    let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = |sent: &[&str]| {
        let mut headers: Vec<_> = sent.iter().map(|value| ("traceparent", *value)).collect();
        headers.push(("tracestate", "a=b"));
        let (caller, mut headers) = take(&headers).unwrap();
        let written = facts().headers(true);
        context(&id, facts(), &written).set(&mut headers, &caller);
        assert_eq!(headers.get_all("traceparent").iter().count(), 1);
        (headers["traceparent"].to_str().unwrap().to_owned(), headers.contains_key("tracestate"))
    };
    assert_eq!(trace(&[valid]), (valid.to_owned(), true));
    let future = format!("01{}-what-comes", &valid[2..]);
    assert_eq!(trace(&[&future]), (future.clone(), true));
    for invalid in [
        "",
        "x",
        &valid.to_uppercase(),
        &valid[..54],
        &format!("{valid}-x"),
        &valid.replacen("00", "ff", 1),
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ] {
        let (made, state) = trace(&[invalid]);
        assert!(made.starts_with("00-") && made.len() == 55 && made != invalid && !state, "{invalid}");
    }
    assert_ne!(trace(&[valid, valid]).0, valid);
}

#[test]
fn answers_say_nothing_about_what_is_behind_us() {
    let id = id();
    let upstream = [
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("x-litellm-model-api-base", "http://10.0.0.1"),
        ("x-litellm-key-spend", "12.5"),
        ("x-litellm-key-tpm-limit", "1"),
        ("set-cookie", "a=b"),
        ("llm_provider-set-cookie", "a=b"),
        ("x-alchemi-account-id", "x"),
        ("x-request-id", "theirs"),
        ("content-type", "text/event-stream"),
        ("x-litellm-response-cost", "0.1"),
    ];
    let mut headers = map(&upstream);
    answer(&mut headers, &Leaks::default(), &id, Decision::Allow);
    let kept = [
        ("content-type", "text/event-stream"),
        ("x-alchemi-decision", "allow"),
        ("x-litellm-response-cost", "0.1"),
        ("x-request-id", id.as_str()),
    ];
    assert_eq!(headers, map(&kept));

    let mut headers = map(&upstream);
    answer(&mut headers, &Leaks::none(), &id, Decision::Allow);
    assert!(headers.contains_key("set-cookie") && !headers.contains_key("x-hop"));

    let configured: Leaks = serde_json::from_str(r#"["x-litellm-*"]"#).unwrap();
    let mut headers = map(&upstream);
    answer(&mut headers, &configured, &id, Decision::Allow);
    assert!(!headers.keys().any(|name| name.as_str().starts_with("x-litellm-")));
}

#[test]
fn refusals_carry_their_code() {
    let mut headers = HeaderMap::new();
    let id = id();
    stamp(&mut headers, &id, Decision::Deny("model_denied"));
    assert_eq!(headers, map(&[("x-request-id", id.as_str()), ("x-alchemi-decision", "deny;code=model_denied")]));
}

proptest! {
    /// No spelling of our names gets past, whatever else is sent.
    #[test]
    fn no_disguise_gets_past(
        name in "[xX][-_.](alchemi|litellm|account)[-_.][a-z]{1,8}([-_.][a-z]{1,5})?",
        more in prop::collection::vec(("[a-z]{1,12}", "[ -~]{0,20}"), 0..8),
    ) {
        let mut headers: Vec<(&str, &str)> = more.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.push((&name, "v"));
        if let Ok((_, left)) = take(&headers) {
            let folded: Vec<String> = left.keys().map(|name| name.as_str().replace(['_', '.'], "-")).collect();
            prop_assert!(!folded.iter().any(|n| n.starts_with("x-alchemi-") || n.starts_with("x-litellm-") || n.starts_with("x-account")));
        }
    }

    /// Values arrive as one header each and decode to what they were.
    #[test]
    fn values_survive(subject in ".{0,40}") {
        let id = id();
        let mut headers = HeaderMap::new();
        let facts = CallerFacts { subject: &subject, ..facts() };
        let written = facts.headers(true);
        context(&id, facts, &written).set(&mut headers, &RequestHeaders::default());
        let sent = headers["x-alchemi-subject"].to_str().unwrap();
        prop_assert!(sent.bytes().all(|b| b.is_ascii_graphic()));
        prop_assert_eq!(percent_encoding::percent_decode_str(sent).decode_utf8().unwrap(), subject);
    }
}
