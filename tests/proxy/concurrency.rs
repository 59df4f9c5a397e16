//! Many at once against one budget.

use alchemi::metering::charge::Unpriced;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;

use crate::common::{Gateway, backends};
use crate::{chat, int, text};

/// Costs exactly the flat price, which is also what is held for it.
const MODEL: &str = "free-for-all";

#[tokio::test]
async fn of_64_requests_a_budget_for_10_admits_exactly_10() {
    for backend in backends().await {
        let flat =
            |config: &mut alchemi::config::Config| config.metering.unpriced = "flat:0.01".parse::<Unpriced>().unwrap();
        let gateway = Gateway::start_with(backend.clone(), flat).await;
        for round in 0..20 {
            let account = gateway.account(&format!("Acme {round}")).await;
            gateway.open_models(&account).await;
            // In turn, the account's own cap is the one that counts, or that of a team in the middle of the chain.
            let of_team = round % 2 == 1;
            gateway.allocate(&account, if of_team { "100" } else { "0.1" }).await;
            let org = gateway.org(&account, "copilot", "Research").await;
            let team = gateway.team(&account, "copilot", &org, "Physics").await;
            let plan = gateway.plan(&account).await;
            gateway.allot(&account, &plan, ("team", &team), if of_team { "0.1" } else { "100" }).await;
            let mut people = Vec::new();
            for n in 0..4 {
                let subject = format!("subject-{n}");
                let user = gateway.user(&account, "copilot", &subject, &[&team]).await;
                gateway.allot(&account, &plan, ("user", &user), "50").await;
                people.push(gateway.as_end_user(&account, &subject));
            }

            let before = gateway.forwarded().len();
            let ask = |n: usize| people[n % people.len()].post("/v1/chat/completions", chat(MODEL)).boxed();
            let replies = join_all((0..64).map(ask)).await;

            let admitted = replies.iter().filter(|reply| reply.status == 200).count();
            assert_eq!(admitted, 10, "round {round} on {backend:?}");
            for refused in replies.iter().filter(|reply| reply.status != 200) {
                assert_eq!((refused.status.as_u16(), refused.code().as_str()), (402, "allocation_exhausted"));
                let scope = if of_team { ("team", &team) } else { ("account", &account) };
                assert_eq!(refused.json()["error"]["scope"], json!({"scope_type": scope.0, "scope_id": scope.1}));
            }
            assert_eq!(gateway.forwarded().len() - before, 10, "a refused request never reaches the upstream");
            let rows = gateway.settled(&account, 10).await;
            assert!(
                rows.iter().all(|row| int(row, "raw_cost") == 10_000_000 && text(row, "cost_source") == "unpriced")
            );
            let counters = gateway.counters(&account).await;
            assert_eq!(counters[&("account".to_owned(), account.clone())], (100_000_000, 0));
            assert_eq!(counters[&("team".to_owned(), team.clone())], (100_000_000, 0));
        }
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

/// What a request that is over has held is there when the next one comes, wherever it stands on its way into the books.
#[tokio::test]
async fn who_asks_one_after_another_is_not_refused_for_what_is_over() {
    for backend in backends().await {
        for leases in [true, false] {
            let gateway =
                Gateway::start_with(backend.clone(), |config| config.allocation.leases.enabled = leases).await;
            let account = gateway.account(if leases { "Acme" } else { "Beta" }).await;
            gateway.open_models(&account).await;
            gateway.allocate(&account, "0.015").await;
            let ada = gateway.as_end_user(&account, "ada");
            for n in 0..15 {
                let reply = ada.post("/v1/chat/completions", chat("gpt-4o")).await;
                assert_eq!(reply.status, 200, "{n}, leases {leases}: {}", reply.text());
            }
            gateway.settled(&account, 15).await;
            assert_eq!(gateway.verify_books().await.differences, []);
        }
    }
}

/// What costs by the image, the character or the second holds that much too.
#[tokio::test]
async fn what_is_not_billed_by_tokens_is_held_all_the_same() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        for (n, (path, body, each)) in [
            ("/v1/images/generations", json!({"model": "dall-e-3", "prompt": "a fish"}), 40_000_000),
            ("/v1/audio/speech", json!({"model": "tts-1", "input": "x".repeat(100), "voice": "alloy"}), 1_500_000),
        ]
        .into_iter()
        .enumerate()
        {
            let account = gateway.account(&format!("Acme {n}")).await;
            gateway.open_models(&account).await;
            gateway.allocate(&account, &format!("{:.9}", f64::from(each) * 10e-9)).await;
            let ada = gateway.as_end_user(&account, "ada");
            let replies = join_all((0..64).map(|_| ada.post(path, body.clone()))).await;
            let admitted = replies.iter().filter(|reply| reply.status == 200).count();
            assert_eq!(admitted, 10, "{path}: {:?}", replies.iter().map(|r| r.status.as_u16()).collect::<Vec<_>>());
            let rows = gateway.settled(&account, 10).await;
            assert!(rows.iter().all(|row| int(row, "raw_cost") == i64::from(each)), "{rows:?}");
        }
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}

#[tokio::test]
async fn what_is_not_used_of_a_hold_is_there_for_the_next() {
    for backend in backends().await {
        let gateway = Gateway::start(backend).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        // A request holds 1024 output tokens at 0.00001 and uses a few: room for one at a time, not for two.
        gateway.allocate(&account, "0.015").await;
        let ada = gateway.as_end_user(&account, "ada");
        for n in 0..5 {
            ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
            gateway.settled(&account, n + 1).await;
        }
        gateway
            .upstream
            .behave(alchemi::dev::Behaviour { delay: std::time::Duration::from_secs(600), ..Default::default() });
        let waiting = tokio::spawn({
            let ada = ada.clone();
            async move { ada.post("/v1/chat/completions", chat("gpt-4o")).await }
        });
        // One more is on its way, and holds.
        let arrived = gateway.upstream.until(|activity| activity.open > 0);
        tokio::time::timeout(crate::common::gateway::PATIENCE, arrived).await.unwrap();
        let reply = ada.post("/v1/chat/completions", chat("gpt-4o")).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (402, "allocation_exhausted"));
        // It would fit without what is held: that is another matter than having spent it.
        assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), ("true", "1"));
        let detail = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(detail.contains("try again in a moment"), "{detail}");
        waiting.abort();
        gateway.settled(&account, 6).await;
        gateway.upstream.behave(alchemi::dev::Behaviour::default());
        ada.post("/v1/chat/completions", chat("gpt-4o")).await.ok();
        gateway.settled(&account, 7).await;
        assert_eq!(gateway.verify_books().await.differences, []);
    }
}
