use alchemi::model::usage::RouteKind;
use alchemi::proxy::ask::{AskRules, ParsedAsk, read};
use proptest::prelude::*;

const TYPE: &str = "multipart/form-data; boundary=\"xYz\"";

fn field(name: &str, value: &str) -> String {
    format!("--xYz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn file(name: &str, value: &str) -> String {
    format!(
        "--xYz\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n{value}\r\n"
    )
}

fn form(parts: &[String]) -> Vec<u8> {
    (parts.concat() + "--xYz--\r\n").into_bytes()
}

fn parse(body: &[u8]) -> Result<ParsedAsk, &'static str> {
    read(RouteKind::Transcription, None, Some(TYPE), body, &AskRules::default()).map_err(|e| e.code())
}

#[test]
fn the_model_is_found_wherever_it_stands() {
    for parts in [
        [field("model", "whisper-1"), file("file", "RIFF--xYz\r\n--xY"), field("stream", "true")],
        [field("stream", "true"), file("file", ""), field("model", "whisper-1")],
    ] {
        let parsed = parse(&form(&parts)).unwrap();
        assert_eq!(parsed.ask.model.as_deref(), Some("whisper-1"));
        assert!(parsed.ask.stream);
        assert_eq!(parsed.ask.size.input_tokens, 1000, "one medium");
        assert!(!parsed.withholds_usage());
    }
    let lists = form(&[field("model", "m"), field("include[]", "a"), field("include[]", "b"), field("metadata", "{}")]);
    assert!(parse(&lists).is_ok());
    let unquoted = "--xYz\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--xYz--\r\n";
    assert_eq!(parse(unquoted.as_bytes()).unwrap().ask.model.as_deref(), Some("m"));
}

#[test]
fn what_decides_is_a_single_plain_field() {
    for (parts, code) in [
        (vec![field("model", "a"), field("model", "b")], "duplicate_field"),
        (vec![field("model", "a"), field("model[]", "b")], "duplicate_field"),
        (vec![field("model[]", "a")], "invalid_form"),
        (vec![file("model", "a")], "invalid_form"),
        (vec![field("stream", "true"), field("stream", "false"), field("model", "a")], "duplicate_field"),
        (vec![field("model", "a"), field("api_base", "http://x")], "field_not_allowed"),
        (vec![field("model", "a"), field("tags[]", "t")], "field_not_allowed"),
        (vec![field("model", "a"), field("fallbacks", "[\"b\"]")], "field_not_allowed"),
        (vec![field("model", "a"), field("metadata", "{\"tags\":[]}")], "field_not_allowed"),
        (vec![field("model", "a"), field("metadata[tags]", "x")], "field_not_allowed"),
        (vec![field("model", "a"), field("api_base[x]", "http://x")], "field_not_allowed"),
        (vec![field("model", "a"), field("extra_body[api_base]", "http://x")], "field_not_allowed"),
        (vec![field("model", "a"), field("fallbacks[0][model]", "b")], "field_not_allowed"),
        (vec![field("model", "a"), field("model[0]", "b")], "field_not_allowed"),
        (vec![field("model", "a"), field("metadata", "x")], "invalid_field"),
        (vec![field("model", "a,b")], "invalid_field"),
        (vec![field("model", "a"), field("stream", "yes")], "invalid_field"),
        (vec![field("file", "a")], "model_required"),
        (vec![field("model", "")], "model_required"),
    ] {
        assert_eq!(parse(&form(&parts)).err(), Some(code), "{parts:?}");
    }
}

#[test]
fn forms_that_two_parsers_read_differently_are_refused() {
    let good = "--xYz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n--xYz--\r\n";
    assert!(parse(good.as_bytes()).is_ok());
    for (from, to) in [
        ("--xYz\r\nC", "preamble\r\n--xYz\r\nC"),
        ("--xYz\r\nC", "--xYz \r\nC"),
        ("--xYz\r\nC", "--xYz\nC"),
        ("\"model\"\r\n\r\n", "\"model\"\n\n"),
        ("\"model\"\r\n\r\n", "\"model\"\r\nX: a\rb\r\n\r\n"),
        ("\"model\"\r\n\r\n", "\"model\"\r\n folded\r\n\r\n"),
        ("\"model\"\r\n\r\n", "\"model\"\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n"),
        ("\"model\"\r\n\r\n", "\"model\"\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
        ("name=\"model\"", "name=\"mo\\del\""),
        ("name=\"model\"", "name=\"model\"; name=\"x\""),
        ("name=\"model\"", "name*=utf-8''model"),
        // Some parsers strip what stands around a name.
        ("name=\"model\"", "name= model"),
        ("name=\"model\"", "name= \"model\""),
        ("name=\"model\"", "name=<model>"),
        ("name=\"model\"", "name=model ; filename=x"),
        ("name=\"model\"", "name=mo\"del"),
        ("name=\"model\"", "name="),
        ("form-data; ", "attachment; "),
        ("a\r\n--xYz--\r\n", "a\r\n--xYz--\r\ntrailer"),
        ("a\r\n--xYz--\r\n", "a\r\n--xYzz\r\n--xYz--\r\n"),
        ("a\r\n--xYz--\r\n", "a\r\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert_eq!(parse(bad.as_bytes()).err(), Some("invalid_form"), "{bad:?}");
    }
    for bad in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a b",
        "multipart/form-data; boundary=xYz; boundary=b",
        "multipart/form-data; boundary=xYz; charset=utf-16",
    ] {
        let error = read(RouteKind::Transcription, None, Some(bad), good.as_bytes(), &AskRules::default()).unwrap_err();
        assert_eq!(error.code(), "unsupported_media_type", "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in "(--xYz|\r\n|--|Content-Disposition: form-data; name=|\"model\"|a|;|=|:){0,40}") {
        let _ = parse(bytes.as_bytes());
    }

    #[test]
    fn any_value_without_the_boundary_comes_through(model in "[a-zA-Z0-9/_.:-]{1,40}", data in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut body = b"--xYz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n".to_vec();
        body.extend_from_slice(&data);
        body.extend_from_slice(b"\r\n");
        body.extend_from_slice(&form(&[field("model", &model)]));
        if memchr::memmem::find(&data, b"--xYz").is_none() {
            prop_assert_eq!(parse(&body).unwrap().ask.model, Some(model));
        }
    }
}
