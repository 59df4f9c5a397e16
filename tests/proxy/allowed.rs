//! What is let through: every kind of route, what it costs, and what its client sees.

use http::Method;
use serde_json::{Value, json};

use crate::common::backends;
use crate::common::gateway::number;
use crate::{Stage, chat, int, nanos, streamed, text, with};

const TEXT: &str = "Tell me about alchemy.";

/// Path, body, kind in the ledger. Every one of them costs something.
fn calls() -> Vec<(&'static str, Value, &'static str)> {
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
    let messages =
        json!({"model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}]});
    vec![
        ("/v1/chat/completions", chat("gpt-4o-mini"), "chat"),
        ("/chat/completions", chat("gpt-4o"), "chat"),
        ("/engines/gpt-4o-mini/chat/completions", chat("gpt-4o-mini"), "chat"),
        ("/openai/deployments/gpt-4o-mini/chat/completions", chat("gpt-4o-mini"), "chat"),
        (
            "/v1/chat/completions",
            with(with(chat("gpt-4o"), "tools", json!([tool])), "tool_choice", json!("required")),
            "chat",
        ),
        ("/v1/completions", json!({"model": "gpt-4o-mini", "prompt": TEXT}), "completion"),
        ("/v1/responses", json!({"model": "gpt-4o-mini", "input": TEXT}), "responses"),
        ("/openai/v1/responses", json!({"model": "gpt-4o", "input": TEXT}), "responses"),
        ("/v1/messages", messages, "messages"),
        ("/v1/embeddings", json!({"model": "text-embedding-3-small", "input": [TEXT, TEXT]}), "embeddings"),
        ("/v1/images/generations", json!({"model": "dall-e-3", "prompt": TEXT, "n": 2}), "images"),
        ("/v1/audio/speech", json!({"model": "tts-1", "input": TEXT, "voice": "alloy"}), "speech"),
        ("/v1/rerank", json!({"model": "rerank-v3.5", "query": "a b", "documents": ["a", "b"]}), "rerank"),
        ("/v2/rerank", json!({"model": "rerank-v3.5", "query": "a b", "documents": ["a", "b"]}), "rerank"),
    ]
}

#[tokio::test]
async fn every_kind_is_answered_and_paid_to_the_nano() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let terms = json!({"account_id": stage.account, "monthly_credits": 1000, "credit_factor": number("2.5")});
        stage.gateway.operator().post("/v1/budgets/account-allocation", terms).await.ok();
        let mut total = 0;
        for (n, (path, body, kind)) in calls().into_iter().enumerate() {
            let reply = stage.ada.post(path, body.clone()).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            assert_eq!(reply.header("x-alchemi-decision"), "allow");
            let cost = nanos(reply.header("x-litellm-response-cost"));
            assert!(cost > 0, "{path}");

            let rows = stage.settled(n + 1).await;
            let row = rows.last().unwrap();
            assert_eq!(text(row, "request_id"), reply.header("x-request-id"));
            assert_eq!((text(row, "kind"), text(row, "cost_source")), (kind, "header"), "{path}");
            assert_eq!((int(row, "raw_cost"), int(row, "credit_factor")), (cost, 2_500_000_000), "{path}");
            // Rounded once, half to even.
            let credits = (cost * 5 / 2) + i64::from(cost * 5 % 2 != 0 && (cost * 5 / 2) % 2 != 0);
            assert_eq!(int(row, "credits_incurred"), credits, "{path}");
            assert_eq!(row["model_name"], body["model"], "{path}");
            assert_eq!((text(row, "subject"), text(row, "domain")), ("ada", "copilot"));
            assert_eq!((int(row, "status"), text(row, "marks")), (200, ""), "{path}");
            // Our id is LiteLLM's call id; a response is known by its own.
            let own = reply.header("x-request-id").to_owned();
            let call = if kind == "responses" { reply.json()["id"].as_str().unwrap().to_owned() } else { own };
            assert_eq!(text(row, "upstream_call_id"), call);
            if kind == "chat" {
                let usage = &reply.json()["usage"];
                assert_eq!(json!(int(row, "input_tokens")), usage["prompt_tokens"]);
                assert_eq!(json!(int(row, "output_tokens")), usage["completion_tokens"]);
            }
            total += credits;
        }
        assert_eq!(stage.rested().await, (total, 0), "what was held is given back");
        let report = stage.gateway.verify_books().await;
        assert_eq!((report.rows, &report.differences), (calls().len() as u64, &Vec::new()));
    }
}

