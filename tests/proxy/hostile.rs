//! The threat model, line by line: each practice and the tests that show it, held to the files that they stand in; and
//! here, those that no other file has a better place for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Client, backends};
use crate::{Stage, chat, with};

/// Files of tests, and functions in them.
type Tests = &'static [(&'static str, &'static str)];

/// Of the threat model: its number, what is practised, and the file and tests that show it.
const SHOWN: &[(u8, &str, Tests)] = &[
    (
        1,
        "algorithms are pinned by the key",
        &[
            ("identity/tokens.rs", "forged_and_malformed_headers_are_refused_without_asking_the_issuer"),
            ("identity/tokens.rs", "altered_tokens_are_refused"),
            ("proxy/tokens.rs", "what_is_not_to_be_believed_is_401_in_every_plane"),
        ],
    ),
    (
        2,
        "a kid is only a key of a map",
        &[
            ("identity/tokens.rs", "forged_and_malformed_headers_are_refused_without_asking_the_issuer"),
            ("cli/hostile.rs", "bombs_and_monsters_are_refused_unread"),
        ],
    ),
    (3, "no key comes with its token", &[("proxy/hostile.rs", "nobody_follows_a_header_to_a_key")]),
    (
        4,
        "issuer, audience and type are exact",
        &[
            ("identity/tokens.rs", "claims_of_the_wrong_kind_are_refused"),
            ("identity/tokens.rs", "an_issuer_speaks_only_for_itself"),
            ("identity/logout.rs", "a_logout_token_says_whom_it_ends_and_is_never_an_access_token"),
        ],
    ),
    (
        5,
        "times are required, and clocks may jump",
        &[
            ("identity/tokens.rs", "a_cached_token_ends_with_itself"),
            ("identity/keys.rs", "a_clock_that_goes_back_neither_panics_nor_freezes_the_keys"),
            ("nemesis/main.rs", "the_books_agree_with_the_upstream_whatever_happens"),
        ],
    ),
    (
        6,
        "nothing can be read in two ways",
        &[
            ("identity/tokens.rs", "payloads_that_two_readers_could_read_differently_are_refused"),
            ("identity/tokens.rs", "unused_bits_do_not_make_another_token"),
        ],
    ),
    (
        7,
        "signatures of every kind",
        &[
            ("identity/wycheproof.rs", "json_web_signature"),
            ("identity/wycheproof.rs", "json_web_crypto"),
            ("identity/tokens.rs", "every_accepted_algorithm_verifies"),
        ],
    ),
    (
        8,
        "weak keys are dropped",
        &[
            ("identity/keys.rs", "keys_that_cannot_be_trusted_are_dropped_and_the_others_stay"),
            ("identity/keys.rs", "a_kid_that_names_two_keys_names_none"),
            ("identity/wycheproof.rs", "json_web_key"),
        ],
    ),
    (
        9,
        "unknown kids cost one fetch",
        &[("identity/keys.rs", "ten_thousand_unknown_kids_cost_one_fetch_per_cooldown")],
    ),
    (
        10,
        "an issuer that is away",
        &[
            ("identity/keys.rs", "an_outage_is_bridged_for_known_keys_and_then_fails_closed"),
            ("identity/keys.rs", "an_unreachable_issuer_is_a_503"),
        ],
    ),
    (
        11,
        "keys change",
        &[
            ("identity/keys.rs", "a_new_key_is_accepted_after_one_fetch_and_a_removed_one_stops"),
            ("identity/keys.rs", "a_fetch_outlives_the_caller_who_caused_it"),
        ],
    ),
    (
        12,
        "a cached token is the whole token, and what this configuration says",
        &[
            ("identity/tokens.rs", "tokens_with_a_common_prefix_are_different_tokens"),
            ("identity/tokens.rs", "one_token_means_what_each_configuration_says"),
            ("identity/tokens.rs", "revocations_stop_cached_tokens_at_once"),
        ],
    ),
    (
        13,
        "context headers are ours",
        &[
            ("proxy/context.rs", "context_arrives_exactly_once_with_our_value_whatever_the_caller_spells"),
            ("proxy/listener.rs", "http2_is_governed_like_http1"),
            ("wire/headers.rs", "no_disguise_gets_past"),
        ],
    ),
    (
        14,
        "nobody steers the upstream",
        &[
            ("proxy/steering.rs", "no_caller_sets_what_the_upstream_does"),
            ("proxy/steering.rs", "servers_and_stored_prompts_are_not_the_callers_to_name"),
            ("proxy/context.rs", "with_pass_through_off_the_upstreams_key_is_no_credential"),
        ],
    ),
    (
        15,
        "one request is one request",
        &[
            ("wire/framing.rs", "every_case_is_refused_or_read_as_what_it_holds"),
            ("wire/framing.rs", "no_split_of_any_case_changes_what_is_read"),
        ],
    ),
    (16, "one plain host", &[("wire/ingress.rs", "hosts_are_plain_and_single")]),
    (
        17,
        "what is routed is what is sent",
        &[
            ("wire/routes.rs", "no_variant_of_a_path_leads_elsewhere"),
            ("proxy/refused.rs", "what_is_not_governed_is_not_forwarded"),
            ("proxy/refused.rs", "our_own_prefixes_are_never_forwarded"),
        ],
    ),
    (
        18,
        "proxies in front are named",
        &[
            ("proxy/listener.rs", "proxies_in_front_are_believed_when_they_are_ours"),
            ("wire/ingress.rs", "the_whole_internet_is_never_trusted"),
        ],
    ),
    (
        19,
        "a body has one reading",
        &[
            ("proxy/hostile.rs", "bodies_that_are_no_json_go_nowhere"),
            ("proxy/hostile.rs", "the_upstream_runs_the_model_that_was_authorised"),
            ("metering/ask.rs", "the_authorised_model_is_the_one_that_any_parser_reads"),
        ],
    ),
    (
        20,
        "encoded bodies are refused, forms are strict",
        &[
            ("cli/hostile.rs", "bombs_and_monsters_are_refused_unread"),
            ("metering/multipart.rs", "what_decides_is_a_single_plain_field"),
        ],
    ),
    (
        21,
        "everything has a limit",
        &[
            ("cli/hostile.rs", "slow_clients_do_not_slow_others"),
            ("proxy/steering.rs", "a_first_head_has_its_time"),
            ("proxy/listener.rs", "a_body_that_does_not_arrive_is_not_waited_for"),
            ("wire/forward.rs", "a_body_that_never_pauses_ends"),
        ],
    ),
    (
        22,
        "floods of frames",
        &[
            ("cli/hostile.rs", "floods_of_http2_frames_end_their_connection_and_hurt_nobody_else"),
            ("cli/hostile.rs", "requests_that_are_reset_are_settled"),
        ],
    ),
    (
        28,
        "patterns take linear time",
        &[
            ("proxy/guardrails.rs", "a_large_prompt_is_screened_in_time"),
            ("v1/guardrails.rs", "a_pattern_is_refused_with_the_reason"),
        ],
    ),
    (
        29,
        "no secret comes out",
        &[
            ("v1/canary.rs", "no_secret_comes_out_anywhere"),
            ("cli/hostile.rs", "bombs_and_monsters_are_refused_unread"),
            ("metering/ask.rs", "no_message_holds_a_value"),
        ],
    ),
    (
        30,
        "browsers of named origins alone",
        &[("proxy/listener.rs", "browsers_of_named_origins_may_call_the_control_plane")],
    ),
    (31, "tenants share no cache", &[("proxy/hostile.rs", "tenants_share_nothing_that_is_cached")]),
    (
        32,
        "an idempotency key is of its account and route",
        &[
            ("v1/idempotency.rs", "a_key_belongs_to_account_caller_and_route"),
            ("v1/idempotency.rs", "concurrent_posts_with_one_key_do_one_thing"),
        ],
    ),
];

