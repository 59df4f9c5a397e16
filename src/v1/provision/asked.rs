//! What the operations are asked.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::yes;
use crate::model::text::{Email, Name, blank_is_none};

/// Roles for a user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUserGrant {
    /// Their id in Zitadel.
    #[schema(value_type = String, example = "259242039378444291")]
    pub(super) user_id: Name,
    /// The roles, added to those that they hold.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["end_user"]))]
    pub(super) role_keys: Vec<Name>,
    /// The project, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    pub(super) project_id: Option<Name>,
    /// The organisation, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444290")]
    pub(super) organization_id: Option<Name>,
    /// Only say what would be done.
    #[serde(default)]
    #[schema(example = true)]
    pub(super) dry_run: bool,
}

/// A role for the project.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProjectRole {
    /// Its key.
    #[schema(value_type = String, example = "acme_reviewer")]
    pub(super) key: Name,
    /// For people.
    #[schema(value_type = String, example = "Reviewer")]
    pub(super) display_name: Name,
    /// For people.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "account")]
    pub(super) group: Option<Name>,
    /// The project, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    pub(super) project_id: Option<Name>,
    /// Only say what would be done.
    #[serde(default)]
    #[schema(example = true)]
    pub(super) dry_run: bool,
}

/// Which roles to make.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleSync {
    /// The project, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    pub(super) project_id: Option<Name>,
    /// What stands before the canonical names, if not what the account says.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "acme_")]
    pub(super) role_prefix: Option<Name>,
    /// Whether a role that is there is as good as made, or a failure.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub(super) skip_existing: bool,
    /// Only say what would be done.
    #[serde(default)]
    #[schema(example = true)]
    pub(super) dry_run: bool,
}

/// Which admins to grant their roles.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminGrantSync {
    /// The project, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    pub(super) project_id: Option<Name>,
    /// The organisation, if not the account's.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444290")]
    pub(super) organization_id: Option<Name>,
    /// What stands before the canonical names, if not what the account says.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "acme_")]
    pub(super) role_prefix: Option<Name>,
    /// Ids of users by their e-mail addresses.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({"ada@acme.com": "259242039378444291"}))]
    user_id_by_email: BTreeMap<Email, Name>,
    /// Whether to look the others up in Zitadel.
    #[serde(default)]
    #[schema(example = true)]
    resolve_user_ids_from_zitadel: bool,
    /// Roles of every admin, beside their own.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["end_user"]))]
    default_role_keys: Vec<Name>,
    /// Whether what is there already is as good as made, or a failure.
    #[serde(default = "yes")]
    #[schema(default = true)]
    skip_existing: bool,
    /// Only say what would be done.
    #[serde(default)]
    #[schema(example = true)]
    pub(super) dry_run: bool,
}

/// Everything that an account needs.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// The project, if not the account's; kept.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    pub(super) project_id: Option<Name>,
    /// The organisation, if not the account's; kept.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "259242039378444290")]
    pub(super) organization_id: Option<Name>,
    /// What stands before the canonical names; kept.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "acme_")]
    pub(super) role_prefix: Option<Name>,
    /// Fills what the account's binding leaves open.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub(super) apply_default_role_mappings: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub(super) create_project_roles: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub(super) grant_existing_account_admins: bool,
    /// Ids of users by their e-mail addresses.
    #[serde(default)]
    #[schema(value_type = Object, example = json!({"ada@acme.com": "259242039378444291"}))]
    user_id_by_email: BTreeMap<Email, Name>,
    /// Whether to look the others up in Zitadel.
    #[serde(default)]
    #[schema(example = true)]
    resolve_user_ids_from_zitadel: bool,
    /// Roles of every admin, beside their own.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["end_user"]))]
    default_role_keys: Vec<Name>,
    /// Whether what is there already is as good as made, or a failure.
    #[serde(default = "yes")]
    #[schema(default = true)]
    skip_existing: bool,
    /// Only say what would be done.
    #[serde(default)]
    #[schema(example = true)]
    pub(super) dry_run: bool,
}

/// How admins are found, and what else they are granted.
#[derive(Debug, Default)]
pub(super) struct AdminGrants {
    pub(super) user_id_by_email: BTreeMap<Email, Name>,
    pub(super) resolve_user_ids_from_zitadel: bool,
    pub(super) default_role_keys: Vec<Name>,
    pub(super) skip_existing: bool,
}

macro_rules! who {
    ($($asked:ty),*) => {$(
        impl $asked {
            pub(super) fn who(&mut self) -> AdminGrants {
                AdminGrants {
                    user_id_by_email: std::mem::take(&mut self.user_id_by_email),
                    resolve_user_ids_from_zitadel: self.resolve_user_ids_from_zitadel,
                    default_role_keys: std::mem::take(&mut self.default_role_keys),
                    skip_existing: self.skip_existing,
                }
            }
        }
    )*};
}
who!(AdminGrantSync, Bootstrap);
