use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::guardrails::MatchAction::{Allow, Block, Detect, Mask};

fn chat(index: u64, text: &str) -> String {
    let event = json!({"id": "chatcmpl-1", "choices": [{"index": index, "delta": {"content": text}, "logprobs": {"content": []}}]});
    format!("data: {event}\n\n")
}

/// What a client reads of choice 0.
fn read(stream: &[u8]) -> String {
    let mut out = String::new();
    for line in String::from_utf8_lossy(stream).lines() {
        let Some(event) = line.strip_prefix("data: ").and_then(|data| serde_json::from_str::<Value>(data).ok()) else {
            continue;
        };
        if event["choices"][0]["index"] == 0 {
            out.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    out
}

/// What passes of a stream that comes in pieces of these sizes.
fn pass(screen: &mut StreamScreen, stream: &str, sizes: &[usize]) -> Vec<u8> {
    let (mut bytes, mut out) = (Bytes::from(stream.to_owned()), Vec::new());
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let piece = bytes.split_to((*size).clamp(1, bytes.len()));
        out.extend_from_slice(&screen.push(piece));
    }
    out.extend_from_slice(&screen.finish());
    out
}

/// A text as a stream whose events have so many characters.
fn stream(text: &str, each: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    let events = chars.chunks(each.max(1)).map(|piece| chat(0, &piece.iter().collect::<String>()));
    events.chain(["data: [DONE]\n\n".to_owned()]).collect()
}

fn screen(
    patterns: &[(&str, &str, crate::model::guardrails::MatchAction)],
    window: usize,
    holds: bool,
) -> StreamScreen {
    StreamScreen::new(Guardrails::of(patterns), window, holds)
}

const FILLER: &str = "and so on, and so forth, until it is enough; ";

#[test]
fn what_is_only_looked_at_passes_at_once_and_untouched() {
    let text = FILLER.repeat(9) + "card 4111111111111111 here" + FILLER;
    let sent = stream(&text, 3);
    for patterns in [("p", r"\d{16}", Detect), ("p", r"\d{16}", Block), ("p", r"\d{16}", Mask)] {
        let mut screen = screen(&[patterns], 32, false);
        let first = Bytes::from(sent.clone().into_bytes());
        assert_eq!(screen.push(first.slice(..5)), first.slice(..5), "nothing waits");
        assert_eq!(pass(&mut screen, &sent[5..], &[7]), &sent.as_bytes()[5..]);
        assert_eq!((screen.code.as_deref(), screen.refusal), (Some("own"), None));
    }
}

#[test]
fn a_masked_text_is_whole_but_for_what_was_found() {
    let text = format!("{FILLER}one 4111111111111111 two 4222222222222222 {FILLER}");
    let masked = format!("{FILLER}one [card] two [card] {FILLER}");
    for each in [1, 2, 5, 16, 1000] {
        let mut screen = screen(&[("card", r"\b\d{16}\b", Mask)], 24, true);
        let out = pass(&mut screen, &stream(&text, each), &[11]);
        assert_eq!(read(&out), masked, "{each}");
        assert!(String::from_utf8_lossy(&out).ends_with("data: [DONE]\n\n"));
    }
}

#[test]
fn a_refused_stream_ends_before_the_match() {
    let text = format!("{}the word is forbidden and {FILLER}", FILLER.repeat(3));
    let mut screen = screen(&[("word", "forbidden", Block)], 16, true);
    let out = pass(&mut screen, &stream(&text, 2), &[5]);
    let read = read(&out);
    assert!(read.starts_with(FILLER) && !read.contains("forb") && text.starts_with(&read), "{read}");
    assert_eq!(screen.refusal, Some(Refusal { code: "own".to_owned(), pattern: "word".to_owned() }));
    assert!(screen.push(Bytes::from(chat(0, "more"))).is_empty());
}

#[test]
fn a_word_is_not_judged_before_its_end() {
    let mut held = screen(&[("word", r"\bkill\b", Block)], 16, true);
    let out = pass(&mut held, &stream("a skilled killer kills time", 1), &[9]);
    assert_eq!((read(&out).as_str(), &held.refusal), ("a skilled killer kills time", &None));
    // What is allowed stays so wherever the window begins.
    let allowing = [("number", r"\d{8}", Block), ("test", r"test-\d{8}", Allow)];
    let text = format!("{FILLER}test-12345678 {}", FILLER.repeat(4));
    for each in 1..20 {
        let mut held = screen(&allowing, 16, true);
        assert_eq!(read(&pass(&mut held, &stream(&text, each), &[50])), text, "{each}");
    }
}

#[test]
fn several_texts_at_once_are_read_each_for_itself() {
    let mixed: String =
        "4111111111111111".chars().flat_map(|digit| [chat(0, &digit.to_string()), chat(1, "-")]).collect();
    let mut held = screen(&[("card", r"\d{16}", Mask)], 16, true);
    assert_eq!(read(&pass(&mut held, &mixed, &[13])), "[card]");
}

#[test]
fn texts_of_other_apis_are_read_and_what_ends_waits_no_more() {
    let claude = |text: &str| {
        let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
        format!("event: content_block_delta\ndata: {delta}\n\n")
    };
    let mut held = screen(&[("card", r"\d{16}", Mask)], 256, true);
    assert!(held.push(Bytes::from(claude("it is 41111111"))).is_empty());
    assert!(held.push(Bytes::from(claude("11111111."))).is_empty());
    let stop = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n";
    let out = String::from_utf8(held.push(Bytes::from(stop)).to_vec()).unwrap();
    assert!(
        out.contains("\"text\":\"it is [card]\"") && out.contains("\"text\":\".\"") && out.ends_with(stop),
        "{out}"
    );
    assert!(out.starts_with("event: content_block_delta\ndata: {"), "{out}");

    let delta = json!({"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": "4111111111111111"});
    let done = json!({"type": "response.output_text.done", "item_id": "i", "output_index": 0, "content_index": 0, "text": "4111111111111111"});
    let whole = json!({"type": "response.completed", "response": {"id": "r", "output": [{"type": "message", "content": [{"type": "output_text", "text": "4111111111111111"}]}]}});
    let mut held = screen(&[("card", r"\d{16}", Mask)], 256, true);
    let sent: String = [delta, done, whole].iter().map(|event| format!("data: {event}\n\n")).collect();
    let out = String::from_utf8(pass(&mut held, &sent, &[17])).unwrap();
    assert_eq!((out.matches("[card]").count(), out.contains("4111")), (3, false), "{out}");
}

#[test]
fn what_is_no_json_is_read_as_text() {
    let mut held = screen(&[("word", "forbidden", Block)], 16, true);
    let out = pass(&mut held, ": a comment\n\ndata: plainly forbidden\n\n", &[9]);
    assert_eq!((String::from_utf8(out).unwrap().as_str(), held.refusal.is_some()), (": a comment\n\n", true));
}

proptest! {
    /// Where the stream is cut into events and chunks changes nothing of what is read.
    #[test]
    fn no_cut_lets_a_match_past(
        before in "[a-z ]{0,40}",
        after in "[a-z ]{0,40}",
        each in 1_usize..12,
        sizes in proptest::collection::vec(1_usize..90, 1..6),
        window in 20_usize..60,
    ) {
        let text = format!("{before} 4111111111111111 {after}");
        let mut held = screen(&[("card", r"\b\d{16}\b", Mask)], window, true);
        prop_assert_eq!(read(&pass(&mut held, &stream(&text, each), &sizes)), format!("{before} [card] {after}"));
        let mut blocked = screen(&[("card", r"\d{16}", Block)], window, true);
        let read = read(&pass(&mut blocked, &stream(&text, each), &sizes));
        prop_assert!(blocked.refusal.is_some() && !read.contains('4'), "{}", read);
        let clean = format!("{before} {after}");
        let mut held = screen(&[("card", r"\d{16}", Block)], window, true);
        let sent = stream(&clean, each);
        prop_assert_eq!(pass(&mut held, &sent, &sizes), sent.as_bytes());
    }
}
