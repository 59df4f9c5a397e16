use std::time::Duration;

use alchemi::credits::Usd;
use alchemi::metering::json::{Reported, read_usage};
use alchemi::model::usage::{RouteKind, Tokens};
use proptest::prelude::*;

use crate::fixture;

fn read(kind: RouteKind, body: &str) -> Reported {
    read_usage(kind, body.as_bytes())
}

#[test]
fn captured_answers() {
    for (name, kind, input, output) in [
        ("chat_mock", RouteKind::Chat, 10, 20),
        ("chat_upstream", RouteKind::Chat, 19, 21),
        ("responses", RouteKind::Responses, 9, 5),
        ("responses_mock", RouteKind::Responses, 36, 87),
        ("messages", RouteKind::Messages, 9, 5),
        ("messages_claude_mock", RouteKind::Messages, 2095, 503),
        ("messages_claude_mock_stream", RouteKind::Messages, 2095, 503),
        ("embeddings", RouteKind::Embeddings, 2, 0),
    ] {
        let reported = read_usage(kind, &fixture::response(name).body);
        assert_eq!(reported.tokens.map(|t| (t.input, t.output)), Some((input, output)), "{name}");
        assert_eq!(reported.cost, None, "{name}");
    }
    assert!(read_usage(RouteKind::Chat, &fixture::response("err_upstream_429").body).is_empty());
}

#[test]
fn finer_counts_of_openai() {
    let reported = read(
        RouteKind::Chat,
        r#"{"id":"x","usage":{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,
            "prompt_tokens_details":{"cached_tokens":60,"audio_tokens":5},
            "completion_tokens_details":{"reasoning_tokens":30,"audio_tokens":null},"cost":1.545e-05}}"#,
    );
    assert_eq!(
        reported.tokens,
        Some(Tokens { input: 100, output: 50, cached: 60, reasoning: 30, audio_input: 5, ..Tokens::default() })
    );
    assert_eq!(reported.cost, Some(Usd::from_nanos(15_450)));
}

#[test]
fn anthropic_counts_its_cache_apart_and_litellm_does_not() {
    let usage = r#"{"usage":{"input_tokens":10,"output_tokens":5,"cache_read_input_tokens":100,"cache_creation_input_tokens":7}}"#;
    let whole = Tokens { input: 117, output: 5, cached: 100, cache_creation: 7, ..Tokens::default() };
    assert_eq!(read(RouteKind::Messages, usage).tokens, Some(whole));
    let chat = r#"{"usage":{"prompt_tokens":117,"completion_tokens":5,"cache_read_input_tokens":100,"cache_creation_input_tokens":7,
                   "prompt_tokens_details":{"cached_tokens":100}}}"#;
    assert_eq!(read(RouteKind::Chat, chat).tokens, Some(whole));
}

