//! The binary as a process.

pub(crate) use crate::common::process::{Ended, Place, Running};
