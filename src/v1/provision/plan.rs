//! What a bootstrap would make.

use super::bootstrap::default_mappings;
use super::*;
use crate::model::provision::StandardRole;

/// How roles would be called.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct PlanParams {
    /// What stands before the canonical names, if not what the account says.
    role_prefix: Option<String>,
}

/// A role, and whether it is there.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PlannedRole {
    #[serde(flatten)]
    role: StandardRole,
    /// `present`, `missing` or `unknown`.
    #[schema(example = "unknown")]
    remote: &'static str,
}

/// An admin, and the roles that they would be granted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PlannedAdmin {
    #[serde(flatten)]
    admin: AccountAdmin,
    resolved_role_keys: Vec<String>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// What a bootstrap would make.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = BootstrapPlan)]
pub struct Plan {
    account_id: Id<Account>,
    zitadel_config: ZitadelConfig,
    standard_roles: Vec<PlannedRole>,
    account_admins: Vec<PlannedAdmin>,
    /// `known`, or `unknown` where there are no credentials, or nobody answers.
    #[schema(example = "unknown")]
    remote: &'static str,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_problem: Option<RemoteProblem>,
}

/// Plan what a bootstrap would make
///
/// Reads only. Without credentials for Zitadel it says what would be made, and `unknown`
/// about what is there.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/zitadel/provision/plan", tag = "accounts",
    params(AtAccount, PlanParams),
    responses((status = 200, description = "The plan", body = Plan), Refusals))]
pub async fn get_zitadel_plan(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Query(params): Query<PlanParams>,
) -> super::super::answer::Outcome {
    let (mut tx, bound) = read_bound(&call, id.clone()).await?;
    let admins = tx.all_admins().await?;
    drop(tx);
    let asked = params.role_prefix.filter(|prefix| !prefix.trim().is_empty());
    let asked =
        asked.map(|text| text.parse::<Name>().map_err(|why| Problem::invalid("role_prefix", why))).transpose()?;
    let mut config = prefixed(asked, bound.config);
    let roles = roles_of(&config);
    let (keys, remote_problem) = held_roles(&call, &config).await;
    let standard_roles = roles.into_iter().map(|role| {
        let remote = remote_word(keys.as_ref().map(|keys| keys.contains(&role.key)));
        PlannedRole { role, remote }
    });
    let standard_roles = standard_roles.collect();
    let planned = |admin: AccountAdmin| match role_key(&config, prefix_of(&config), &admin.role) {
        Ok(key) => PlannedAdmin { admin, resolved_role_keys: vec![key], problem: None },
        Err(why) => {
            let problem = Some(format!("role {:?} {why}", admin.role));
            PlannedAdmin { admin, resolved_role_keys: Vec::new(), problem }
        }
    };
    let account_admins = admins.into_iter().map(planned).collect();
    if config.role_mappings.is_empty() {
        config.role_mappings = default_mappings(&config);
    }
    let remote = if keys.is_some() { "known" } else { "unknown" };
    let plan = Plan { account_id: id, zitadel_config: config, standard_roles, account_admins, remote, remote_problem };
    Ok(Answer::of(&plan).tagged(bound.version))
}

/// The keys of the project's roles, or why they cannot be told.
async fn held_roles(call: &Call<SuperAdmin>, config: &ZitadelConfig) -> (Option<Vec<String>>, Option<RemoteProblem>) {
    let organization = config.organization_id.as_deref();
    let Some(project) = &config.project_id else {
        let detail = "the account is bound to no project".to_owned();
        let organization_id = organization.map(str::to_owned);
        let problem = RemoteProblem { project_id: None, organization_id, reason: "project_id_missing", detail };
        return (None, Some(problem));
    };
    match call.app.provisioner.remote().roles(project, organization).await {
        Ok(keys) => (Some(keys), None),
        Err(error) => (None, Some(RemoteProblem::of(project, organization, &error))),
    }
}
