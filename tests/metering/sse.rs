use alchemi::credits::Usd;
use alchemi::metering::count::CountRules;
use alchemi::metering::sse::{MAX_EVENT, SseMeter, StreamReport};
use alchemi::model::usage::RouteKind;
use bytes::Bytes;
use proptest::prelude::*;

use crate::fixture;

/// What a client sees, and the report, of a stream cut at these places.
fn pass(kind: RouteKind, withhold: bool, stream: &[u8], cuts: &[usize]) -> (Vec<u8>, StreamReport) {
    let mut meter = SseMeter::new(kind, withhold);
    let mut out = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain([&stream.len()]) {
        let end = end.clamp(start, stream.len());
        out.extend_from_slice(&meter.push(Bytes::copy_from_slice(&stream[start..end])));
        start = end;
    }
    let mut report = meter.finish();
    out.extend_from_slice(&std::mem::take(&mut report.rest));
    (out, report)
}

fn whole(kind: RouteKind, withhold: bool, stream: &str) -> (String, StreamReport) {
    let (out, report) = pass(kind, withhold, stream.as_bytes(), &[]);
    (String::from_utf8(out).unwrap(), report)
}

#[test]
fn captured_chat_streams() {
    let stream = fixture::response("chat_stream_usage").body;
    let (out, report) = pass(RouteKind::Chat, false, &stream, &[]);
    assert_eq!(out, stream);
    assert_eq!(report.reported.tokens.map(|t| (t.input, t.output)), Some((19, 21)));
    assert_eq!(report.reported.cost, Some(Usd::from_nanos(15_450)));
    assert!(report.complete && !report.failed);
    assert_eq!((report.events, report.output_bytes), (24, 10 * 5 + 10 * 6));

    // Withheld: byte for byte what a client gets that never asked.
    let asked = String::from_utf8(stream).unwrap();
    let (out, withheld) = whole(RouteKind::Chat, true, &asked);
    let expected: String = asked.split_inclusive("\n\n").filter(|event| !event.contains("\"usage\"")).collect();
    assert_eq!(out, expected);
    assert_eq!(withheld, report);

    let (_, report) = pass(RouteKind::Chat, true, &fixture::response("chat_stream_only").body, &[]);
    assert!(report.reported.is_empty() && report.complete);
    assert_eq!(report.output_bytes, 110);

    let (_, report) = pass(RouteKind::Chat, true, &fixture::response("chat_mock_stream_usage").body, &[]);
    assert_eq!(report.reported.cost, Some(Usd::from_nanos(5_400)), "5.399999999999999e-6");
}

#[test]
fn captured_failures() {
    let (_, report) = pass(RouteKind::Responses, false, &fixture::response("responses_mock_stream").body, &[]);
    assert!(report.failed && report.complete && report.reported.is_empty());
    let (_, report) = pass(RouteKind::Messages, false, &fixture::response("messages_stream").body, &[]);
    assert!(report.failed && !report.complete && report.reported.is_empty());
    assert_eq!(report.counted(7, &CountRules::default()).input, 7, "a zero at the start tells nothing");
}

