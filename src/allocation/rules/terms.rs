//! A subject's rules, read from the database under the configuration's terms.

use crate::allocation::Enforcement;
use crate::context::{Domain, Tenant};
use crate::credits::Factor;
use crate::id::Id;
use crate::model::accounts::{Account, AccountStatus};
use crate::model::agents::Agent;
use crate::model::connections::Connection;
use crate::model::directory::Placement;
use crate::model::models::AccessMode;
use crate::policy::Rules;
use crate::policy::companions::CompanionRule;
use crate::policy::features::{FeatureRules, RequiredFeatures};
use crate::policy::guardrails::Guardrails;
use crate::policy::models::ModelRules;
use crate::store::{StoreError, Tx};

/// What the configuration adds to every subject's rules.
#[derive(Debug, Clone)]
pub struct RuleTerms {
    /// Whether a model that no grant mentions may be used.
    pub default_access: AccessMode,
    /// Whether an account without an allocation is refused.
    pub allocation_required: bool,
    /// Which feature a kind of request requires.
    pub required_features: RequiredFeatures,
    /// How strictly caps hold where the account does not say it.
    pub enforcement: Enforcement,
}

/// Models need a grant, allocations and features are not required, and caps hold.
impl Default for RuleTerms {
    fn default() -> Self {
        Self {
            default_access: AccessMode::Deny,
            allocation_required: false,
            required_features: RequiredFeatures::default(),
            enforcement: Enforcement::default(),
        }
    }
}

impl RuleTerms {
    /// The rules for whoever stands at `placement` of `account`, which is the transaction's
    /// own, and asks for this agent and this connection; without guardrails.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rules(
        &self,
        tx: &mut Tx<Tenant>,
        account: Account,
        domain: Domain,
        placement: Placement,
        (agent, connection): (Option<&Id<Agent>>, Option<&Id<Connection>>),
    ) -> Result<Rules, StoreError> {
        let id = account.account_id;
        let scopes = placement.scopes(&id);
        let grants = tx.model_grants_for(domain, &scopes).await?;
        let policy = match domain {
            Domain::Console => Some(tx.console_model_policy().await?.value),
            Domain::Copilot => None,
        };
        let features = if self.required_features.is_empty() {
            Vec::new()
        } else {
            let entitlements = tx.entitlements_for(domain, None, &scopes).await?;
            let pack = tx.feature_pack().await?.value;
            self.required_features.of(&FeatureRules::new(domain, &scopes, entitlements, pack))
        };
        let agent = match agent {
            Some(id) => Some(match tx.agent(id).await? {
                Some(agent) => {
                    CompanionRule::of_agent(&agent, &tx.grants_of_agents(std::slice::from_ref(id)).await?, &scopes)
                }
                None => CompanionRule::missing(id.clone()),
            }),
            None => None,
        };
        let connection = match connection {
            // One that does not exist has no grants.
            Some(id) => {
                let grants = tx.connection_grants_for(id, &scopes).await?;
                Some(CompanionRule::of_connection(id.clone(), &grants, &scopes))
            }
            None => None,
        };
        let budget = tx.budget_rules(Some(&placement)).await?;
        Ok(Rules {
            chain: budget.kept_chain(&id, domain, &placement, tx.now()),
            account: id,
            account_name: account.account_name,
            account_suspended: account.status == AccountStatus::Suspended,
            domain,
            models: ModelRules::new(domain, &scopes, grants, policy, self.default_access),
            factor: budget.account.as_ref().map_or(Factor::ONE, |a| a.credit_factor),
            enforcement: budget.account.as_ref().and_then(|a| a.enforcement).unwrap_or(self.enforcement),
            budget,
            placement,
            features,
            agent,
            connection,
            guardrails: Guardrails::default(),
            allocation_required: self.allocation_required,
        })
    }
}
