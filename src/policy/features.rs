//! Features: which of them a subject has, and with which settings.
//!
//! The most specific scope of user → team → org → account that has an entitlement for a
//! feature switches it on or off. Settings are merged along the whole chain (RFC 7396):
//! the operator's of the account's feature pack first, then the account's own, the org's,
//! the team's, the user's; the nearest wins. What no scope mentions is off, and so is
//! what a pack that is not empty leaves out, whatever an entitlement says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::context::Domain;
use crate::model::accounts::FeaturePack;
use crate::model::features::FeatureEntitlement;
use crate::model::scope::Scope;
use crate::model::usage::RouteKind;

/// Which feature a subject must have for a kind of request, by the kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RequiredFeatures(Arc<BTreeMap<RouteKind, String>>);

impl RequiredFeatures {
    /// Kinds and the codes of features.
    pub fn iter(&self) -> impl Iterator<Item = (RouteKind, &str)> {
        self.0.iter().map(|(kind, code)| (*kind, code.as_str()))
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What holds for a subject under `rules`.
    pub fn of(&self, rules: &FeatureRules) -> Vec<KindFeature> {
        let kind_feature = |(kind, code): (RouteKind, &str)| {
            let verdict = rules.resolve(code);
            KindFeature {
                kind,
                code: code.to_owned(),
                enabled: verdict.enabled,
                resolved_from: verdict.resolved_from.cloned(),
            }
        };
        self.iter().map(kind_feature).collect()
    }
}

impl FromIterator<(RouteKind, String)> for RequiredFeatures {
    fn from_iter<I: IntoIterator<Item = (RouteKind, String)>>(pairs: I) -> Self {
        Self(Arc::new(pairs.into_iter().collect()))
    }
}

/// The feature that a kind of request requires, and whether the subject has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindFeature {
    /// The kind.
    pub kind: RouteKind,
    /// The feature's code.
    pub code: String,
    /// Whether the subject has it.
    pub enabled: bool,
    /// The scope whose entitlement decided.
    pub resolved_from: Option<Scope>,
}

/// The rules that hold for one subject.
///
/// ```
/// use alchemi::model::accounts::FeaturePack;
/// use alchemi::context::Domain;
/// use alchemi::policy::features::{FeatureReason, FeatureRules};
///
/// let rules = FeatureRules::new(Domain::Copilot, &[], Vec::new(), FeaturePack::default());
/// let verdict = rules.resolve("create_agents");
/// assert!(!verdict.enabled);
/// assert_eq!(verdict.reason, FeatureReason::Default);
/// ```
#[derive(Debug, Clone)]
pub struct FeatureRules {
    pack: FeaturePack,
    /// Most specific first.
    chain: Vec<Scope>,
    entitlements: Vec<FeatureEntitlement>,
}

/// What holds for one feature.
#[derive(Debug, Clone)]
pub struct FeatureVerdict<'a> {
    /// Whether the subject has it.
    pub enabled: bool,
    /// Its settings; empty where it is not in the pack.
    pub config: Map<String, Value>,
    /// The scope whose entitlement decided.
    pub resolved_from: Option<&'a Scope>,
    /// The entitlements whose settings were merged, the deciding one first.
    pub candidates: Vec<&'a FeatureEntitlement>,
    /// What decided.
    pub reason: FeatureReason,
}

/// What decides about a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureReason {
    /// An entitlement.
    Entitlement,
    /// The account's feature pack lists features, and this is not one of them.
    OutsidePack,
    /// No scope has an entitlement.
    Default,
}

impl FeatureRules {
    /// The rules of `domain` for a subject whose scopes, the most specific one first,
    /// are `chain`. Entitlements of other domains or scopes have no effect.
    pub fn new(domain: Domain, chain: &[Scope], entitlements: Vec<FeatureEntitlement>, pack: FeaturePack) -> Self {
        let place = |e: &FeatureEntitlement| {
            chain.iter().position(|s| s.scope_type == e.scope_type && s.scope_id == e.scope_id)
        };
        let mut own: Vec<_> = entitlements
            .into_iter()
            .filter(|e| e.domain == domain)
            .filter_map(|entitlement| Some((place(&entitlement)?, entitlement)))
            .collect();
        own.sort_by_key(|(place, _)| *place);
        Self { pack, chain: chain.to_vec(), entitlements: own.into_iter().map(|(_, e)| e).collect() }
    }

    /// Decides about one feature.
    pub fn resolve(&self, feature: &str) -> FeatureVerdict<'_> {
        let bounded = !self.pack.features.is_empty();
        if bounded && !self.pack.features.iter().any(|code| code == feature) {
            return FeatureVerdict {
                enabled: false,
                config: Map::new(),
                resolved_from: None,
                candidates: Vec::new(),
                reason: FeatureReason::OutsidePack,
            };
        }
        let candidates: Vec<_> = self.entitlements.iter().filter(|e| e.feature_code == feature).collect();
        let nearest = candidates.first();
        FeatureVerdict {
            enabled: nearest.is_some_and(|e| e.enabled),
            config: self.config(feature, &candidates),
            resolved_from: nearest.and_then(|e| self.scope_of(e)),
            reason: if nearest.is_some() { FeatureReason::Entitlement } else { FeatureReason::Default },
            candidates,
        }
    }

    /// Every feature that the pack or an entitlement of the chain names, by code.
    pub fn named(&self) -> BTreeSet<&str> {
        let entitled = self.entitlements.iter().map(|e| e.feature_code.as_str());
        self.pack.features.iter().map(String::as_str).chain(entitled).collect()
    }

    fn config(&self, feature: &str, nearest_first: &[&FeatureEntitlement]) -> Map<String, Value> {
        let mut config = match self.pack.config.get(feature) {
            Some(Value::Object(of_operator)) => merged(Map::new(), of_operator.clone()),
            _ => Map::new(),
        };
        for entitlement in nearest_first.iter().rev() {
            config = merged(config, entitlement.config_json.read().unwrap_or_default());
        }
        config
    }

    fn scope_of(&self, entitlement: &FeatureEntitlement) -> Option<&Scope> {
        self.chain.iter().find(|s| s.scope_type == entitlement.scope_type && s.scope_id == entitlement.scope_id)
    }
}