#[test]
fn only_a_chunk_that_carries_nothing_else_is_withheld() {
    let usage = r#""usage":{"prompt_tokens":3,"completion_tokens":1}"#;
    for (chunk, cut) in [
        (format!(r#"{{"choices":[],{usage}}}"#), true),
        (format!(r#"{{{usage}}}"#), true),
        (format!(r#"{{"choices":[{{"index":0,"delta":{{}}}}],{usage}}}"#), true),
        (
            format!(
                r#"{{"choices":[{{"index":0,"delta":{{"content":"","role":null}},"finish_reason":null}}],{usage}}}"#
            ),
            true,
        ),
        (format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"x"}}}}],{usage}}}"#), false),
        (format!(r#"{{"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],{usage}}}"#), false),
        (format!(r#"{{"choices":[{{"index":0,"text":"x"}}],{usage}}}"#), false),
        (format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{{"index":0}}]}}}}],{usage}}}"#), false),
        (format!(r#"{{"choices":[],"error":{{"message":"x"}},{usage}}}"#), false),
        (r#"{"choices":[],"usage":null}"#.to_owned(), false),
    ] {
        let stream = format!("data: {chunk}\n\ndata: [DONE]\n\n");
        let (out, report) = whole(RouteKind::Chat, true, &stream);
        assert_eq!(out, if cut { "data: [DONE]\n\n" } else { &stream }, "{chunk}");
        assert_eq!(report.reported.tokens.is_some(), !chunk.contains("null}") || cut, "{chunk}");
        assert_eq!(whole(RouteKind::Chat, false, &stream).0, stream);
    }
}

#[test]
fn the_last_usage_wins() {
    let stream = "data: {\"choices\":[{\"text\":\"ab\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n\
                  data: {\"choices\":[{\"text\":\"c\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n";
    let (_, report) = whole(RouteKind::Completion, false, stream);
    assert_eq!(report.reported.tokens.map(|t| (t.input, t.output)), Some((3, 2)));
    assert_eq!(report.output_bytes, 3);
    assert!(!report.complete);
    // Usage only grows: what says less, or nothing that can be read, takes nothing back.
    for less in [r#"{"prompt_tokens":0,"completion_tokens":0}"#, r#"{"prompt_tokens":-1}"#] {
        let (_, report) =
            whole(RouteKind::Chat, false, &format!("{stream}data: {{\"choices\":[],\"usage\":{less}}}\n\n"));
        assert_eq!(report.reported.tokens.map(|t| (t.input, t.output)), Some((3, 2)), "{less}");
    }
}

#[test]
fn an_event_that_cannot_be_read_counts_by_its_bytes() {
    let payload = r#"{"choices":[{"delta":{"content":"\ud800aaaa"}}]}"#;
    let (_, report) = whole(RouteKind::Chat, false, &format!("data: {payload}\n\ndata: {{\"choices\":[{{"));
    assert_eq!(report.output_bytes, payload.len() as u64, "what broke off in the middle of an event does not");
}

const MESSAGES: &str = "event: message_start\n\
data: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":100,\"output_tokens\":1}}}\n\n\
event: ping\ndata: {\"type\": \"ping\"}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n\
event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"a\\\"\"}}\n\n\
event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n\
event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

#[test]
fn anthropic_usage_is_put_together() {
    let (out, report) = whole(RouteKind::Messages, false, MESSAGES);
    assert_eq!(out, MESSAGES);
    let tokens = report.reported.tokens.unwrap();
    assert_eq!((tokens.input, tokens.cached, tokens.output), (125, 100, 15));
    assert_eq!(report.output_bytes, 5 + 4);
    assert!(report.complete);

    let cut = MESSAGES.find("event: message_delta").unwrap();
    let (_, report) = whole(RouteKind::Messages, false, &MESSAGES[..cut]);
    assert!(report.reported.is_empty(), "the start tells no output");
    let counted = report.counted(7, &CountRules::default());
    assert_eq!((counted.input, counted.cached, counted.output), (125, 100, 3));
    assert_eq!((report.output_bytes, report.complete), (9, false));
}

const RESPONSES: &str = "event: response.created\n\
data: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"usage\":null}}\n\n\
event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hell\u{f6}\"}\n\n\
event: response.output_text.done\ndata: {\"type\":\"response.output_text.done\",\"text\":\"Hell\u{f6}\"}\n\n\
event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":9,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":5,\"output_tokens_details\":{\"reasoning_tokens\":2}}},\"type\":\"response.completed\"}\n\n";

#[test]
fn responses_usage_is_in_the_last_event() {
    for (last, failed) in [("response.completed", false), ("response.incomplete", false), ("response.failed", true)] {
        let (_, report) = whole(RouteKind::Responses, false, &RESPONSES.replace("response.completed", last));
        let tokens = report.reported.tokens.unwrap();
        assert_eq!((tokens.input, tokens.cached, tokens.output, tokens.reasoning), (9, 4, 5, 2));
        assert_eq!((report.complete, report.failed, report.output_bytes), (true, failed, 6));
    }
}

#[test]
fn an_error_event_of_any_api_is_seen() {
    for event in [
        r#"{"error":{"message":"x"}}"#,
        r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
        r#"{"type":"error","code":"server_error","message":"x","param":null}"#,
    ] {
        assert!(whole(RouteKind::Chat, false, &format!("data: {event}\n\n")).1.failed, "{event}");
    }
}

#[test]
fn nothing_is_copied_or_held_without_need() {
    let chunk = Bytes::from_static(b"data: {\"choices\":[]}\n\ndata: {\"cho");
    let mut meter = SseMeter::new(RouteKind::Chat, false);
    assert_eq!(meter.push(chunk.clone()).as_ptr(), chunk.as_ptr());
    let mut meter = SseMeter::new(RouteKind::Chat, true);
    let out = meter.push(chunk.clone());
    assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), 22));
    assert_eq!(meter.finish().rest, "data: {\"cho");
}

#[test]
fn an_event_without_end_passes_unread_and_is_not_kept() {
    let long = format!("data: {{\"choices\":[{{\"text\":\"{}\"}}]}}\n\n", "x".repeat(MAX_EVENT));
    let stream =
        format!("{long}data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1}}}}\n\n");
    for withhold in [false, true] {
        let (out, report) = pass(RouteKind::Completion, withhold, stream.as_bytes(), &[]);
        let cuts: Vec<usize> = (0..stream.len()).step_by(65_536).collect();
        assert_eq!(pass(RouteKind::Completion, withhold, stream.as_bytes(), &cuts), (out.clone(), report.clone()));
        assert_eq!(out, if withhold { long.as_bytes() } else { stream.as_bytes() });
        assert_eq!((report.oversized, report.output_bytes), (1, 0));
        assert!(report.reported.tokens.is_some());
    }
}

