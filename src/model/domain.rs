//! The product domains.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A product domain: the gateway's admin side, or the end users' assistant side.
/// Each has its own tree of orgs, teams and users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The gateway's admin side.
    Console,
    /// The end users' assistant side.
    Copilot,
}

impl Domain {
    /// Both, in a fixed order.
    pub const ALL: [Self; 2] = [Self::Console, Self::Copilot];

    /// `console` or `copilot`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Copilot => "copilot",
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Domain {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|d| d.as_str() == text).ok_or(())
    }
}
