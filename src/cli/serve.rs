//! `alchemi serve`.

use super::{Failure, block_on, say};
use crate::config::{Config, unknown_variables};
use crate::server::{Server, StartError, Stopped, Surroundings};
use crate::store::StoreError;
use crate::telemetry;

pub(super) fn serve(config: &Config) -> Result<(), Failure> {
    let tracing = telemetry::start(&config.log, &config.telemetry).map_err(Failure::misconfigured)?;
    let ended = block_on(async {
        for warning in unknown_variables() {
            tracing::warn!("{warning}");
        }
        let server = Server::start(config, Surroundings::default()).await.map_err(start_failure)?;
        tracing::info!(
            address = %server.address(),
            upstream = %config.upstream.urls.join(","),
            issuers = config.identity.issuers.len(),
            database = server.store().backend(),
            "alchemi listens"
        );
        stop_signal().await;
        tracing::info!("stopping: requests under way may finish");
        let stopped = server.stop().await;
        say(&farewell(stopped))
    });
    tracing.stop();
    ended
}

pub(super) fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Store(StoreError::Unavailable(_) | StoreError::ReadOnly(_)) => Failure::failed(error),
        other => Failure::misconfigured(other),
    }
}

pub(super) fn farewell(stopped: Stopped) -> String {
    let drained =
        if stopped.drained { "every connection ended" } else { "connections were cut after limits.drain_seconds" };
    let requests = if stopped.settled == 1 { "request" } else { "requests" };
    format!("alchemi has stopped: {} {requests} settled, {drained}", stopped.settled)
}

/// Waits for SIGTERM or Ctrl-C.
pub(super) async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}