#[test]
fn framing_in_every_spelling() {
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let split = usage.replace("[],", "[],\n").replace('\n', "\ndata:");
    for stream in [
        format!("\u{feff}data: {usage}\n\n"),
        format!("data:{usage}\r\n\r\n"),
        format!("data: {usage}\r\r"),
        format!(": comment\nid: 7\nevent: x\nretry: 10\ndata: {usage}\n\n"),
        format!("data: {split}\n\n"),
        format!("\n\n\r\n\rdata: {usage}\n\n"),
        format!("data: {usage}"),
    ] {
        let (out, report) = whole(RouteKind::Chat, true, &stream);
        assert!(!out.contains("usage"), "{stream:?}");
        assert_eq!(report.reported.tokens.map(|t| (t.input, t.output)), Some((3, 1)), "{stream:?}");
    }
}

fn corpus() -> Vec<(RouteKind, Vec<u8>)> {
    let mut streams: Vec<(RouteKind, Vec<u8>)> = [
        ("chat_stream_only", RouteKind::Chat),
        ("chat_stream_usage", RouteKind::Chat),
        ("chat_mock_stream", RouteKind::Chat),
        ("chat_mock_stream_usage", RouteKind::Chat),
        ("messages_stream", RouteKind::Messages),
        ("responses_mock_stream", RouteKind::Responses),
    ]
    .map(|(name, kind)| (kind, fixture::response(name).body))
    .into();
    streams.push((RouteKind::Messages, MESSAGES.into()));
    streams.push((RouteKind::Responses, RESPONSES.into()));
    for line_end in ["\r\n", "\r"] {
        let usual = String::from_utf8(fixture::response("chat_stream_usage").body).unwrap();
        streams.push((RouteKind::Chat, usual.replace('\n', line_end).into()));
    }
    streams
}

#[test]
fn every_single_cut_of_every_stream_gives_the_same() {
    for (kind, stream) in corpus() {
        for withhold in [false, true] {
            let expected = pass(kind, withhold, &stream, &[]);
            assert!(withhold || expected.0 == stream);
            // Without withholding the bytes are the chunk's own: fewer cuts will do.
            for cut in (0..=stream.len()).step_by(if withhold { 1 } else { 7 }) {
                assert!(pass(kind, withhold, &stream, &[cut]) == expected, "{kind:?} cut at {cut}");
            }
            let bytewise: Vec<usize> = (0..stream.len()).collect();
            assert!(pass(kind, withhold, &stream, &bytewise) == expected, "{kind:?} byte by byte");
        }
    }
}

/// Pieces of streams, well and badly formed.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "data: ",
        "data:",
        "event: message_delta\n",
        ": ping\n",
        "[DONE]",
        "\u{feff}",
        "{",
        "}",
        "id",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"x\u{e9}y\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9}}\r\r",
        "data: {\"choices\":[],\ndata: \"usage\":{\"total_tokens\":7}}\r\n\r\n",
        "data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":5}}}\n\n",
    ])
}

proptest! {
    #[test]
    fn chunk_boundaries_mean_nothing(
        pieces in prop::collection::vec(piece(), 0..12),
        cuts in prop::collection::vec(0_usize..400, 0..12),
        withhold in any::<bool>(),
    ) {
        let stream = pieces.concat();
        let mut cuts = cuts;
        cuts.sort_unstable();
        let expected = pass(RouteKind::Chat, withhold, stream.as_bytes(), &[]);
        prop_assert_eq!(&pass(RouteKind::Chat, withhold, stream.as_bytes(), &cuts), &expected);
        if !withhold {
            prop_assert_eq!(expected.0, stream.into_bytes());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), withhold in any::<bool>()) {
        let _ = pass(RouteKind::Messages, withhold, &bytes, &[3, 50]);
    }
}

/// LiteLLM with `include_cost_in_streaming_usage` computes the cost of an Anthropic stream from
/// its last usage alone; when that one lacks the input tokens, the input is missing in the cost.
#[test]
fn a_cost_without_the_input_is_not_believed() {
    let read = |delta: &str| {
        let mut meter = SseMeter::new(RouteKind::Messages, false);
        meter.push(Bytes::from_static(
            b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":11,\"output_tokens\":1}}}\n\n",
        ));
        meter.push(Bytes::from(format!(
            "event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{}},\"usage\":{{{delta}\"cost\":6e-05}}}}\n\n"
        )));
        meter.finish().reported
    };
    let without = read("\"output_tokens\":4,");
    assert_eq!(without.cost, None);
    assert_eq!(without.tokens.map(|t| (t.input, t.output)), Some((11, 4)));
    assert_eq!(read("\"input_tokens\":11,\"output_tokens\":4,").cost.map(|cost| cost.nanos()), Some(60_000));
}
