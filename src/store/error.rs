//! What can go wrong between us and the database.

use super::dialect;
use crate::problem::Problem;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A row with the same unique values exists. Holds the constraint or columns, as the database names them.
    #[error("a row with the same unique values exists ({0})")]
    Unique(String),
    /// A row refers to one that does not exist, or is referred to by others.
    #[error("a referred row does not exist, or the row is still referred to")]
    ForeignKey,
    /// A value is outside of what the schema allows.
    #[error("a value is outside of what the schema allows")]
    Check,
    /// The database cannot be reached, or is too busy.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// The database can be read but not written: a standby, a full or a read-only disk.
    #[error("the database can only be read: {0}")]
    ReadOnly(String),
    /// The URL or the schema is not usable.
    #[error("{0}")]
    Setup(String),
    /// A row holds what this version cannot read.
    #[error("row of {table} is unreadable: {reason}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An amount left the range that books can hold.
    #[error("an amount does not fit")]
    Overflow,
    /// A statement failed otherwise: a defect.
    #[error("statement failed: {0}")]
    Statement(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether a unique violation names `column`.
    pub fn is_unique(&self, column: &str) -> bool {
        matches!(self, Self::Unique(at) if at.contains(column))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Database(database) => match database.kind() {
                ErrorKind::UniqueViolation => {
                    Self::Unique(database.constraint().unwrap_or_else(|| database.message()).to_owned())
                }
                ErrorKind::ForeignKeyViolation => Self::ForeignKey,
                ErrorKind::CheckViolation | ErrorKind::NotNullViolation => Self::Check,
                // A character that PostgreSQL keeps in no text: U+0000.
                _ if database.code().is_some_and(|code| code == "22021") => Self::Check,
                _ if database.code().is_some_and(|code| dialect::is_read_only(&code)) => {
                    Self::ReadOnly(database.message().to_owned())
                }
                _ if database.code().is_some_and(|code| dialect::is_transient(&code)) => {
                    Self::Unavailable(database.message().to_owned())
                }
                _ => Self::Statement(error),
            },
            // `Protocol`: the server said what cannot be understood, as when bytes are lost or mangled on the way.
            sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Tls(_) => Self::Unavailable(error.to_string()),
            _ => Self::Statement(error),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unique(at) => {
                Self::conflict("already_exists", "One with the same unique values exists").with("constraint", at)
            }
            StoreError::ForeignKey => {
                Self::conflict("still_referenced", "Something that this refers to is gone, or still refers to it")
            }
            StoreError::Check => Self::invalid("", "a value is outside of what is allowed"),
            StoreError::Unavailable(reason) => {
                tracing::warn!(%reason, "the database cannot be reached");
                Self::unavailable("store_unavailable", "The database cannot be reached; try again", 1)
            }
            StoreError::ReadOnly(reason) => {
                tracing::error!(%reason, "the database can only be read");
                Self::unavailable("store_unavailable", "The database can only be read; try again later", 5)
            }
            StoreError::Overflow => Self::invalid("", "the resulting amount is too large"),
            error @ (StoreError::Setup(_) | StoreError::Unreadable { .. } | StoreError::Statement(_)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "store failed");
                Self::internal()
            }
        }
    }
}

/// What a store's method gives.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
