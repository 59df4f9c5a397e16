//! What the client counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

macro_rules! operations {
    ($($operation:ident => $name:literal,)*) => {
        /// What is asked of Zitadel.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Operation {
            $($operation,)*
        }

        impl Operation {
            const ALL: &[Self] = &[$(Self::$operation),*];

            const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$operation => $name,)*
                }
            }
        }
    };
}

operations! {
    Token => "token",
    Probe => "probe",
    GetProject => "get_project",
    ListRoles => "list_roles",
    AddRole => "add_role",
    ListProjectGrants => "list_project_grants",
    AddProjectGrant => "add_project_grant",
    UpdateProjectGrant => "update_project_grant",
    ListGrants => "list_grants",
    AddGrant => "add_grant",
    UpdateGrant => "update_grant",
    RemoveGrant => "remove_grant",
    FindUsers => "find_users",
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    operation: &'static str,
}

/// Calls by operation and outcome, and how long they took, each attempt by itself.
#[derive(Debug, Clone)]
pub struct ManagementMetrics {
    calls: Family<Called, Counter>,
    seconds: Family<Timed, Histogram, fn() -> Histogram>,
}

fn histogram() -> Histogram {
    Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0])
}

impl Default for ManagementMetrics {
    fn default() -> Self {
        Self { calls: Family::default(), seconds: Family::new_with_constructor(histogram) }
    }
}

impl ManagementMetrics {
    /// Everything that the client can ask, as the label `operation` names it.
    pub fn operations() -> impl Iterator<Item = &'static str> {
        Operation::ALL.iter().map(|operation| operation.as_str())
    }

    /// Registers them under the registry's prefix.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Calls of Zitadel's management API by operation and outcome";
        registry.register("zitadel_calls", help, self.calls.clone());
        let help = "Time of a call of Zitadel's management API, in seconds";
        registry.register("zitadel_call_seconds", help, self.seconds.clone());
    }

    pub(super) fn called(&self, operation: Operation, outcome: &'static str, after: Duration) {
        let operation = operation.as_str();
        self.calls.get_or_create(&Called { operation, outcome }).inc();
        self.seconds.get_or_create(&Timed { operation }).observe(after.as_secs_f64());
    }
}
