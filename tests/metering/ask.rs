use alchemi::model::usage::RouteKind;
use alchemi::problem::Problem;
use alchemi::proxy::ask::{AskError, AskRules, ForbiddenFields, ParsedAsk, read, read_json};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

fn chat(body: &str) -> Result<ParsedAsk, AskError> {
    read_json(RouteKind::Chat, None, body.as_bytes(), &AskRules::default())
}

fn code(body: &str) -> &'static str {
    chat(body).map(|_| "ok").unwrap_or_else(|e| e.code())
}

#[test]
fn an_ordinary_chat_is_understood() {
    let parsed = chat(
        r#" {"model":"gpt-4o","messages":[{"role":"system","content":"You are kind."},
            {"role":"user","content":[{"type":"text","text":"What is this?"},
             {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],
            "max_completion_tokens":200,"max_tokens":50,"n":3,"stream":true,"temperature":0.5,"user":"u"}"#,
    )
    .unwrap();
    assert_eq!(parsed.ask.model.as_deref(), Some("gpt-4o"));
    assert!(parsed.ask.stream);
    assert!(parsed.ask.fallbacks.is_empty());
    assert_eq!(parsed.ask.size.max_output, Some(200), "the larger limit, so that no estimate is low");
    assert_eq!(parsed.ask.size.answers, 3);
    // 13 + 13 bytes of text, two messages, one image.
    assert_eq!(parsed.ask.size.input_tokens, 7 + 2 * 4 + 1000);
}

#[test]
fn sizes_of_every_kind() {
    let size = |kind, body: Value| {
        let parsed = read_json(kind, None, body.to_string().as_bytes(), &AskRules::default()).unwrap();
        (parsed.ask.size.input_tokens, parsed.ask.size.max_output, parsed.ask.size.answers)
    };
    assert_eq!(
        size(RouteKind::Completion, json!({"model":"m","prompt":"abcde","max_tokens":7,"n":2,"best_of":5})),
        (2, Some(7), 5)
    );
    assert_eq!(size(RouteKind::Embeddings, json!({"model":"m","input":[[1,2,3],[4]]})), (4, Some(0), 1));
    assert_eq!(size(RouteKind::Embeddings, json!({"model":"m","input":["abcd","ef"]})), (2, Some(0), 1));
    assert_eq!(
        size(RouteKind::Responses, json!({"model":"m","instructions":"abcd","input":"efgh","max_output_tokens":9})),
        (2, Some(9), 1)
    );
    assert_eq!(
        size(
            RouteKind::Responses,
            json!({"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"abcd"},{"type":"input_image","image_url":"data:…"}]}]})
        ),
        (1 + 4 + 1000, None, 1)
    );
    let base64 = "A".repeat(100_000);
    assert_eq!(
        size(
            RouteKind::Messages,
            json!({"model":"m","system":[{"type":"text","text":"abcd"}],"max_tokens":5,"messages":[{"role":"user","content":[
                {"type":"image","source":{"type":"base64","media_type":"image/png","data":base64}},
                {"type":"document","source":{"data":"abcdefgh","type":"text"}}]}]})
        ),
        (3 + 4 + 4 + 1000, Some(5), 1)
    );
    assert_eq!(
        size(RouteKind::Rerank, json!({"model":"m","query":"abcd","documents":["efgh",{"text":"ijkl"}]})),
        (3 + 4, Some(0), 1)
    );
    let tools = json!([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]);
    let bytes = tools.to_string().len() as u64;
    assert_eq!(size(RouteKind::Chat, json!({"model":"m","tools":tools})).0, bytes.div_ceil(4));
    assert_eq!(size(RouteKind::Images, json!({"model":"m","prompt":"abcd","n":4})), (1, None, 4));
}

#[test]
fn a_second_reading_of_the_body_is_impossible() {
    for body in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","mod\u0065l":"b"}"#,
        r#"{"\u006dodel":"a","model":"b"}"#,
        r#"{"model":"a","stream":true,"stream":false}"#,
        r#"{"model":"a","messages":[],"messages":[]}"#,
        r#"{"model":"a","unheard_of":1,"unheard_of":2}"#,
        r#"{"model":"a","stream_options":{"include_usage":true,"include\u005fusage":false}}"#,
    ] {
        assert_eq!(code(body), "duplicate_field", "{body}");
    }
    for body in [
        "",
        " ",
        "\u{feff}{\"model\":\"a\"}",
        r#"{"model":"a"}{"model":"b"}"#,
        r#"{"model":"a"},"#,
        r#"{"model":"a",}"#,
        r#"{'model':'a'}"#,
        r#"{"model":"a","temperature":NaN}"#,
        r#"{"model":"a","temperature":Infinity}"#,
        r#"{"model":"a","n":01}"#,
        r#"{"model":"a" /* b */}"#,
        "{\"model\":\"a\nb\"}",
        r#"{"model":"a","messages":[{"content":"\ud800"}]}"#,
        r#"{"\ud800":1,"model":"a"}"#,
        r#"["model"]"#,
        r#""model""#,
        "null",
    ] {
        assert_eq!(code(body), "invalid_json", "{body}");
    }
    for bytes in [&b"{\"model\":\"\xff\"}"[..], b"{\"model\":\"a\",\"x\":\"\xc0\xaf\"}", b"\xff\xfe{\0}\0", b"\0\0\0{"]
    {
        let error = read_json(RouteKind::Chat, None, bytes, &AskRules::default()).unwrap_err();
        assert_eq!(error.code(), "invalid_json");
    }
    assert_eq!(code(r#"{"model":"\udc00"}"#), "invalid_field");
}

#[test]
fn depth_and_width_are_bounded() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        for key in ["messages", "fallbacks", "tools", "metadata", "x"] {
            assert_eq!(code(&format!(r#"{{"model":"m","{key}":{deep}}}"#)), "invalid_json", "{key}");
        }
        let allowed = format!("{}\"]]{{\\\"\"{}", open.repeat(100), close.repeat(100));
        assert!(chat(&format!(r#"{{"model":"m","x":{allowed},"messages":[]}}"#)).is_ok());
    }
    let wide: String = (0..300).map(|i| format!(r#""k{i}":1,"#)).collect();
    assert_eq!(code(&format!(r#"{{{wide}"model":"m"}}"#)), "invalid_field");
}

#[test]
fn the_model_is_one_name() {
    for body in ["{}", r#"{"model":null}"#, r#"{"model":""}"#] {
        assert_eq!(code(body), "model_required", "{body}");
    }
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(257));
    for body in [r#"{"model":1}"#, r#"{"model":["a"]}"#, r#"{"model":"a,b"}"#, r#"{"model":"a\u0000"}"#, &long] {
        assert_eq!(code(body), "invalid_field", "{body}");
    }
    let read = |path, body: &str| {
        read_json(RouteKind::Chat, Some(path), body.as_bytes(), &AskRules::default())
            .map(|p| p.ask.model.unwrap())
            .map_err(|e| e.code())
    };
    assert_eq!(read("a", "{}"), Ok("a".to_owned()));
    assert_eq!(read("a", r#"{"model":"a"}"#), Ok("a".to_owned()));
    assert_eq!(read("a", r#"{"model":"b"}"#), Err("model_mismatch"));
    assert_eq!(read("a", r#"{"model":""}"#), Err("model_mismatch"));
    assert_eq!(read("a,b", "{}"), Err("invalid_field"));
}

#[test]
fn what_steers_the_upstream_is_refused() {
    for field in AskRules::default().forbidden_fields.patterns() {
        let body = match field.split_once('.') {
            Some(("tools", inner)) => json!({"model":"m","tools":[{"type":"function"},{"type":"mcp",inner:"t"}]}),
            Some((outer, inner)) => json!({"model":"m",outer:{"a":1,inner:["t"]}}),
            None => json!({"model":"m",field.as_str():null}),
        };
        let error = chat(&body.to_string()).unwrap_err();
        assert_eq!(error, AskError::FieldNotAllowed(field.as_str().into()));
        let problem = Problem::from(error);
        assert_eq!((problem.status(), problem.code()), (400, "field_not_allowed"));
        assert!(problem.detail().contains(field));
    }
    for covered in
        ["aws_region_name", "azure_ad_token", "a_callback", "input_cost_per_token", "a_cost", "mock_response"]
    {
        assert_eq!(code(&json!({"model":"m",covered:1}).to_string()), "field_not_allowed", "{covered}");
    }
    for beside in
        ["", "*", "aws", "xaws_region", "callback", "a_callbacks", "cost", "api_bas", "api_bases", "xapi_base"]
    {
        assert!(chat(&json!({"model":"m",beside:1}).to_string()).is_ok(), "{beside}");
    }
    for covered in ["langfuse_secret_key", "posthog_host", "arize_api_key", "user_api_key_hash"] {
        let body = json!({"model":"m","metadata":{covered:"x"}});
        assert_eq!(code(&body.to_string()), "field_not_allowed", "{covered}");
    }
    for beside in ["tenant_id", "langfuse_user_id", "dd_trace_id", "api_key_", "workspace_id"] {
        assert!(chat(&json!({"model":"m","metadata":{beside:"x"}}).to_string()).is_ok(), "{beside}");
    }
    assert_eq!(code(r#"{"model":"m","api\u005fbase":"http://x"}"#), "field_not_allowed");
    assert_eq!(code(r#"{"model":"m","metadata":{"t\u0061gs":[]}}"#), "field_not_allowed");
    assert_eq!(code(r#"{"model":"m","metadata":"{\"tags\":[]}"}"#), "invalid_field");
    for (body, expected) in [
        (r#"{"model":"m","tools":[{"server\u005furl":"litellm_proxy"}]}"#, "field_not_allowed"),
        (r#"{"model":"m","tools":{"server_url":"x"}}"#, "field_not_allowed"),
        (r#"{"model":"m","prompt":{"id":"pmpt_1","version":"2"}}"#, "field_not_allowed"),
        // A tool's own parameter may be called so.
        (r#"{"model":"m","tools":[{"function":{"parameters":{"properties":{"server_url":{}}}}}]}"#, "ok"),
        (r#"{"model":"m","tools":null,"prompt":["a","b"]}"#, "ok"),
        (r#"{"model":"m","fallbacks":[{"model":"a","tools":[{"type":"mcp","server_url":"x"}]}]}"#, "field_not_allowed"),
    ] {
        assert_eq!(code(body), expected, "{body}");
    }
    assert_eq!(code(r#"{"model":"m","metadata":{"user_id":"u"},"user":"u","safety_identifier":"s"}"#), "ok");
}

#[test]
fn every_fallback_is_named() {
    let models = |fallbacks: &str| {
        chat(&format!(r#"{{"model":"m",{fallbacks}}}"#)).map(|p| p.ask.fallbacks).map_err(|e| e.code())
    };
    assert_eq!(models(r#""fallbacks":["a","b"]"#).unwrap(), ["a", "b"]);
    assert_eq!(models(r#""fallbacks":[{"model":"a","temperature":1},"b"]"#).unwrap(), ["a", "b"]);
    assert_eq!(models(r#""context_window_fallbacks":[{"m":["a",{"model":"b"}]}]"#).unwrap(), ["a", "b"]);
    assert_eq!(models(r#""fallbacks":["a"],"content_policy_fallbacks":[{"m":["b"]}]"#).unwrap(), ["a", "b"]);
    assert_eq!(models(r#""fallbacks":[{"model":"a","fallbacks":[{"x":["b"]}]}]"#).unwrap(), ["b", "a"]);
    assert_eq!(models(r#""fallbacks":null"#).unwrap(), [""; 0]);
    assert_eq!(models(r#""fallbacks":[{"m":[{"model":"a","api_key":"k"}]}]"#), Err("field_not_allowed"));
    assert_eq!(models(r#""fallbacks":[{"model":"a","messages":[]}]"#), Err("field_not_allowed"));
    assert_eq!(models(r#""fallbacks":["a,b"]"#), Err("invalid_field"));
    assert_eq!(models(r#""fallbacks":[7]"#), Err("invalid_field"));
    let many = json!(vec!["a"; 33]);
    assert_eq!(models(&format!(r#""fallbacks":{many}"#)), Err("invalid_field"));
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for field in [
        r#""stream":"true""#,
        r#""stream":1"#,
        r#""stream_options":[]"#,
        r#""stream_options":{"include_usage":1}"#,
        r#""max_tokens":-1"#,
        r#""max_tokens":"9""#,
        r#""max_tokens":1e3"#,
        r#""n":1.5"#,
        r#""n":18446744073709551616"#,
    ] {
        assert_eq!(code(&format!(r#"{{"model":"m",{field}}}"#)), "invalid_field", "{field}");
    }
    assert_eq!(code(r#"{"model":"m","stream":null,"max_tokens":null,"n":null,"stream_options":null}"#), "ok");
}

#[test]
fn only_types_that_every_parser_reads_alike() {
    let read = |content_type| {
        read(RouteKind::Chat, None, content_type, br#"{"model":"m"}"#, &AskRules::default())
            .map(|_| "ok")
            .unwrap_or_else(|e| e.code())
    };
    for good in [None, Some("application/json"), Some("Application/JSON; Charset=\"UTF-8\"")] {
        assert_eq!(read(good), "ok", "{good:?}");
    }
    for bad in [
        "text/plain",
        "application/json; charset=utf-16",
        "application/json; profile=form",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        assert_eq!(read(Some(bad)), "unsupported_media_type", "{bad}");
    }
    assert_eq!(Problem::from(AskError::UnsupportedMediaType).status(), 415);
}

#[test]
fn usage_is_asked_for_in_the_callers_bytes() {
    let forwarded = |body: &'static str| {
        let parsed = chat(body).unwrap();
        let out = parsed.forwarded(&Bytes::from_static(body.as_bytes()), None);
        (String::from_utf8(out.to_vec()).unwrap(), parsed.withholds_usage())
    };
    for (body, expected) in [
        (
            r#" { "model" : "m", "stream" : true }"#,
            r#" {"stream_options":{"include_usage":true}, "model" : "m", "stream" : true }"#,
        ),
        (
            r#"{"model":"m","stream":true,"stream_options":null}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        (
            r#"{"model":"m","stream":true,"stream_options":{ }}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true }}"#,
        ),
        (
            r#"{"stream_options":{"x":{"include_usage":1}},"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true,"x":{"include_usage":1}},"model":"m","stream":true}"#,
        ),
        (
            r#"{"model":"m","stream":true,"stream_options":{"include_usage" : false}}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage" : true}}"#,
        ),
    ] {
        assert_eq!(forwarded(body), (expected.to_owned(), true));
    }
    for body in [
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"model":"m","stream":false}"#,
        r#"{"model":"m"}"#,
    ] {
        assert_eq!(forwarded(body), (body.to_owned(), false));
    }
    let body = Bytes::from_static(br#"{"model":"m"}"#);
    let same = chat(r#"{"model":"m"}"#).unwrap().forwarded(&body, None);
    assert_eq!(same.as_ptr(), body.as_ptr(), "nothing is copied when nothing changes");
}

/// LiteLLM hands what it does not know on to providers, some of which take it for their limit.
#[test]
fn a_limit_that_another_api_has_is_refused() {
    for (kind, own, other) in [
        (RouteKind::Chat, "max_completion_tokens", "max_output_tokens"),
        (RouteKind::Completion, "max_tokens", "max_completion_tokens"),
        (RouteKind::Messages, "max_tokens", "max_output_tokens"),
        (RouteKind::Responses, "max_output_tokens", "max_tokens"),
    ] {
        let read = |body: Value| read_json(kind, None, body.to_string().as_bytes(), &AskRules::default());
        assert_eq!(read(json!({"model":"m",own:9})).unwrap().ask.size.max_output, Some(9));
        assert!(read(json!({"model":"m",own:9,other:null})).is_ok());
        assert_eq!(read(json!({"model":"m",own:9,other:9})), Err(AskError::FieldNotAllowed(other.into())), "{kind:?}");
    }
    let embedded = json!({"model":"m","input":"x","max_tokens":9}).to_string();
    assert!(read_json(RouteKind::Embeddings, None, embedded.as_bytes(), &AskRules::default()).is_ok());
}

#[test]
fn a_dearer_tier_is_told() {
    for (tier, dearer) in
        [("null", false), (r#""auto""#, false), (r#""flex""#, false), (r#""priority""#, true), (r#""fl\u0065x""#, true)]
    {
        let body = format!(r#"{{"model":"m","service_tier":{tier}}}"#);
        assert_eq!(chat(&body).unwrap().ask.size.priority, dearer, "{tier}");
    }
    assert!(!chat(r#"{"model":"m"}"#).unwrap().ask.size.priority);
}

#[test]
fn output_is_bounded_in_the_callers_bytes() {
    let bounded = |kind, path, body: &'static str| {
        let parsed = read_json(kind, path, body.as_bytes(), &AskRules::default()).unwrap();
        String::from_utf8(parsed.forwarded(&Bytes::from_static(body.as_bytes()), Some(64)).to_vec()).unwrap()
    };
    for (kind, body, expected) in [
        (RouteKind::Chat, r#"{"model":"m"}"#, r#"{"max_tokens":64,"model":"m"}"#),
        (RouteKind::Responses, r#"{"model":"m"}"#, r#"{"max_output_tokens":64,"model":"m"}"#),
        (RouteKind::Chat, r#"{"model":"m","max_tokens":63}"#, r#"{"model":"m","max_tokens":63}"#),
        (
            RouteKind::Chat,
            r#"{"model":"m","max_tokens":null,"max_completion_tokens":900}"#,
            r#"{"model":"m","max_tokens":64,"max_completion_tokens":64}"#,
        ),
        (RouteKind::Messages, r#"{"max_tokens": 900 ,"model":"m"}"#, r#"{"max_tokens": 64 ,"model":"m"}"#),
        (RouteKind::Embeddings, r#"{"model":"m"}"#, r#"{"model":"m"}"#),
        (
            RouteKind::Chat,
            r#"{"model":"m","stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"max_tokens":64,"model":"m","stream":true}"#,
        ),
    ] {
        assert_eq!(bounded(kind, None, body), expected);
    }
    assert_eq!(bounded(RouteKind::Chat, Some("m"), "{}"), r#"{"max_tokens":64}"#);
}

#[test]
fn no_message_holds_a_value() {
    for body in [
        r#"{"model":"m","stream":"SECRET"}"#,
        r#"{"model":"m","max_tokens":"SECRET"}"#,
        r#"{"model":{"SECRET":1}}"#,
        r#"{"model":"m","metadata":"SECRET"}"#,
        r#"{"model":"m","messages":["SECRET"#,
        r#"{"model":"SECRET,b"}"#,
    ] {
        let problem = Problem::from(chat(body).unwrap_err());
        assert!(!format!("{problem:?}").contains("SECRET"), "{problem:?}");
    }
}

#[test]
fn rules_are_checked_when_they_are_read() {
    let rules = |json| serde_json::from_str::<AskRules>(json);
    assert_eq!(rules("{}").unwrap(), AskRules::default());
    assert_eq!(rules(r#"{"count":{"bytes_per_token":3}}"#).unwrap().count.tokens(10), 4);
    assert!(rules(r#"{"count":{"bytes_per_token":0}}"#).is_err());
    assert!(rules(r#"{"forbidden":[]}"#).is_err());
}

/// Any JSON value, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\]{0,6}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn text_of(value: &Value, pretty: bool) -> String {
    if pretty { serde_json::to_string_pretty(value).unwrap() } else { value.to_string() }
}

proptest! {
    #[test]
    fn a_spliced_body_is_the_old_one_and_the_change(
        others in prop::collection::btree_map("[a-z_\"\\\\]{1,9}", any_json(), 0..6),
        options in prop_oneof![
            Just(None), Just(Some(json!(null))), Just(Some(json!({}))), Just(Some(json!({"include_usage": false}))),
            Just(Some(json!({"include_usage": true, "a": [1]}))), Just(Some(json!({"z": "}\"", "include_usage": null}))),
        ],
        limit in prop::option::of(prop_oneof![Just(Value::Null), (0_u64..200).prop_map(Value::from)]),
        bound in prop::option::of(0_u64..200),
        stream in any::<bool>(),
        pretty in any::<bool>(),
    ) {
        let mut object: serde_json::Map<_, _> = others.into_iter().collect();
        object.insert("model".to_owned(), json!("m"));
        object.insert("stream".to_owned(), json!(stream));
        object.extend(options.map(|o| ("stream_options".to_owned(), o)));
        object.extend(limit.clone().map(|l| ("max_tokens".to_owned(), l)));
        let body = Bytes::from(text_of(&Value::Object(object), pretty));
        // Read back: not every float survives the reader.
        let before: Value = serde_json::from_slice(&body).unwrap();
        let Ok(parsed) = read_json(RouteKind::Chat, None, &body, &AskRules::default()) else { return Ok(()) };
        let after: Value = serde_json::from_slice(&parsed.forwarded(&body, bound)).unwrap();
        let mut expected = before;
        if stream {
            if expected["stream_options"].is_null() {
                expected["stream_options"] = json!({});
            }
            expected["stream_options"]["include_usage"] = json!(true);
        }
        if let Some(bound) = bound {
            let limit = limit.as_ref().and_then(Value::as_u64).unwrap_or(u64::MAX);
            expected["max_tokens"] = json!(limit.min(bound));
        }
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn a_name_is_forbidden_if_a_pattern_stands_for_it(
        patterns in prop::collection::vec("(tools\\.|other\\.)?([ab.]{0,3}\\*?|\\*[ab]{0,3}\\*?)", 0..6),
        name in "(tools\\.|other\\.)?[ab.]{0,4}",
    ) {
        let stands_for = |pattern: &str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (None, None) => pattern == name,
            (None, Some(start)) => name.starts_with(start),
            (Some(end), None) => name.ends_with(end),
            (Some(_), Some(_)) => name.contains(pattern.trim_matches('*')),
        };
        let outer = patterns.iter().any(|pattern| !pattern.starts_with("tools.") && stands_for(pattern));
        let inside = patterns.iter().any(|pattern| pattern.strip_prefix("tools.").is_some_and(stands_for));
        let fields = ForbiddenFields::from(patterns);
        prop_assert_eq!((fields.hold(&name), fields.hold_inside("tools", &name)), (outer, inside));
    }

    #[test]
    fn the_authorised_model_is_the_one_that_any_parser_reads(
        members in prop::collection::vec(
            (prop_oneof![Just("model"), Just("mod\\u0065l"), Just("\\u006Dodel"), Just("Model"), Just("x"), Just("stream")],
             prop_oneof![Just("\"a\""), Just("\"b\""), Just("\"\\u0061\""), Just("null"), Just("true"), Just("{\"model\":\"c\"}")]),
            0..5),
    ) {
        let body: Vec<String> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        let body = format!("{{{}}}", body.join(","));
        if let Ok(parsed) = chat(&body) {
            let last_wins: Value = serde_json::from_str(&body).unwrap();
            prop_assert_eq!(parsed.ask.model.as_deref(), last_wins["model"].as_str());
            prop_assert_eq!(parsed.ask.stream, last_wins["stream"].as_bool().unwrap_or(false));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a-z0-9\\\\ ]{0,80}") {
        for kind in RouteKind::ALL {
            let _ = read_json(kind, None, &bytes, &AskRules::default());
            let _ = read_json(kind, Some("m"), text.as_bytes(), &AskRules::default());
        }
    }
}
