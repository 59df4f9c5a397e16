//! The pages that the `type` of a problem leads to.

use alchemi::problem::pages;

use crate::common::{Backend, Gateway};
use crate::refusal;

#[tokio::test]
async fn every_problem_leads_to_a_page_that_says_what_to_do() {
    let gateway = Gateway::start(Backend::Sqlite).await;
    let anybody = gateway.anybody();
    let kind = |reply: &crate::Reply| reply.header("content-type").to_owned();
    let index = anybody.get("/docs/problems").await;
    assert_eq!((index.status.as_u16(), &*kind(&index)), (200, "text/html; charset=utf-8"));
    for page in pages::all() {
        let link = format!("href=\"/docs/problems/{}\"", page.code);
        assert!(index.text().contains(&link), "{link}");
        let shown = anybody.get(&format!("/docs/problems/{}", page.code)).await;
        assert_eq!((shown.status.as_u16(), &*kind(&shown)), (200, "text/html; charset=utf-8"));
        let html = shown.text();
        let own = [page.code, "<h2>What it means</h2>", "<h2>What to do</h2>"];
        assert!(own.iter().all(|part| html.contains(part)), "{html}");
        for foreign in ["http://", "https://", "<script", "<link", "src="] {
            assert!(!html.contains(foreign), "it is read without a network: {html}");
        }
    }

    // As a client comes there: by what a refusal says.
    let refused = refusal(&anybody.get("/v1/accounts").await, 401, "token_missing");
    let page = anybody.get(refused["type"].as_str().unwrap()).await;
    assert!(page.status.is_success() && page.text().contains("There is no token"), "{}", page.text());
    assert_eq!(anybody.get("/docs/").await.status.as_u16(), 200, "the operations are where they were");
    for unknown in ["/docs/problems/unheard_of", "/docs/problems/Not_Found", "/docs/problems/%3Cscript%3E"] {
        refusal(&anybody.get(unknown).await, 404, "not_found");
    }
    let posted = anybody.post("/docs/problems", serde_json::json!({})).await;
    refusal(&posted, 405, "method_not_allowed");
}
