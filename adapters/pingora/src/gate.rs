//! alchemi's checks of request heads, in front of pingora's parser.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alchemi::proxy::wire::GatedIo;
use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{ALPN, Peek, Shutdown, Ssl, Stream, UniqueID, UniqueIDType};
use pingora_core::protocols::{GetProxyDigest, GetSocketDigest, GetTimingDigest, SocketDigest, TimingDigest};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// An HTTP application of pingora's whose connections are read through a [`GatedIo`]: request heads that two parsers
/// could read differently, over 32 KiB or with more than 100 fields are refused, by
/// [`Governed::answer`](crate::Governed::answer), whatever their path. Host, form of the path and bodies of GET are
/// checked where alchemi's service answers.
///
/// HTTP/2 passes by its preface, with TLS or (option `h2c`) without. A connection whose first request is answered with
/// 101, and nothing before that, passes from there on: a web socket behind a proxy that keeps connections needs one of its
/// own, and its client waits for the 101. Options of the application are set before it is put behind the gate; what
/// `http_proxy_service` makes cannot be.
///
/// ```no_run
/// # use alchemi_pingora::Gate;
/// # use pingora_core::{server::Server, services::listening::Service};
/// # fn front() -> impl pingora_proxy::ProxyHttp<CTX = ()> + Send + Sync + 'static {
/// #     struct Front;
/// #     #[async_trait::async_trait]
/// #     impl pingora_proxy::ProxyHttp for Front {
/// #         type CTX = ();
/// #         fn new_ctx(&self) {}
/// #         async fn upstream_peer(
/// #             &self,
/// #             _: &mut pingora_proxy::Session,
/// #             _: &mut (),
/// #         ) -> pingora_core::Result<Box<pingora_core::upstreams::peer::HttpPeer>> {
/// #             unimplemented!()
/// #         }
/// #     }
/// #     Front
/// # }
/// let mut server = Server::new(None)?;
/// server.bootstrap();
/// let proxy = pingora_proxy::http_proxy(&server.configuration, front());
/// let mut service = Service::new("gateway".to_owned(), Gate::new(proxy));
/// service.add_tcp("127.0.0.1:8080");
/// server.add_service(service);
/// server.run_forever();
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<pingora_core::Error>>(())
/// ```
#[derive(Debug)]
pub struct Gate<A>(Arc<A>);

impl<A> Gate<A> {
    /// In front of `app`.
    pub fn new(app: A) -> Self {
        Self(Arc::new(app))
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServerApp for Gate<A> {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let is_gated = (*stream).as_any().is::<Gated>();
        let stream = if is_gated { stream } else { Box::new(Gated(GatedIo::new(stream))) };
        self.0.process_new(stream, shutdown).await
    }

    async fn cleanup(&self) {
        self.0.cleanup().await;
    }
}

/// A connection behind the gate.
#[derive(Debug)]
struct Gated(GatedIo<Stream>);

impl AsyncRead for Gated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Gated {
    async fn shutdown(&mut self) {
        // The connection may be gone already.
        let _ = AsyncWriteExt::shutdown(&mut self.0).await;
    }
}

impl UniqueID for Gated {
    fn id(&self) -> UniqueIDType {
        self.0.get_ref().id()
    }
}

impl Ssl for Gated {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.0.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.0.get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for Gated {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.0.get_ref().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.0.get_ref().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.0.get_ref().get_write_pending_time()
    }
}

impl GetProxyDigest for Gated {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.0.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Gated {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.0.get_ref().get_socket_digest()
    }
}

#[async_trait]
impl Peek for Gated {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        // What is looked at comes again.
        self.0.get_mut().try_peek(buf).await
    }
}