#[test]
fn every_line_of_the_threat_model_has_its_tests() {
    let numbers: Vec<u8> = SHOWN.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=22).chain(28..=32).collect::<Vec<u8>>());
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (number, practice, shown) in SHOWN {
        for (file, name) in *shown {
            let text = std::fs::read_to_string(tests.join(file)).unwrap();
            assert!(text.contains(&format!("fn {name}(")), "{number} ({practice}): {file} has no {name}");
        }
    }
}

#[tokio::test]
async fn nobody_follows_a_header_to_a_key() {
    let stage = Stage::set().await;
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", trap.local_addr().unwrap());
    let good = stage.ada.token().to_owned();
    let (header, rest) = good.split_once('.').unwrap();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    for (name, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!(["AAAA"])),
        ("jwk", json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"})),
        ("kid", json!(url)),
        ("kid", json!("../../../dev/null")),
        ("kid", json!("' UNION SELECT 1 --")),
        ("kid", json!("\r\nx-alchemi-account-id: evil")),
    ] {
        let forged = with(header.clone(), name, value.clone());
        let token = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(forged.to_string()));
        let reply = stage.gateway.anybody().with_token(&token).post("/v1/chat/completions", chat("gpt-4o")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "token_invalid"), "{name}: {value}");
    }
    let came = tokio::time::timeout(std::time::Duration::from_millis(300), trap.accept()).await;
    assert!(came.is_err(), "somebody asked where a token's header points");
}

