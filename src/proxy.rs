//! The reverse proxy in front of the upstream.

pub mod ask;
