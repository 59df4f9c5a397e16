//! How strictly caps hold.

use serde::{Deserialize, Serialize};

/// What happens to a request that does not fit into a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It is refused.
    #[default]
    Hard,
    /// It is let through; its answer and its ledger row are marked `over_cap`.
    Soft,
    /// It is let through and its client is told nothing; its ledger row is marked
    /// `would_refuse`. For trying caps out before they hold.
    Shadow,
    /// Nothing is held; usage is counted.
    Off,
}

impl Enforcement {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hard, Self::Soft, Self::Shadow, Self::Off];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }

    /// What the ledger's row of a request says that went over a cap.
    pub const fn mark(self) -> &'static str {
        match self {
            Self::Shadow => "would_refuse",
            Self::Hard | Self::Soft | Self::Off => "over_cap",
        }
    }
}