/// What is no JSON, as the value of a member that nobody knows (after the cases of JSONTestSuite).
const NO_VALUES: &[&str] = &[
    "[1 true]",
    "[a]",
    "[\"\": 1]",
    "[\"\"],",
    "[,1]",
    "[1,,2]",
    "[\"x\"]]",
    "[,]",
    "[-]",
    "[",
    "[1,",
    "[{}",
    "[fals]",
    "[nul]",
    "[tru]",
    "[++1234]",
    "[+1]",
    "[+Inf]",
    "[-01]",
    "[-1.0.]",
    "[-2.]",
    "[-NaN]",
    "[.-1]",
    "[.2e-3]",
    "[0.1.2]",
    "[0.3e+]",
    "[0.3e]",
    "[0.e1]",
    "[0E]",
    "[1.0e+]",
    "[1 000.0]",
    "[1eE2]",
    "[2.e+3]",
    "[9.e+]",
    "[Inf]",
    "[NaN]",
    "[\u{ff11}]",
    "[1+2]",
    "[0x1]",
    "[0x42]",
    "[Infinity]",
    "[0e+-1]",
    "[-123.123foo]",
    "[-Infinity]",
    "[-foo]",
    "[- 1]",
    "[-012]",
    "[-.123]",
    "[1ea]",
    "[1.]",
    "[.123]",
    "[1.2a-3]",
    "[012]",
    "[\"x\", truth]",
    "{[: \"x\"}",
    "{\"x\", null}",
    "{\"x\"::\"b\"}",
    "{key: 'value'}",
    "{\"a\":\"a\" 123}",
    "{\u{1f1e8}\u{1f1ed}}",
    "{:\"b\"}",
    "{\"a\" b}",
    "{\"a\":",
    "{\"a\"",
    "{1:1}",
    "{9999E9999:1}",
    "{null:null,null:null}",
    "{\"id\":0,,,,,}",
    "{'a':0}",
    "{\"id\":0,}",
    "{\"a\":\"b\"}/**/",
    "{\"a\":\"b\"}//",
    "{\"a\":\"b\",,\"c\":\"d\"}",
    "{a: \"b\"}",
    "[\"\\uD800\\\"]",
    "[\"\\uD800\\u\"]",
    "[\"\\uD800\\u1\"]",
    "[\"\\x00\"]",
    "[\"\\\\\\\"]",
    "[\"\\\t\"]",
    "[\"\\\u{1f300}\"]",
    "[\"\\\"]",
    "[\"\\u00A\"]",
    "[\"\\uD834\\uDd\"]",
    "[\"\\uqqqq\"]",
    "[\\u0020\"asd\"]",
    "[\\n]",
    "\"",
    "['single quote']",
    "[\"\\",
    "[\"a\u{0}a\"]",
    "[\"new\nline\"]",
    "[\"\t\"]",
    "\"\\UA66D\"",
    "\"\"x",
    "<.>",
    "[<null>]",
    "[1]x",
    "[1]]",
    "[\"asd]",
    "a\u{e5}",
    "[True]",
    "1]",
    "{\"x\": true,",
    "[][]",
    "]",
    "{}}",
    "[\u{2060}]",
    "[\u{c}]",
    "2@",
    "{\"\":",
    "[\u{a0}]",
    "nul",
    "tru",
    "\u{0}",
    "1 2",
    "{\"a\":1}{\"b\":2}",
];

async fn send(client: &Client, body: Vec<u8>) -> crate::common::Reply {
    let request = client.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    client.send(request.body(body)).await
}

