//! Tokens cut off before they expire.

use alchemi::store::changes::ChangeKind;
use serde_json::json;

use crate::gateway::{ISSUER, gateways, gateways_at_rest, issued};

#[tokio::test]
async fn of_two_moments_the_later_holds() {
    for (gateway, clock) in gateways_at_rest(issued).await {
        let operator = gateway.as_operator(None);
        let mut changes = gateway.store.changes();
        let path = "/auth/revocations";
        let (status, first, _) = operator.post(path, json!({"subject": "eve", "reason": "laptop lost"})).await.parts();
        assert_eq!(status, 200, "{first}");
        let item = &first["item"];
        assert_eq!((&item["issuer"], &item["issued_before"]), (&json!(ISSUER), &json!("2027-01-15T08:00:00Z")));
        assert_eq!(changes.recv().await.unwrap().kind, ChangeKind::Revocations);

        let earlier = json!({"issuer": ISSUER, "subject": "eve", "issued_before": "2020-01-01T00:00:00Z"});
        let (_, again, _) = operator.post(path, earlier).await.parts();
        assert_eq!(again, first);
        let later = json!({"subject": "eve", "issued_before": "2027-01-15T09:59:00+01:00"});
        let (_, later, _) = operator.post(path, later).await.parts();
        assert_eq!(later["item"]["issued_before"], "2027-01-15T08:59:00Z");
        let ahead = json!({"subject": "eve", "issued_before": "2027-01-15T09:00:01Z"});
        let (status, ahead, _) = operator.post(path, ahead).await.parts();
        assert_eq!((status, &ahead["errors"][0]["pointer"]), (422, &json!("/issued_before")));
        assert_eq!((&later["item"]["id"], &later["item"]["reason"]), (&item["id"], &json!("laptop lost")));

        clock.advance(std::time::Duration::from_secs(1));
        operator.post(path, json!({"subject": "mallory"})).await.ok();
        let (_, page, _) = operator.get("/auth/revocations?limit=1").await.parts();
        assert_eq!(page["items"][0]["subject"], "mallory");
        let rest = format!("/auth/revocations?cursor={}", page["next_cursor"].as_str().unwrap());
        assert_eq!(operator.get(&rest).await.parts().1["items"][0], later["item"]);

        let one = format!("{path}/{}", item["id"].as_str().unwrap());
        assert_eq!(operator.delete(&one).await.parts().1, json!({"deleted": true}));
        assert_eq!(operator.delete(&one).await.parts().0, 404);
        let (_, audit, _) = operator.get("/accounts/platform/audit?domain=iam").await.parts();
        let actions: Vec<_> = audit["items"].as_array().unwrap().iter().map(|e| e["action"].clone()).collect();
        assert_eq!(actions, ["delete", "upsert", "upsert", "upsert", "upsert"]);
        assert_eq!(operator.get("/accounts/platform/audit/verify").await.parts().1["item"]["valid"], true);
    }
}

#[tokio::test]
async fn an_issuer_that_is_not_accepted_is_refused() {
    let gateway = gateways(issued).await.remove(0);
    let operator = gateway.as_operator(None);
    let misspelt = json!({"issuer": "https://login.example.org", "subject": "eve"});
    let (status, body, _) = operator.post("/auth/revocations", misspelt).await.parts();
    assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/issuer")));
    assert_eq!(operator.post("/auth/revocations", json!({"subject": ""})).await.parts().0, 422);
}
