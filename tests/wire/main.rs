//! The HTTP edge of the proxy, through real sockets where there is a socket.

mod balance;
mod forward;
mod framing;
mod headers;
mod ingress;
mod routes;
mod server;
