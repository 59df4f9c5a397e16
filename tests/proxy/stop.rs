//! The end: what is under way, what is cut, and what is settled all the same.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::gateway::PATIENCE;
use crate::common::{Gateway, backends};

#[tokio::test]
async fn a_connection_that_is_cut_is_settled_before_the_end() {
    for backend in backends().await {
        let mut gateway = Gateway::start_with(backend, |config| config.limits.drain_seconds = 0).await;
        let account = gateway.account("Acme").await;
        gateway.open_models(&account).await;
        gateway.allocate(&account, "10").await;
        let ada = gateway.as_end_user(&account, "ada");
        let body = json!({
            "model": "gpt-4o-mini+endless+gap=1", "stream": true, "messages": [{"role": "user", "content": "Hello"}],
        });
        let endless = ada.request(Method::POST, "/v1/chat/completions").json(&body).send().await.unwrap();
        assert_eq!(endless.status(), 200);

        let stopped = gateway.stop().await;
        assert_eq!((stopped.drained, stopped.settled), (false, 1));
        assert_eq!(gateway.ledger(&account).await.len(), 1);
        assert!(tokio::time::timeout(PATIENCE, endless.bytes()).await.unwrap().is_err(), "cut, not ended");
    }
}

#[tokio::test]
async fn the_end_is_seen_at_the_limit_of_connections() {
    for backend in backends().await {
        let mut gateway = Gateway::start_with(backend, |config| {
            config.limits.connections = 1;
            config.limits.drain_seconds = 0;
        })
        .await;
        let address = gateway.url().trim_start_matches("http://").to_owned();
        let mut only = TcpStream::connect(address).await.unwrap();
        let mut one = [0];
        only.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        only.read_exact(&mut one).await.unwrap();

        tokio::time::timeout(PATIENCE, gateway.stop()).await.expect("the end is seen");
    }
}
