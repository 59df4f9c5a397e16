//! What a request will use, what it used, and what that costs: pure, no I/O.
//!
//! [`count`] turns bytes into tokens when nobody reports them, [`json`] and [`sse`]
//! read usage out of responses without changing them, [`price`] knows what a unit
//! costs, and [`charge`](mod@charge) decides which of these is believed.

pub mod charge;
pub mod count;
pub mod json;
pub mod meter;
pub mod price;
pub mod replay;
pub mod settler;
pub mod sse;
