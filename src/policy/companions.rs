//! Companions of a request: the agent that it is made through and the connection that it
//! uses, and whether its subject may have them.

use crate::id::Id;
use crate::model::agents::{Agent, AgentGrant, AgentVisibility};
use crate::model::connections::{Connection, ConnectionGrant};
use crate::model::scope::{Scope, ScopeType};

/// What holds for the agent or the connection that a subject asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompanionRule<T> {
    /// The agent or connection.
    pub id: Id<T>,
    /// Whether the subject may use it.
    pub allowed: bool,
    /// The scope that it is granted to; `None` for everybody's.
    pub resolved_from: Option<Scope>,
}

impl<T> CompanionRule<T> {
    /// The rule for one that does not exist.
    ///
    /// ```
    /// use alchemi::model::agents::Agent;
    /// use alchemi::policy::companions::CompanionRule;
    ///
    /// let missing = CompanionRule::<Agent>::missing("agent-7".parse()?);
    /// assert!(!missing.allowed);
    /// # Ok::<(), alchemi::id::NotAnId>(())
    /// ```
    pub fn missing(id: Id<T>) -> Self {
        Self { id, allowed: false, resolved_from: None }
    }

    fn granted(id: Id<T>, chain: &[Scope], is_granted_to: impl Fn(ScopeType, &str) -> bool) -> Self {
        let resolved_from = chain.iter().find(|scope| is_granted_to(scope.scope_type, &scope.scope_id)).cloned();
        Self { id, allowed: resolved_from.is_some(), resolved_from }
    }
}

impl CompanionRule<Agent> {
    /// The rule for `agent` and a subject whose scopes, the most specific one first, are
    /// `chain`: an agent is everybody's, or granted to one of them. `grants` may be those
    /// of other agents too.
    pub fn of_agent(agent: &Agent, grants: &[AgentGrant], chain: &[Scope]) -> Self {
        if agent.visibility == AgentVisibility::Account {
            return Self { id: agent.id.clone(), allowed: true, resolved_from: None };
        }
        Self::granted(agent.id.clone(), chain, |kind, scope| {
            grants.iter().any(|g| g.agent_id == agent.id && g.scope_type == kind && g.scope_id == scope)
        })
    }
}

impl CompanionRule<Connection> {
    /// The rule for the connection `id` and a subject whose scopes, the most specific one
    /// first, are `chain`: one of them must have a grant, because a connection lends the
    /// credentials that it holds. `grants` are all of the connection.
    pub fn of_connection(id: Id<Connection>, grants: &[ConnectionGrant], chain: &[Scope]) -> Self {
        Self::granted(id, chain, |kind, scope| grants.iter().any(|g| g.scope_type == kind && g.scope_id == scope))
    }
}

/// Whether what a request names, if it names one, may be used under `rule`, which was
/// made for the one that the rules were read for.
pub fn may_use<T>(asked: Option<&str>, rule: Option<&CompanionRule<T>>) -> bool {
    match (asked, rule) {
        (None, _) => true,
        (Some(asked), Some(rule)) => rule.allowed && rule.id.as_str() == asked,
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::model::accounts::JsonText;

    fn agent(visibility: AgentVisibility) -> Agent {
        let at = Timestamp::from_micros(0);
        Agent {
            id: "a".parse().unwrap(),
            account_id: "acme".parse().unwrap(),
            name: "A".to_owned(),
            description: None,
            definition_json: JsonText::empty_object(),
            visibility,
            created_by: None,
            created_at: at,
            updated_at: at,
            version: 1,
        }
    }

    fn grant(agent: &str, kind: ScopeType, id: &str) -> AgentGrant {
        AgentGrant {
            id: "g".parse().unwrap(),
            account_id: "acme".parse().unwrap(),
            agent_id: agent.parse().unwrap(),
            scope_type: kind,
            scope_id: id.to_owned(),
            created_by: None,
            created_at: Timestamp::from_micros(0),
        }
    }

    #[test]
    fn an_agent_is_everybodys_or_of_those_it_is_granted_to() {
        let chain = [ScopeType::User, ScopeType::Team, ScopeType::Account].map(|kind| Scope::new(kind, kind.as_str()));
        let team = [grant("a", ScopeType::Team, "team")];
        let elsewhere = [grant("a", ScopeType::Team, "other"), grant("b", ScopeType::Team, "team")];
        let rule = |visibility, grants: &[AgentGrant]| CompanionRule::of_agent(&agent(visibility), grants, &chain);
        assert!(rule(AgentVisibility::Account, &[]).allowed);
        assert!(rule(AgentVisibility::Account, &elsewhere).allowed);
        assert_eq!(rule(AgentVisibility::Granted, &team).resolved_from, Some(chain[1].clone()));
        assert!(!rule(AgentVisibility::Granted, &elsewhere).allowed);
        assert!(!rule(AgentVisibility::Granted, &[]).allowed);

        let (yes, no) = (rule(AgentVisibility::Granted, &team), CompanionRule::<Agent>::missing("a".parse().unwrap()));
        assert!(may_use::<Agent>(None, None) && may_use(None, Some(&no)) && may_use(Some("a"), Some(&yes)));
        assert!(
            !may_use::<Agent>(Some("a"), None) && !may_use(Some("a"), Some(&no)) && !may_use(Some("b"), Some(&yes))
        );
    }

    #[test]
    fn a_connection_is_of_those_it_is_granted_to_alone() {
        let chain = [ScopeType::User, ScopeType::Team].map(|kind| Scope::new(kind, kind.as_str()));
        let grant = |kind, id: &str| ConnectionGrant {
            id: "g".parse().unwrap(),
            account_id: "acme".parse().unwrap(),
            connection_id: "c".parse().unwrap(),
            scope_type: kind,
            scope_id: id.to_owned(),
            can_manage: false,
            created_by: None,
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
            version: 1,
        };
        let rule = |grants: &[ConnectionGrant]| CompanionRule::of_connection("c".parse().unwrap(), grants, &chain);
        let team = [grant(ScopeType::Org, "elsewhere"), grant(ScopeType::Team, "team")];
        assert_eq!(rule(&team).resolved_from.as_ref(), chain.get(1));
        assert!(!rule(&[grant(ScopeType::Team, "other"), grant(ScopeType::User, "team")]).allowed);
        assert!(!rule(&[]).allowed, "a grant is needed");
    }
}
