//! Accounts: the tenants.

/// A tenant. Used as the mark of [`Id`](crate::id::Id).
#[derive(Debug, Clone)]
pub struct Account;
