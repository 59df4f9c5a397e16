//! A whole gateway for tests, over real HTTP, with the database, issuer and upstream that it needs.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of it")]

pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod fifty;
pub(crate) mod gateway;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod zitadel;

pub(crate) use client::{Client, Reply};
pub(crate) use database::{Backend, Row, backends, empty_backends};
pub(crate) use gateway::{Gateway, MASTER_KEY, Person, UPSTREAM_KEY, issuer_key};
