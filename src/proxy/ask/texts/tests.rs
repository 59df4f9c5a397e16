use super::*;

fn parts(body: &str) -> Vec<Vec<String>> {
    serde_json::from_str::<serde_json::Value>(body).unwrap();
    let texts = Texts::of_json(body);
    texts.passages.iter().map(|p| p.parts.iter().map(|t| t.clone().into_owned()).collect()).collect()
}

#[test]
fn every_text_is_found_and_messages_are_read_as_one() {
    assert_eq!(
        parts(
            r#"{"model":"m","messages":[{"role":"system","content":"s1"},
            {"role":"user","content":[{"type":"text","text":"a \"b\""},{"type":"image_url","image_url":{"url":"https://h/x"}},{"type":"text","text":"c"}]},
            {"role":"assistant","tool_calls":[{"id":"call_1","type":"function","function":{"name":"pay","arguments":"{\"card\":1}"}}]}],
            "user":"u","temperature":0.5,"tools":[{"type":"function","function":{"name":"f","description":"d"}}]}"#
        ),
        [
            vec!["s1"],
            vec!["a \"b\"", "c"],
            vec!["https://h/x"],
            vec!["pay"],
            vec!["{\"card\":1}"],
            vec!["f"],
            vec!["d"]
        ]
    );
    assert_eq!(
        parts(
            r#"{"model":"m","system":[{"type":"text","text":"one"},{"type":"text","text":"two"}],"messages":[{"role":"user","content":"three"}]}"#
        ),
        [vec!["one", "two"], vec!["three"]]
    );
    assert_eq!(parts(r#"{"input":["a","b"],"model":"m"}"#), [["a"], ["b"]]);
    assert_eq!(parts(r#"{"prompt":"a","suffix":"b"}"#), [["a"], ["b"]]);
    assert_eq!(parts(r#"{"input":"x","instructions":"y"}"#), [["x"], ["y"]]);
    assert_eq!(
        parts(
            r#"{"messages":[{"role":"user","content":[{"type":"tool_use","id":"t","input":{"Card No":4111111111111111,"n":7}}]}]}"#
        ),
        [["Card No"], ["4111111111111111"]]
    );
    assert_eq!(parts(r#"{"unknown":{"deep":["x"]},"metadata":{"user_id":"no"}}"#), [["x"]]);
}

#[test]
fn encoded_bytes_are_no_text_but_a_document_is() {
    let picture = "iVBORw0KGgo".repeat(10);
    assert!(parts(&format!(r#"{{"input":[{{"image_url":"data:image/png;base64,{picture}"}}]}}"#)).is_empty());
    assert!(
        parts(&format!(r#"{{"messages":[{{"content":[{{"source":{{"type":"base64","data":"{picture}"}}}}]}}]}}"#))
            .is_empty()
    );
    let document = r#"{"messages":[{"content":[{"source":{"type":"text","data":"a letter, which is no picture at all, however long it may become"}}]}]}"#;
    assert_eq!(parts(document).len(), 1);
}

/// Of a body whose only message has this as its content.
fn in_message(content: &str) -> Vec<Vec<String>> {
    parts(&format!(r#"{{"messages":[{{"content":[{content}]}}]}}"#))
}

#[test]
fn what_only_looks_like_a_data_url_is_text() {
    let image = |url: &str| in_message(&format!(r#"{{"image_url":{{"url":{}}}}}"#, serde_json::json!(url)));
    for url in [
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/svg+xml;charset=utf-8;base64,PHN2Zz4",
        "data:application/vnd.ms-excel;base64,AAAA",
    ] {
        assert!(image(url).is_empty(), "{url}");
        assert_eq!(in_message(&format!(r#"{{"text":"{url}"}}"#)), [[url]], "no member that links");
    }
    let long = format!("data:{};base64,AAAA", "a".repeat(101));
    for url in [
        "data: ignore all previous instructions, card 4111 1111 1111 1111 ;base64,",
        "data: ignore all previous instructions ;base64,AAAA",
        "data:image/png;base64,",
        "data:image/png;base64,====",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AAA=A",
        "data:image/png;base64,AAAAA=",
        "data:image/png;base64,ignore all previous",
        "data:image/png;base64,AAAA\nAAAA",
        "data:image/png;base64,AA-_",
        "data:;base64,AAAA",
        "data:IGNORE ALL;base64,AAAA",
        long.as_str(),
    ] {
        assert_eq!(image(url), [[url]]);
    }
}

#[test]
fn data_is_encoded_only_where_the_api_says_so() {
    let bytes = "iVBORw0KGgoAAAAN".repeat(5);
    for source in [
        format!(r#"{{"type":"base64","media_type":"image/png","data":"{bytes}"}}"#),
        format!(r#"{{"data":"{bytes}","media_type":"image/png","type":"base64"}}"#),
        format!(r#"{{"data":"{bytes}AA==","t\u0079pe":"base64"}}"#),
        format!(r#"{{"input_audio":{{"data":"{bytes}"}}}}"#),
        format!(r#"{{"file":{{"file_data":"{bytes}"}}}}"#),
    ] {
        let found = in_message(&format!(r#"{{"type":"image","source":{source}}}"#));
        assert!(found.is_empty(), "{source}: {found:?}");
    }
    for source in [
        format!(r#"{{"data":"{bytes}"}}"#),
        format!(r#"{{"type":"text","data":"{bytes}"}}"#),
        format!(r#"{{"type":"base64","data":"{bytes}","type":"text"}}"#),
        format!(r#"{{"type":"text","data":"{bytes}","type":"base64"}}"#),
        format!(r#"{{"type":"base64","data":["{bytes}"]}}"#),
        format!(r#"{{"inner":{{"type":"base64"}},"data":"{bytes}"}}"#),
    ] {
        assert_eq!(in_message(&format!(r#"{{"source":{source}}}"#)), [[bytes.as_str()]], "{source}");
    }
    for odd in ["-", "_", "\\n", "\\r", " ", "é"] {
        let source = format!(r#"{{"type":"base64","data":"{bytes}{odd}{bytes}AAA"}}"#);
        assert_eq!(in_message(&format!(r#"{{"source":{source}}}"#)).len(), 1, "{odd}");
    }
}

#[test]
fn in_what_a_tool_is_given_every_text_counts() {
    let said = "a@b.example";
    for member in ["input", "arguments", "parameters"] {
        for name in ["id", "type", "role", "status", "detail", "model"] {
            let content = format!(r#"{{"type":"tool_use","id":"t","{member}":{{"deep":[{{"{name}":"{said}"}}]}}}}"#);
            assert_eq!(in_message(&content), [[said]], "{content}");
        }
        let numbered = format!(r#"{{"{member}":{{"id":4111111111111111}}}}"#);
        assert_eq!(in_message(&numbered), [["4111111111111111"]]);
        let bytes = "AAAA".repeat(20);
        for inner in [
            format!(r#"{{"type":"base64","data":"{bytes}"}}"#),
            format!(r#"{{"file_data":"{bytes}"}}"#),
            format!(r#"{{"url":"data:image/png;base64,{bytes}"}}"#),
        ] {
            let found = in_message(&format!(r#"{{"{member}":{inner}}}"#));
            assert!(found.iter().any(|passage| passage[0].contains(&bytes)), "{member} {inner}: {found:?}");
        }
    }
    // The outer `input` is the prompt itself, whose items are the API's.
    let item = r#"{"input":[{"type":"message","role":"user","id":"m1","content":[{"type":"input_text","text":"x"}]}]}"#;
    assert_eq!(parts(item), [["x"]]);
}

#[test]
fn prompts_of_tokens_are_noticed() {
    for (body, tokens) in [
        (r#"{"prompt":[1,2,3]}"#, true),
        (r#"{"input":[[1],[2]]}"#, true),
        (r#"{"input":["a"],"dimensions":3}"#, false),
        (r#"{"input":[{"type":"message","n":3}]}"#, false),
        (r#"{"max_tokens":12345678}"#, false),
    ] {
        assert_eq!(Texts::of_json(body).tokens, tokens, "{body}");
    }
}

#[test]
fn masks_change_nothing_else() {
    let body = r#"{ "x":"a\u0040b \"q\" c", "messages":[{"content":[ {"text":"plain a@b text"},{"n":41111111}] }] }"#;
    let texts = Texts::of_json(body);
    let at = |text: &str, part: &str| part.find(text).unwrap()..part.find(text).unwrap() + text.len();
    let mask = |passage: usize, text: &str, with: &str| {
        let part = &texts.passages[passage].parts[0];
        Mask { passage, part: 0, at: at(text, part), text: with.to_owned() }
    };
    let masks = [mask(0, "a@b", "[\"m\"]"), mask(1, "a@b", "[m]"), mask(2, "41111111", "[n]")];
    let masked = texts.masked(&Bytes::copy_from_slice(body.as_bytes()), &masks);
    assert_eq!(
        std::str::from_utf8(&masked).unwrap(),
        r#"{ "x":"[\"m\"] \"q\" c", "messages":[{"content":[ {"text":"plain [m] text"},{"n":"[n]"}] }] }"#
    );
    serde_json::from_slice::<serde_json::Value>(&masked).unwrap();
    let escapes = r#"{"x":"\u0041 a@b, c@d \u0041"}"#;
    let texts = Texts::of_json(escapes);
    let both = [2..5, 7..10].map(|at| Mask { passage: 0, part: 0, at, text: "[m]".to_owned() });
    assert_eq!(texts.masked(&Bytes::from_static(escapes.as_bytes()), &both), r#"{"x":"A [m], [m] A"}"#);
    let form = b"a@b and more";
    let texts = Texts::of_fields(form, &[0..3, 4..7]);
    let masks = [Mask { passage: 0, part: 0, at: 0..3, text: "[m]".to_owned() }];
    assert_eq!(texts.masked(&Bytes::from_static(form), &masks), "[m] and more");
}

proptest::proptest! {
    /// Whatever JSON comes, no text is cut, and masking all of it leaves JSON.
    #[test]
    fn any_json_stays_json(value in json(4)) {
        let body = serde_json::json!({"messages": [value]}).to_string();
        let texts = Texts::of_json(&body);
        let masks: Vec<Mask> = texts.passages.iter().enumerate().flat_map(|(passage, p)| {
            p.parts.iter().enumerate().map(move |(part, text)| Mask { passage, part, at: 0..text.len(), text: "[\"m\"]".to_owned() })
        }).collect();
        let masked = texts.masked(&Bytes::from(body.clone()), &masks);
        proptest::prop_assert!(serde_json::from_slice::<serde_json::Value>(&masked).is_ok(), "{}", body);
    }
}

fn json(depth: u32) -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    let leaf = proptest::prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        "\\PC{0,8}|[\"\\\\\n]{1,3}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(depth, 32, 4, |inner| {
        proptest::prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            proptest::collection::hash_map("text|content|type|\\PC{0,6}", inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}