#[tokio::test]
async fn usage_is_added_up_by_day_model_and_place() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let (gateway, account) = (&stage.gateway, &stage.account);
        let org = gateway.org(account, "copilot", "Research").await;
        let team = gateway.team(account, "copilot", &org, "Physics").await;
        let user = gateway.user(account, "copilot", "ada", &[&team]).await;
        let plan = gateway.plan(account).await;
        gateway.allot(account, &plan, ("team", &team), "5").await;
        let mut cost = 0;
        for _ in 0..3 {
            let reply = stage.ada.post("/v1/chat/completions", chat("gpt-4o")).await;
            cost += nanos(reply.header("x-litellm-response-cost"));
        }
        let rows = stage.settled(3).await;
        for row in &rows {
            assert_eq!([text(row, "org_id"), text(row, "team_id"), text(row, "user_id")], [&org, &team, &user]);
            assert_eq!(text(row, "plan_id"), plan);
        }
        let sum = |column| rows.iter().map(|row| int(row, column)).sum::<i64>();
        let sql = r#"SELECT * FROM "Alchemi_UsageRollupTable" WHERE account_id = $1"#;
        let rollups = gateway.database.rows(sql, &[account]).await;
        assert_eq!(rollups.len(), 1, "{rollups:#?}");
        let rollup = &rollups[0];
        assert_eq!(
            [text(rollup, "team_id"), text(rollup, "user_id"), text(rollup, "model_name")],
            [&team, &user, "gpt-4o"]
        );
        assert_eq!((int(rollup, "requests"), int(rollup, "raw_cost")), (3, cost));
        assert_eq!(
            (int(rollup, "input_tokens"), int(rollup, "output_tokens")),
            (sum("input_tokens"), sum("output_tokens"))
        );
        let counters = gateway.counters(account).await;
        for scope in [("account", account), ("org", &org), ("team", &team), ("user", &user)] {
            assert_eq!(counters[&(scope.0.to_owned(), scope.1.clone())], (cost, 0), "{scope:?}");
        }
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn a_stream_costs_what_the_same_answer_costs_in_one_piece() {
    for backend in backends().await {
        let stage = Stage::on(backend).await;
        let streams = ["chat", "completion", "responses", "messages"];
        let mut count = 0;
        for (path, body, kind) in calls().into_iter().filter(|(.., kind)| streams.contains(kind)) {
            let whole = stage.ada.post(path, body.clone()).await;
            let cost = nanos(whole.header("x-litellm-response-cost"));
            let reply = stage.ada.post(path, with(body, "stream", json!(true))).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            assert_eq!(reply.header("content-type"), "text/event-stream; charset=utf-8");
            assert!(reply.json_events().len() >= 3, "{path}: {}", reply.text());
            count += 2;
            let rows = stage.settled(count).await;
            let [whole, row] = &rows[count - 2..] else { panic!("two rows") };
            assert_eq!((text(row, "kind"), int(row, "raw_cost")), (kind, cost), "{path}");
            assert!(
                ["body", "priced"].contains(&text(row, "cost_source")),
                "a stream's header is not believed: {row:?}"
            );
            for column in ["input_tokens", "output_tokens"] {
                assert_eq!(int(row, column), int(whole, column), "{path}: {column}");
            }
            assert_eq!(text(row, "marks"), "", "{path}");
        }
        assert_eq!(stage.gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn only_who_asks_for_the_usage_chunk_sees_it() {
    let stage = Stage::set().await;
    let reply = stage.ada.post("/v1/chat/completions", streamed("gpt-4o-mini")).await;
    assert!(reply.json_events().iter().all(|event| event.get("usage").is_none()), "{}", reply.text());
    assert_eq!(reply.events().last().map(String::as_str), Some("[DONE]"));
    let sent = stage.gateway.last_forwarded().json().unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));

    let asked = with(streamed("gpt-4o-mini"), "stream_options", json!({"include_usage": true}));
    let bytes = serde_json::to_vec(&asked).unwrap();
    let reply = stage.ada.post("/v1/chat/completions", asked).await;
    let usages: Vec<_> = reply.json_events().into_iter().filter_map(|event| event.get("usage").cloned()).collect();
    assert_eq!(usages.len(), 1, "{}", reply.text());
    assert_eq!(stage.gateway.last_forwarded().body, bytes, "what needs no change is forwarded byte by byte");
    let rows = stage.settled(2).await;
    assert_eq!(int(&rows[0], "raw_cost"), int(&rows[1], "raw_cost"));
    assert_eq!(int(&rows[1], "raw_cost"), nanos(&usages[0]["cost"].to_string()));
}

#[tokio::test]
async fn what_is_not_ours_in_a_body_is_forwarded_byte_by_byte() {
    let stage = Stage::set().await;
    let body = "{ \"messages\" : [{\"role\":\"user\",\"content\":\"\\u00fc \\ud83d\\ude00\"}],\n\t\"temperature\":1.0e-0,\"model\":\"gpt-4o-mini\" }";
    let request = stage.ada.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    stage.ada.send(request.body(body)).await.ok();
    assert_eq!(stage.gateway.last_forwarded().body, body);
}

#[tokio::test]
async fn a_recording_goes_through_as_a_form() {
    let stage = Stage::set().await;
    let form = format!(
        "--edge\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n\
         --edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
         Content-Type: audio/wav\r\n\r\n{}\r\n--edge--\r\n",
        "x".repeat(40_000)
    );
    let request = stage.ada.request(Method::POST, "/v1/audio/transcriptions");
    let request = request.header("content-type", "multipart/form-data; boundary=edge").body(form.clone());
    let reply = stage.ada.send(request).await;
    let cost = nanos(reply.header("x-litellm-response-cost"));
    assert_eq!(reply.ok()["text"], "A recording of 40000 bytes.");
    assert_eq!(stage.gateway.last_forwarded().body, form);
    let row = &stage.settled(1).await[0];
    assert_eq!((text(row, "kind"), text(row, "model_name")), ("transcription", "whisper-1"));
    assert_eq!((int(row, "raw_cost"), cost), (300_000, 300_000));
}

#[tokio::test]
async fn free_kinds_leave_no_row() {
    let stage = Stage::set().await;
    let question = json!({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": TEXT}]});
    assert_eq!(stage.ada.post("/v1/messages/count_tokens", question).await.ok()["input_tokens"], 6);
    stage.ada.get("/v1/models").await.ok();
    // A moderation costs nothing, and says so in the ledger.
    let judged = stage.ada.post("/v1/moderations", json!({"model": "omni-moderation-latest", "input": TEXT})).await;
    assert_eq!(judged.ok()["results"][0]["flagged"], false);
    let rows = stage.settled(1).await;
    assert_eq!((text(&rows[0], "kind"), int(&rows[0], "raw_cost")), ("moderations", 0));
    assert_eq!(stage.counter().await, (0, 0));
}

#[tokio::test]
async fn a_kept_response_can_be_read_and_removed() {
    let stage = Stage::set().await;
    let made = stage.ada.post("/v1/responses", json!({"model": "gpt-4o-mini", "input": TEXT})).await.ok();
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    assert_eq!(stage.ada.get(&path).await.ok()["id"], made["id"]);
    assert_eq!(stage.ada.delete(&path).await.ok()["deleted"], true);
    assert_eq!(stage.ada.get(&path).await.status, 404, "the upstream's answer");
    stage.settled(1).await;
}

#[tokio::test]
async fn the_list_of_models_shows_what_the_caller_may_use() {
    let stage = Stage::set().await;
    let (gateway, account) = (&stage.gateway, &stage.account);
    let ids = |list: Value| {
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(stage.ada.get("/v1/models").await.ok()).len(), 10);
    gateway.grant(account, "copilot", "gpt-*", ("account", account), "deny").await;
    gateway.grant(account, "copilot", "gpt-4o-mini", ("account", account), "allow").await;
    let reply = stage.ada.get("/models").await;
    assert_eq!(reply.header("content-length").parse::<usize>().unwrap(), reply.body.len());
    let left = ids(reply.ok());
    assert!(left.contains(&"gpt-4o-mini".to_owned()) && !left.contains(&"gpt-4o".to_owned()), "{left:?}");
    assert_eq!(left.len(), 9);
    assert_eq!(stage.ada.get("/v1/models/gpt-4o-mini").await.ok()["id"], "gpt-4o-mini");
    let hidden = stage.ada.get("/v1/models/gpt-4o").await;
    assert_eq!((hidden.status.as_u16(), hidden.code()), (403, "model_denied".to_owned()));
}

#[tokio::test]
async fn the_operator_calls_models_in_an_account() {
    let stage = Stage::set().await;
    let operator = stage.gateway.operator_for(&stage.account);
    operator.post("/v1/chat/completions", chat("gpt-4o-mini")).await.ok();
    assert_eq!(text(&stage.settled(1).await[0], "subject"), "master_key");
    let nowhere = stage.gateway.operator().post("/v1/chat/completions", chat("gpt-4o-mini")).await;
    assert_eq!((nowhere.status.as_u16(), nowhere.code()), (403, "account_context_required".to_owned()));
    assert!(nowhere.text().contains("X-Account-Id"), "{}", nowhere.text());
    let misspelt = stage.gateway.operator_for("nobody").post("/v1/chat/completions", chat("gpt-4o-mini")).await;
    assert_eq!((misspelt.status.as_u16(), misspelt.code()), (403, "account_unknown".to_owned()));
    assert!(misspelt.text().contains("X-Account-Id names no account"), "{}", misspelt.text());
}