/// RFC 7396: members of `patch` replace those of `target`, objects are merged member by
/// member, and null removes.
fn merged(mut target: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(&name)),
            Value::Object(patch) => {
                let old = match target.remove(&name) {
                    Some(Value::Object(old)) => old,
                    _ => Map::new(),
                };
                target.insert(name, Value::Object(merged(old, patch)));
            }
            other => drop(target.insert(name, other)),
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::clock::Timestamp;
    use crate::id::Id;
    use crate::model::accounts::JsonText;
    use crate::model::scope::ScopeType;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    /// Appendix A of RFC 7396, as far as target and patch are objects.
    #[test]
    fn the_examples_of_the_rfc() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(merged(object(target), object(patch)), object(result));
        }
    }

    fn chain() -> [Scope; 4] {
        [ScopeType::User, ScopeType::Team, ScopeType::Org, ScopeType::Account]
            .map(|kind| Scope::new(kind, kind.as_str()))
    }

    fn entitlement(code: &str, scope: &Scope, enabled: bool, config: &Value) -> FeatureEntitlement {
        FeatureEntitlement {
            id: Id::stored(&format!("{code} {scope}")),
            account_id: Id::stored("acc"),
            domain: Domain::Copilot,
            feature_code: code.to_owned(),
            scope_type: scope.scope_type,
            scope_id: scope.scope_id.clone(),
            enabled,
            config_json: JsonText::of(config),
            created_by: None,
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
            version: 1,
        }
    }

    #[test]
    fn settings_are_merged_from_the_operator_to_the_user() {
        let [user, team, org, account] = chain();
        let pack = FeaturePack {
            features: vec!["f".to_owned()],
            config: object(json!({"f": {"limit": 1, "by": "operator", "gone": true}, "g": {"x": 1}})),
        };
        let all = vec![
            entitlement("f", &user, true, &json!({"limit": 4})),
            entitlement("f", &account, false, &json!({"limit": 2, "deep": {"a": 1, "b": 1}})),
            entitlement("f", &org, false, &json!({"gone": null, "deep": {"b": 2}})),
            entitlement("g", &team, true, &json!({})),
        ];
        let rules = FeatureRules::new(Domain::Copilot, &chain(), all, pack);
        let verdict = rules.resolve("f");
        assert!(verdict.enabled);
        assert_eq!(verdict.resolved_from, Some(&user));
        let expected = json!({"limit": 4, "by": "operator", "deep": {"a": 1, "b": 2}});
        assert_eq!(Value::Object(verdict.config), expected);
        assert_eq!(verdict.candidates.len(), 3);
        let outside = rules.resolve("g");
        assert_eq!((outside.enabled, outside.reason), (false, FeatureReason::OutsidePack));
        assert!(outside.config.is_empty());
        assert_eq!(rules.named().into_iter().collect::<Vec<_>>(), ["f", "g"]);
    }

    proptest! {
        /// The nearest scope of the chain decides, and a pack only takes away.
        #[test]
        fn the_nearest_decides_within_the_pack(
            drawn in proptest::collection::vec((0_usize..5, any::<bool>(), any::<bool>()), 0..6),
            packed in proptest::option::of(any::<bool>()),
            length in 1_usize..5,
        ) {
            let elsewhere = Scope::new(ScopeType::Team, "another");
            let all = chain();
            let own = &all[4 - length..];
            let mut seen = BTreeSet::new();
            let entitlements: Vec<_> = drawn.iter().filter(|(at, ..)| seen.insert(*at)).map(|(at, enabled, other)| {
                let mut row = entitlement("f", all.get(*at).unwrap_or(&elsewhere), *enabled, &json!({}));
                row.domain = if *other { Domain::Console } else { Domain::Copilot };
                row
            }).collect();
            let features = packed.map(|has| vec![if has { "f" } else { "g" }.to_owned()]).unwrap_or_default();
            let pack = FeaturePack { features, config: Map::new() };
            let nearest = own.iter().find_map(|scope| entitlements.iter().find(|e| {
                e.domain == Domain::Copilot && e.scope_type == scope.scope_type && e.scope_id == scope.scope_id
            }));
            let rules = FeatureRules::new(Domain::Copilot, own, entitlements.clone(), pack);
            let verdict = rules.resolve("f");
            let expected = packed != Some(false) && nearest.is_some_and(|e| e.enabled);
            prop_assert_eq!(verdict.enabled, expected);
            if packed != Some(false) {
                prop_assert_eq!(verdict.candidates.first().map(|e| &e.id), nearest.map(|e| &e.id));
            }
        }
    }
}