#[tokio::test]
async fn bodies_that_are_no_json_go_nowhere() {
    let stage = Stage::set().await;
    let valid = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]}"#;
    let member = |value: &str| format!(r#"{{"model":"gpt-4o-mini","messages":[],"x":{value}}}"#).into_bytes();
    let in_string =
        |bytes: &[u8]| [br#"{"model":"gpt-4o-mini","messages":[],"x":""#.as_slice(), bytes, b"\"}"].concat();
    let utf16 = |order: fn(u16) -> [u8; 2]| valid.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    let mut bodies: Vec<Vec<u8>> = NO_VALUES.iter().map(|value| member(value)).collect();
    bodies.extend([
        Vec::new(),
        b" ".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"model\"".to_vec(),
        format!("[{valid}]").into_bytes(),
        format!("\u{feff}{valid}").into_bytes(),
        format!("{valid}\0").into_bytes(),
        format!("{valid}{valid}").into_bytes(),
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
        in_string(&[0xff]),
        in_string(&[0xc0, 0xaf]),
        in_string(&[0xed, 0xa0, 0x80]),
        in_string(&[0xf4, 0xbf, 0xbf, 0xbf]),
        in_string(&[0xe0, 0x80]),
        member(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
        member(&"{\"a\":".repeat(100_000)),
    ]);
    for body in bodies {
        let shown: String = String::from_utf8_lossy(&body).chars().take(120).collect();
        let reply = send(&stage.ada, body).await;
        assert_eq!(reply.status, 400, "{shown}: {}", reply.text());
    }
    assert_eq!(stage.gateway.forwarded(), [], "nothing of it reaches the upstream");
    assert_eq!(stage.counter().await, (0, 0));
}

#[tokio::test]
async fn the_upstream_runs_the_model_that_was_authorised() {
    let stage = Stage::set().await;
    let member = |name: &str, value: &str| format!(r#"{{"model":"gpt-4o-mini","messages":[],"{name}":{value}}}"#);
    let bodies = [
        r#"{"mod\u0065l":"gpt-4o\u002dmini","messages":[]}"#.to_owned(),
        "\t\r\n {\"messages\" : [ ] ,\n\"model\"\t:\r\"gpt-4o-mini\" } \n".to_owned(),
        member("x", r#"{"model":"gpt-4o","model":"gpt-4"}"#),
        member("x", "1e400"),
        member("x", "-1e-400"),
        member("x", "123456789012345678901234567890"),
        member("x", r#""\ud800""#),
        member("x", r#""\udc00\ud800""#),
        member("x", r#""\u0000""#),
        member("MODEL", r#""gpt-4o""#),
        member("model ", r#""gpt-4o""#),
        member("x", &format!("{}{}", "[".repeat(60), "]".repeat(60))),
    ];
    for body in bodies {
        let reply = send(&stage.ada, body.clone().into_bytes()).await;
        // What one of them cannot read, it refuses: the dev upstream here, with LiteLLM's envelope.
        assert!([200, 400].contains(&reply.status.as_u16()), "{body}: {}", reply.text());
        let Some(sent) = stage.gateway.forwarded().pop() else { continue };
        if let Ok(read) = serde_json::from_slice::<Value>(&sent.body) {
            assert_eq!(read["model"], "gpt-4o-mini", "{body}");
        }
    }
    let rows = stage.gateway.ledger(&stage.account).await;
    assert!(rows.iter().all(|row| row["model_name"] == "gpt-4o-mini"), "{rows:?}");
}

/// Two accounts with the same subjects, teams and questions, at once.
#[tokio::test]
async fn tenants_share_nothing_that_is_cached() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let other = stage.gateway.account("Other").await;
        stage.gateway.allocate(&other, "1000").await;
        stage.gateway.grant(&other, "copilot", "gpt-4o-mini", ("account", &other), "allow").await;
        let theirs = stage.gateway.as_end_user(&other, "ada");
        let ask = async |n: usize| {
            let (client, account) = if n.is_multiple_of(2) { (&stage.ada, &stage.account) } else { (&theirs, &other) };
            // The one may use what the other may not.
            let model = if n.is_multiple_of(3) { "gpt-4o" } else { "gpt-4o-mini" };
            let body = with(chat(model), "messages", json!([{"role": "user", "content": format!("of {account}")}]));
            let reply = client.post("/v1/chat/completions", body).await;
            let may = n.is_multiple_of(2) || model == "gpt-4o-mini";
            assert_eq!(reply.status == 200, may, "{n}: {}", reply.text());
        };
        futures_util::future::join_all((0..60).map(ask)).await;
        let seen = stage.gateway.forwarded();
        assert_eq!(seen.len(), 50);
        for sent in seen {
            let body = String::from_utf8(sent.body.to_vec()).unwrap();
            let account = sent.header_values("x-alchemi-account-id");
            assert!(account.len() == 1 && body.contains(&format!("of {}", account[0])), "{account:?}: {body}");
        }
    }
}
