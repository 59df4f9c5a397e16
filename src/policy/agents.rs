//! Agent access: whether a subject may make a request through an agent.

use crate::id::Id;
use crate::model::agents::{Agent, AgentGrant, AgentVisibility};
use crate::model::scope::Scope;

/// What holds for the agent that a subject asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRule {
    /// The agent.
    pub id: Id<Agent>,
    /// Whether the subject may use it.
    pub allowed: bool,
    /// The scope that it is granted to; `None` for everybody's.
    pub resolved_from: Option<Scope>,
}

impl AgentRule {
    /// The rule for `agent` and a subject whose scopes, the most specific one first, are
    /// `chain`: an agent is everybody's, or granted to one of them. `grants` may be those
    /// of other agents too.
    ///
    /// ```
    /// use alchemi::policy::agents::AgentRule;
    ///
    /// let missing = AgentRule::missing("agent-7".parse()?);
    /// assert!(!missing.allowed);
    /// # Ok::<(), alchemi::id::NotAnId>(())
    /// ```
    pub fn new(agent: &Agent, grants: &[AgentGrant], chain: &[Scope]) -> Self {
        let granted = |scope: &&Scope| {
            grants
                .iter()
                .any(|g| g.agent_id == agent.id && g.scope_type == scope.scope_type && g.scope_id == scope.scope_id)
        };
        let resolved_from = match agent.visibility {
            AgentVisibility::Account => None,
            AgentVisibility::Granted => chain.iter().find(granted).cloned(),
        };
        let allowed = agent.visibility == AgentVisibility::Account || resolved_from.is_some();
        Self { id: agent.id.clone(), allowed, resolved_from }
    }

    /// The rule for an agent that does not exist.
    pub fn missing(id: Id<Agent>) -> Self {
        Self { id, allowed: false, resolved_from: None }
    }
}

/// Whether the agent that a request names, if it names one, may be used under `rule`,
/// which was made for the agent that the rules were read for.
pub fn may_use(asked: Option<&str>, rule: Option<&AgentRule>) -> bool {
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
    use crate::model::scope::ScopeType;

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
        let rule = |visibility, grants: &[AgentGrant]| AgentRule::new(&agent(visibility), grants, &chain);
        assert!(rule(AgentVisibility::Account, &[]).allowed);
        assert!(rule(AgentVisibility::Account, &elsewhere).allowed);
        assert_eq!(rule(AgentVisibility::Granted, &team).resolved_from, Some(chain[1].clone()));
        assert!(!rule(AgentVisibility::Granted, &elsewhere).allowed);
        assert!(!rule(AgentVisibility::Granted, &[]).allowed);

        let (yes, no) = (rule(AgentVisibility::Granted, &team), AgentRule::missing("a".parse().unwrap()));
        assert!(may_use(None, None) && may_use(None, Some(&no)) && may_use(Some("a"), Some(&yes)));
        assert!(!may_use(Some("a"), None) && !may_use(Some("a"), Some(&no)) && !may_use(Some("b"), Some(&yes)));
    }
}
