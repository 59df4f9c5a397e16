//! Connections to addresses that were looked at: a name is resolved once for each
//! connection, and only what was admitted is connected to. A name that leads outside
//! when it is written and inside when it is used gains nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, redirect};

use super::OutboundRules;

type Found = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// How names become addresses.
#[derive(Clone)]
pub struct Lookup(Arc<dyn Fn(String) -> Found + Send + Sync>);

impl Lookup {
    /// The system's resolver.
    pub fn system() -> Self {
        Self::new(|name| async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
    }

    /// A look-up of one's own.
    pub fn new<F>(find: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |name| Box::pin(find(name))))
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup")
    }
}

/// An HTTP client, to be given its time limits, that connects only to what `rules`
/// admit, by no proxy, and follows no redirect. A URL is given to
/// [`OutboundRules::check`] first: literal addresses are not looked up.
pub fn client(rules: OutboundRules, lookup: Lookup) -> ClientBuilder {
    super::with_trust_store(reqwest::Client::builder())
        .no_proxy()
        .redirect(redirect::Policy::none())
        .dns_resolver(Arc::new(Guarded { rules, lookup }))
}

struct Guarded {
    rules: OutboundRules,
    lookup: Lookup,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (rules, found) = (self.rules.clone(), (self.lookup.0)(name.as_str().to_owned()));
        Box::pin(async move {
            let found = found.await?;
            // One address inside is one too many: the name is not what it says.
            if found.is_empty() || found.iter().any(|address| !rules.admits(address.ip())) {
                return Err(super::Refused::Inside.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Counts who connects to `address`, and answers.
    async fn listener(address: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = tokio::net::TcpListener::bind(address).await.unwrap();
        let (address, count) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            }
        });
        (address, count)
    }

    fn with(rules: OutboundRules, lookup: Lookup) -> reqwest::Client {
        client(rules, lookup).timeout(Duration::from_secs(5)).build().unwrap()
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_connected_to() {
        let (inside, count) = listener(([127, 0, 0, 1], 0).into()).await;
        let url = format!("http://rebound.example.com:{}/", inside.port());
        for found in
            [vec![inside], vec![([1, 1, 1, 1], 0).into(), inside], vec![inside, ([1, 1, 1, 1], 0).into()], vec![]]
        {
            let lookup = Lookup::new(move |_| std::future::ready(Ok(found.clone())));
            assert!(with(OutboundRules::default(), lookup).get(&url).send().await.is_err());
        }
        assert_eq!(count.load(Ordering::SeqCst), 0);
        let lookup = Lookup::new(move |_| std::future::ready(Ok(vec![inside])));
        let here = OutboundRules { allow_loopback: true, ..OutboundRules::default() };
        assert_eq!(with(here, lookup).get(&url).send().await.unwrap().status(), 204);
    }

    #[tokio::test]
    async fn a_name_that_turns_inside_is_not_followed() {
        let (inside, count) = listener(([127, 0, 0, 1], 0).into()).await;
        let (allowed, welcome) = listener(([127, 0, 0, 2], inside.port()).into()).await;
        let first = AtomicUsize::new(0);
        let rebinding = Lookup::new(move |_| {
            let address = if first.fetch_add(1, Ordering::SeqCst) == 0 { allowed } else { inside };
            std::future::ready(Ok(vec![address]))
        });
        let rules = OutboundRules { allow_networks: vec!["127.0.0.2/32".parse().unwrap()], ..OutboundRules::default() };
        let client = with(rules, rebinding);
        let url = format!("http://rebound.example.com:{}/", inside.port());
        assert_eq!(client.get(&url).send().await.unwrap().status(), 204);
        for _ in 0..3 {
            assert!(client.get(&url).send().await.is_err());
        }
        assert_eq!((welcome.load(Ordering::SeqCst), count.load(Ordering::SeqCst)), (1, 0));
    }
}
