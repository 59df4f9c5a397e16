//! Who has which feature of the product.

use serde::Serialize;

use super::accounts::{Account, JsonText};
use super::domain::Domain;
use super::scope::ScopeType;
use crate::clock::Timestamp;
use crate::id::Id;

/// Switches a feature on or off for a scope, with settings of its own.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct FeatureEntitlement {
    /// Its id.
    pub id: Id<FeatureEntitlement>,
    /// The account.
    pub account_id: Id<Account>,
    /// The product domain.
    pub domain: Domain,
    /// The feature.
    #[schema(example = "create_agents")]
    pub feature_code: String,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Whether the feature is on.
    pub enabled: bool,
    /// Settings of the feature, a JSON object.
    #[schema(value_type = Object)]
    pub config_json: JsonText,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
}
