//! A gateway with pingora: governed routes are alchemi's, any other path goes to a server of one's own. The pipeline is
//! that of `examples/tower_stack.rs`, with an issuer and a database of its own, so this runs as it is:
//!
//! ```sh
//! cargo run -p alchemi-pingora --example gateway -- 127.0.0.1:8080 127.0.0.1:8000
//! ```
#![expect(clippy::print_stdout, reason = "it says where it listens, and what came of it")]

#[expect(dead_code, unreachable_pub, reason = "an example is a program of its own")]
#[path = "../../../examples/tower_stack.rs"]
mod tower_stack;

use std::error::Error;
use std::time::Duration;

use alchemi::Govern;
use alchemi_pingora::{Gate, Governed};
use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::listening::Service;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session};
use tower::service_fn;

/// The longest that a client may be silent, or read nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of a request.
struct Front {
    governed: Governed<Govern>,
    /// Where anything goes that is not alchemi's.
    upstream: String,
}

#[async_trait]
impl ProxyHttp for Front {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        if session.get_keepalive() == Some(0) {
            // For ever, to pingora.
            session.set_keepalive(Some(PATIENCE.as_secs()));
        }
        session.set_write_timeout(Some(PATIENCE));
        self.governed.answer(session).await
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.upstream, false, String::new())))
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut addresses = std::env::args().skip(1);
    let listen = addresses.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let upstream = addresses.next().unwrap_or_else(|| "127.0.0.1:8000".to_owned());
    // The issuer, the settler and the jobs live here; pingora has runtimes of its own, which end first.
    let runtime = tokio::runtime::Runtime::new()?;
    let stack = runtime.block_on(tower_stack::Stack::over(service_fn(tower_stack::parrot), "100"))?;

    // Upon SIGTERM, requests under way have two seconds; an LLM's want more.
    let draining = ServerConf {
        grace_period_seconds: Some(2),
        graceful_shutdown_timeout_seconds: Some(5),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, draining);
    server.bootstrap();
    let front = Front { governed: Governed::new(stack.service.clone()), upstream };
    let proxy = pingora_proxy::http_proxy(&server.configuration, front);
    let mut service = Service::new("gateway".to_owned(), Gate::new(proxy));
    service.add_tcp(&listen);
    server.add_service(service);

    println!("http://{listen}/v1/chat/completions, with the token of Ada:\n{}", stack.token);
    server.run(RunArgs::default());
    let settled = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), stack.settle()).await })?;
    println!("the account has spent {} credits", settled?);
    Ok(())
}
