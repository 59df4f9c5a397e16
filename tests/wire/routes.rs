//! The governed route table, and the ways around it that must not exist.

use alchemi::model::usage::RouteKind;
use alchemi::proxy::ingress::normalise;
use alchemi::proxy::routes::{CONTROL_PLANE, Governed, Route, method_not_allowed, route};
use http::Method;

const POST: Method = Method::POST;
const GET: Method = Method::GET;

/// Method, path, kind, model of the path, item of the path.
type Spelling = (Method, &'static str, RouteKind, Option<&'static str>, Option<&'static str>);

#[rustfmt::skip]
const SPELLINGS: [Spelling; 48] = [
    (POST, "/v1/chat/completions", RouteKind::Chat, None, None),
    (POST, "/chat/completions", RouteKind::Chat, None, None),
    (POST, "/engines/gpt-4o/chat/completions", RouteKind::Chat, Some("gpt-4o"), None),
    (POST, "/engines/openai/gpt-4o/chat/completions", RouteKind::Chat, Some("openai/gpt-4o"), None),
    (POST, "/openai/deployments/gpt-4o/chat/completions", RouteKind::Chat, Some("gpt-4o"), None),
    (POST, "/openai/deployments/gpt%204/chat/completions", RouteKind::Chat, Some("gpt 4"), None),
    (POST, "/openai/deployments/caf%C3%A9/chat/completions", RouteKind::Chat, Some("café"), None),
    (POST, "/openai/deployments/a/embeddings/chat/completions", RouteKind::Chat, Some("a/embeddings"), None),
    (POST, "/v1/completions", RouteKind::Completion, None, None),
    (POST, "/completions", RouteKind::Completion, None, None),
    (POST, "/engines/m/completions", RouteKind::Completion, Some("m"), None),
    (POST, "/engines/chat/completions", RouteKind::Completion, Some("chat"), None),
    (POST, "/openai/deployments/m/completions", RouteKind::Completion, Some("m"), None),
    (POST, "/v1/responses", RouteKind::Responses, None, None),
    (POST, "/responses", RouteKind::Responses, None, None),
    (POST, "/openai/v1/responses", RouteKind::Responses, None, None),
    (GET, "/v1/responses/resp_1", RouteKind::ResponseItem, None, Some("resp_1")),
    (Method::DELETE, "/v1/responses/resp_1", RouteKind::ResponseItem, None, Some("resp_1")),
    (GET, "/responses/resp_1", RouteKind::ResponseItem, None, Some("resp_1")),
    (Method::DELETE, "/responses/resp_1", RouteKind::ResponseItem, None, Some("resp_1")),
    (GET, "/openai/v1/responses/resp_1", RouteKind::ResponseItem, None, Some("resp_1")),
    (Method::DELETE, "/openai/v1/responses/a%3Db", RouteKind::ResponseItem, None, Some("a=b")),
    (POST, "/v1/messages", RouteKind::Messages, None, None),
    (POST, "/messages", RouteKind::Messages, None, None),
    (POST, "/v1/messages/count_tokens", RouteKind::CountTokens, None, None),
    (POST, "/messages/count_tokens", RouteKind::CountTokens, None, None),
    (POST, "/v1/embeddings", RouteKind::Embeddings, None, None),
    (POST, "/embeddings", RouteKind::Embeddings, None, None),
    (POST, "/engines/m/embeddings", RouteKind::Embeddings, Some("m"), None),
    (POST, "/openai/deployments/m/embeddings", RouteKind::Embeddings, Some("m"), None),
    (POST, "/v1/images/generations", RouteKind::Images, None, None),
    (POST, "/images/generations", RouteKind::Images, None, None),
    (POST, "/openai/deployments/m/images/generations", RouteKind::Images, Some("m"), None),
    (POST, "/v1/images/edits", RouteKind::Images, None, None),
    (POST, "/images/edits", RouteKind::Images, None, None),
    (POST, "/v1/audio/speech", RouteKind::Speech, None, None),
    (POST, "/audio/speech", RouteKind::Speech, None, None),
    (POST, "/v1/audio/transcriptions", RouteKind::Transcription, None, None),
    (POST, "/audio/transcriptions", RouteKind::Transcription, None, None),
    (POST, "/v1/moderations", RouteKind::Moderations, None, None),
    (POST, "/moderations", RouteKind::Moderations, None, None),
    (POST, "/v1/rerank", RouteKind::Rerank, None, None),
    (POST, "/rerank", RouteKind::Rerank, None, None),
    (POST, "/v2/rerank", RouteKind::Rerank, None, None),
    (GET, "/v1/models", RouteKind::Models, None, None),
    (GET, "/models", RouteKind::Models, None, None),
    (GET, "/v1/models/gpt-4o", RouteKind::Models, None, Some("gpt-4o")),
    (GET, "/models/openai/gpt-4o", RouteKind::Models, None, Some("openai/gpt-4o")),
];

#[test]
fn every_spelling_is_governed() {
    for (method, path, kind, model, item) in SPELLINGS {
        let expected = Governed { kind, model: model.map(Into::into), item: item.map(Into::into) };
        assert_eq!(route(&method, path), Route::Governed(expected), "{method} {path}");
    }
    for kind in RouteKind::ALL {
        assert!(SPELLINGS.iter().any(|s| s.2 == kind), "no spelling of {kind:?}");
    }
}

#[test]
fn no_variant_of_a_path_leads_elsewhere() {
    for (method, path, ..) in SPELLINGS {
        let exact = route(&method, path);
        let (parent, last) = path.rsplit_once('/').unwrap();
        let first = path.split('/').nth(1).unwrap();
        let refused = [
            format!("/{path}"),
            format!("{parent}//{last}"),
            format!("{parent}/./{last}"),
            format!("{parent}/x/../{last}"),
            format!("/%2e%2e{path}"),
            format!("/.{path}"),
            format!("{path}/.."),
            format!("{parent}%2f{last}"),
            format!("{parent}%252f{last}"),
            format!("{parent}%5c{last}"),
            format!("{path};a"),
            format!("/{first};a={}", &path[first.len() + 1..]),
            format!("{path}%3ba"),
            format!("{path}%00"),
            format!("{path}%23"),
            format!("{path}%3f"),
            format!("{}\\{last}", parent),
            format!("{path}\u{e9}"),
            format!("{path}%"),
            format!("{path}%zz"),
            format!("{path}%ff"),
        ];
        for variant in refused {
            assert!(normalise(&variant).is_err(), "{variant} is let in");
        }
        // One needless escape is undone, once, and then it is the same path.
        let escaped = path.replacen('o', "%6f", 1).replacen('e', "%65", 1);
        assert_eq!(route(&method, &normalise(&escaped).unwrap()), exact, "{escaped}");
        // Case and a trailing slash make another path, which is not governed by the same line.
        let shouted = path.to_ascii_uppercase();
        assert_eq!(route(&method, &normalise(&shouted).unwrap()), Route::Ungoverned, "{shouted}");
        let slashed = format!("{path}/");
        assert_eq!(route(&method, &normalise(&slashed).unwrap()), Route::Ungoverned, "{slashed}");
    }
}

#[test]
fn our_own_prefixes_are_never_forwarded() {
    for prefix in CONTROL_PLANE {
        for path in
            [prefix.to_owned(), format!("{prefix}/"), format!("{prefix}/nowhere/x"), prefix.to_ascii_uppercase()]
        {
            for method in [GET, POST, Method::DELETE, Method::OPTIONS] {
                assert_eq!(route(&method, &path), Route::ControlPlane, "{method} {path}");
            }
        }
        assert_eq!(route(&GET, &format!("{prefix}x")), Route::Ungoverned);
    }
}

#[test]
fn what_is_not_in_the_table_is_not_governed() {
    for path in [
        "/",
        "/key/generate",
        "/v1/key/generate",
        "/model/info",
        "/v1/chat",
        "/v1/chat/completions/1",
        "/v1",
        "/v1/",
        "/openai/chat/completions",
        "/openai/v1/chat/completions",
        "/openai/deployments//chat/completions",
        "/openai/deployments/m/responses",
        "/openai/deployments/m/audio/speech",
        "/engines/completions",
        "/openai/deployments/completions",
        "/engines/m/images/generations",
        "/engines/m/models",
        "/v2/chat/completions",
        "/v1/engines/m/chat/completions",
        "/anthropic/v1/messages",
        "/v1/responses/",
        "/v1/responses/a/input_items",
        "/v1/responses/a/cancel",
        "/v1/models/",
        "/v1/models/a/",
        "/v1/v1/chat/completions",
        "/ui/",
        "/metrics",
        "",
        "v1/chat/completions",
    ] {
        for method in [GET, POST] {
            assert_eq!(route(&method, path), Route::Ungoverned, "{method} {path}");
        }
    }
    // LiteLLM's native Google routes share a prefix with models.
    assert_eq!(route(&POST, "/models/gemini-pro:generateContent"), Route::Ungoverned);
}

#[test]
fn another_method_is_named() {
    for (path, allow) in [("/v1/chat/completions", POST), ("/engines/m/embeddings", POST), ("/v1/models", GET)] {
        let Route::MethodNotAllowed { allow: methods, .. } = route(&Method::PATCH, path) else { panic!("{path}") };
        assert_eq!(methods, [allow]);
        let problem = method_not_allowed(methods);
        assert_eq!((problem.status(), problem.code()), (405, "method_not_allowed"));
        assert_eq!(problem.headers()["allow"], methods[0].as_str());
    }
}
