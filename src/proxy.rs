//! The reverse proxy: from the bytes on the socket to the upstream and back.

pub mod balance;
pub mod forward;
pub mod headers;
pub mod ingress;
pub mod routes;
pub mod wire;