#[test]
fn zero_is_zero_and_nothing_is_nothing() {
    let zero = read(RouteKind::Chat, r#"{"usage":{"prompt_tokens":0,"completion_tokens":0,"cost":0.0}}"#);
    assert_eq!((zero.tokens, zero.cost), (Some(Tokens::default()), Some(Usd::ZERO)));
    for nothing in [
        "",
        "plain text",
        "[]",
        "{}",
        r#"{"usage":null}"#,
        r#"{"usage":{}}"#,
        r#"{"usage":"x"}"#,
        r#"{"usage":{"prompt_tokens":null,"cost":null}}"#,
        r#"{"usage":{"prompt_tokens":-1,"cost":-0.5}}"#,
        r#"{"usage":{"cost":"NaN"}}"#,
        r#"{"usage":{"prompt_tokens":1000000001,"cost":100000.01}}"#,
    ] {
        assert!(read(RouteKind::Chat, nothing).is_empty(), "{nothing}");
    }
}

#[test]
fn one_bad_part_spoils_no_other() {
    let reported = read(
        RouteKind::Chat,
        r#"{"usage":{"prompt_tokens":3.0,"completion_tokens":1,"prompt_tokens_details":"x","cost":{"total":1}},"duration":{},"data":{}}"#,
    );
    assert_eq!(reported.tokens.map(|t| (t.input, t.output)), Some((3, 1)));
    assert_eq!(reported.cost, None);
    let counts = r#""prompt_tokens":3,"completion_tokens":1"#;
    for bad in [
        r#","prompt_tokens_details":1e999"#,
        r#","prompt_tokens_details":[7]"#,
        r#","prompt_tokens_details":{"cached_tokens":1,"cached_tokens":2}"#,
        r#","completion_tokens_details":"\ud800""#,
        r#","total_tokens":1e999"#,
    ] {
        let reported = read(RouteKind::Chat, &format!(r#"{{"usage":{{{counts}{bad}}}}}"#));
        assert_eq!(reported.tokens.map(|t| (t.input, t.output, t.cached)), Some((3, 1, 0)), "{bad}");
    }
    for usage in ["[3,1]", "1e999", r#""\ud800""#, r#"{"prompt_tokens":3,"prompt_tokens":4}"#] {
        let reported = read(RouteKind::Images, &format!(r#"{{"usage":{usage},"data":[{{}},{{}}]}}"#));
        assert_eq!((reported.images, reported.tokens), (Some(2), None), "{usage}");
    }
    let no_text = b"{\"choices\":[{\"text\":\"\xff\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}";
    assert_eq!(read_usage(RouteKind::Chat, no_text).tokens.map(|t| (t.input, t.output)), Some((3, 1)));
}

#[test]
fn details_in_both_spellings_are_one() {
    let usage = r#"{"usage":{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"audio_tokens":2},
        "input_tokens_details":{"cached_tokens":4},"output_tokens_details":{"reasoning_tokens":3},"completion_tokens_details":null}}"#;
    let tokens = read(RouteKind::Chat, usage).tokens.unwrap();
    assert_eq!((tokens.input, tokens.output, tokens.cached, tokens.audio_input, tokens.reasoning), (9, 5, 4, 2, 3));
}

#[test]
fn of_two_counts_and_their_sum_one_may_be_missing() {
    for (usage, expected) in [
        (r#"{"prompt_tokens":100,"total_tokens":150}"#, (100, 50)),
        (r#"{"prompt_tokens":100,"completion_tokens":-1,"total_tokens":150}"#, (100, 50)),
        (r#"{"input_tokens":8,"output_tokens":"4","total_tokens":12}"#, (8, 4)),
        (r#"{"completion_tokens":50,"total_tokens":150}"#, (100, 50)),
        (r#"{"prompt_tokens":8,"total_tokens":8}"#, (8, 0)),
        (r#"{"total_tokens":12}"#, (12, 0)),
    ] {
        let tokens = read(RouteKind::Chat, &format!(r#"{{"usage":{usage}}}"#)).tokens;
        assert_eq!(tokens.map(|t| (t.input, t.output)), Some(expected), "{usage}");
    }
}

#[test]
fn other_kinds() {
    let audio = read(RouteKind::Transcription, r#"{"text":"hi","usage":{"type":"duration","seconds":9}}"#);
    assert_eq!((audio.duration, audio.tokens), (Some(Duration::from_secs(9)), None));
    let verbose = read(RouteKind::Transcription, r#"{"duration":3.1,"text":"hi"}"#);
    assert_eq!(verbose.duration, Some(Duration::from_millis(3100)));
    let images = read(RouteKind::Images, r#"{"created":1,"data":[{"b64_json":"AA"},{"url":"x"}]}"#);
    assert_eq!((images.images, images.tokens), (Some(2), None));
    let rerank = read(
        RouteKind::Rerank,
        r#"{"results":[],"meta":{"billed_units":{"search_units":1},"tokens":{"input_tokens":8}}}"#,
    );
    assert_eq!((rerank.queries, rerank.tokens.map(|t| t.input)), (Some(1), Some(8)));
    let total = read(RouteKind::Rerank, r#"{"usage":{"total_tokens":12}}"#);
    assert_eq!(total.tokens.map(|t| (t.input, t.output)), Some((12, 0)));
}

proptest! {
    #[test]
    fn any_cost_that_is_written_is_read_exactly(nanos in 0_i64..1_000_000_000_000) {
        let usd = Usd::from_nanos(nanos);
        let plain = read(RouteKind::Chat, &format!(r#"{{"usage":{{"cost":{usd}}}}}"#));
        let scientific = read(RouteKind::Chat, &format!(r#"{{"usage":{{"cost":{nanos}e-9}}}}"#));
        prop_assert_eq!((plain.cost, scientific.cost), (Some(usd), Some(usd)));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        for kind in RouteKind::ALL {
            let _ = read_usage(kind, &bytes);
        }
    }
}
