//! Admins of accounts.

use serde_json::{Value, json};

use crate::gateway::{gateways, issued};

#[tokio::test]
async fn admins_are_added_changed_and_removed() {
    for gateway in gateways(issued).await {
        let operator = gateway.as_operator(None);
        let path = format!("/accounts/{}/admins", gateway.created_account("Acme").await);

        let (status, body, _) =
            operator.post(&path, json!({"user_email": " Ada@Acme.com ", "password": null})).await.parts();
        assert_eq!((status, &body["status"]), (200, &json!("ok")));
        let id = body["item"]["id"].clone();
        assert_eq!(body["item"]["role"], "account_admin");
        let (_, body, headers) =
            operator.post(&path, json!({"user_email": "ada@acme.com", "role": "console_org_admin"})).await.parts();
        assert_eq!((&body["item"]["id"], &body["item"]["role"]), (&id, &json!("console_org_admin")));
        assert_eq!(headers["etag"], "\"2\"");

        let (status, body, _) =
            operator.patch(&format!("{path}/ada@acme.com"), json!({"new_email": "al@acme.com"})).await.parts();
        assert_eq!((status, &body["status"], &body["item"]["id"]), (200, &json!("ok"), &id));
        assert_eq!(operator.patch(&format!("{path}/AL%40acme.com"), json!({})).await.parts().0, 200);
        operator.post(&path, json!({"user_email": "bob@acme.com"})).await.ok();
        let (status, body, _) =
            operator.patch(&format!("{path}/bob@acme.com"), json!({"new_email": "al@acme.com"})).await.parts();
        assert_eq!((status, &body["detail"]), (409, &json!("new_email already exists for this account")));

        let (_, list, _) = operator.get(&path).await.parts();
        assert_eq!((list["items"].as_array().unwrap().len(), &list["next_cursor"]), (2, &Value::Null));
        assert_eq!(operator.delete(&format!("{path}/al@acme.com")).await.parts().1, json!({"status": "ok"}));
        let (status, body, _) = operator.delete(&format!("{path}/al@acme.com")).await.parts();
        assert_eq!((status, &body["detail"]), (404, &json!("Admin not found")));
    }
}

#[tokio::test]
async fn roles_addresses_and_passwords_are_checked() {
    let gateway = gateways(issued).await.remove(0);
    let operator = gateway.as_operator(None);
    let path = format!("/accounts/{}/admins", gateway.created_account("Acme").await);
    operator.post(&path, json!({"user_email": "ada@acme.com"})).await.ok();
    let one = format!("{path}/ada@acme.com");
    for (answer, pointer) in [
        (operator.post(&path, json!({"user_email": "ada@acme.com", "role": "super_admin"})).await.parts(), "/role"),
        (operator.post(&path, json!({"user_email": "nobody"})).await.parts(), "/user_email"),
        // The route of an admin could not name it.
        (operator.post(&path, json!({"user_email": "a/b@acme.com"})).await.parts(), "/user_email"),
        (operator.post(&path, json!({"user_email": "a%b@acme.com"})).await.parts(), "/user_email"),
        (operator.post(&path, json!({"user_email": "ada@acme.com", "password": "hunter2"})).await.parts(), "/password"),
        (operator.patch(&one, json!({"role": "boss"})).await.parts(), "/role"),
        (operator.patch(&one, json!({"role": null})).await.parts(), "/role"),
        (operator.patch(&one, json!({"password": "hunter2"})).await.parts(), "/password"),
    ] {
        assert_eq!((answer.0, &answer.1["errors"][0]["pointer"]), (422, &json!(pointer)), "{}", answer.1);
        assert!(!answer.1.to_string().contains("hunter2"));
    }
    let unknown = operator.post("/accounts/nothing/admins", json!({"user_email": "ada@acme.com"})).await.parts();
    assert_eq!((unknown.0, &unknown.1["detail"]), (404, &json!("Account not found")));
    assert_eq!(operator.get("/accounts/nothing/admins").await.parts().1["items"], json!([]));
}
