//! Whether an answer costs more in an account with ten times as much in it: pages and effective answers of an account
//! with 1,000 users, 50 teams and 200 grants of each kind, and of one with 10,000, 500 and 2,000, through the routes of
//! the control plane.
//!
//! `cargo bench --bench scale` prints medians of requests that take turns, and the ratio of the two accounts, for SQLite,
//! and for PostgreSQL when `ALCHEMI_TEST_POSTGRES_URL` names one. Without `--bench`, as `cargo test --benches` runs it,
//! the accounts are small and each request is made once.
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "the report; and the time is the system's")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use alchemi::clock::{Clock, SystemClock, Timestamp};
use alchemi::context::{AskedPlace, Context, Domain, Granted, RequestInfo, Tenant};
use alchemi::credits::{Credits, Factor, Usd};
use alchemi::id::{Id, RandomIds};
use alchemi::identity::{AccountBinding, master_key_context};
use alchemi::model::accounts::{Account, JsonText};
use alchemi::model::agents::{Agent, AgentVisibility};
use alchemi::model::budgets::{Allocation, Calendar, Cycle, OverCommit, Plan, PlanStatus, RolloverMode, day_of};
use alchemi::model::directory::{Org, Placement, Team, User, UserStatus};
use alchemi::model::features::FeatureEntitlement;
use alchemi::model::models::{AccessMode, ModelGrant};
use alchemi::model::scope::{Scope, ScopeType};
use alchemi::model::usage::{CostSource, Dimensions, EntryKind, LedgerRow, RouteKind, Tokens};
use alchemi::policy::budget::BudgetRules;
use alchemi::store::page::Slice;
use alchemi::store::{DatabaseConfig, Store, Tx, migrate};
use alchemi::v1::models::Catalogue;
use alchemi::v1::{App, router};
use axum::Router;
use axum::body::{Body, to_bytes};
use http::Request;
use jiff::tz::TimeZone;
use serde_json::Value;
#[cfg(feature = "postgres")]
use sqlx::{Connection as _, Executor as _};
use tower::ServiceExt as _;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What is in an account, in the copilot domain; grants are of each kind, spread evenly over the teams.
#[derive(Clone, Copy)]
struct Size {
    users: usize,
    teams: usize,
    grants: usize,
}

/// Every so many users one is in the crowd, a team of its own.
const CROWD: usize = 5;

/// Items of a page: few, so that it is full in both accounts.
const PAGE: usize = 10;

/// An account, and whom its questions are about.
struct Seeded {
    size: Size,
    caller: Context,
    org: Id<Org>,
    team: Id<Team>,
    crowd: Id<Team>,
    user: Id<User>,
}

/// Rows of one account, in one transaction for each kind.
struct Seed<'a> {
    store: &'a Store,
    granted: Granted<Tenant>,
    size: Size,
    now: Timestamp,
}

impl Seed<'_> {
    async fn begin(&self) -> Result<(Tx<Tenant>, Id<Account>)> {
        let tx = self.store.begin(&self.granted).await?;
        let account = tx.account().clone();
        Ok((tx, account))
    }

    /// The moment at which the nth row of a kind was made.
    fn at(&self, n: usize) -> Timestamp {
        Timestamp::from_micros(self.now.as_micros().saturating_add(i64::try_from(n).unwrap_or_default()))
    }

    async fn org(&self) -> Result<Id<Org>> {
        let (mut tx, account_id) = self.begin().await?;
        let org = Org {
            id: tx.new_id(),
            account_id,
            domain: Domain::Copilot,
            name: "Research".to_owned(),
            description: None,
            is_default_global: false,
            created_by: None,
            created_at: self.now,
            updated_at: self.now,
            version: 1,
        };
        tx.insert_org(&org).await?;
        tx.insert_system_presets().await?;
        tx.commit().await?;
        Ok(org.id)
    }

    /// The teams, the crowd's last.
    async fn teams(&self, org: &Id<Org>) -> Result<Vec<Id<Team>>> {
        let (mut tx, account) = self.begin().await?;
        let mut teams = Vec::new();
        for n in 0..=self.size.teams {
            let team = Team {
                id: tx.new_id(),
                account_id: account.clone(),
                domain: Domain::Copilot,
                org_id: org.clone(),
                name: format!("team {n}"),
                description: None,
                created_by: None,
                created_at: self.at(n),
                updated_at: self.at(n),
                version: 1,
            };
            tx.insert_team(&team).await?;
            teams.push(team.id);
        }
        tx.commit().await?;
        Ok(teams)
    }

    /// The users, each in a team; the first one is who calls.
    async fn users(&self, teams: &[Id<Team>], crowd: &Id<Team>) -> Result<Vec<Id<User>>> {
        let (mut tx, account) = self.begin().await?;
        let mut users = Vec::new();
        for (n, team) in (0..self.size.users).zip(teams.iter().cycle()) {
            let user = User {
                id: tx.new_id(),
                account_id: account.clone(),
                domain: Domain::Copilot,
                identity_user_id: Some(if n == 0 { "master_key".to_owned() } else { format!("subject-{n}") }),
                email: Some(format!("user{n}@example.com")),
                display_name: Some(format!("User {n}")),
                status: UserStatus::Active,
                created_by: None,
                created_at: self.at(n),
                updated_at: self.at(n),
                version: 1,
            };
            tx.insert_user(&user).await?;
            tx.put_member(Domain::Copilot, team, &user.id, None).await?;
            if n % CROWD == 1 {
                tx.put_member(Domain::Copilot, crowd, &user.id, None).await?;
            }
            users.push(user.id);
        }
        tx.commit().await?;
        Ok(users)
    }

    /// Models, features, agents and guardrails of the teams.
    async fn grants(&self, teams: &[Id<Team>]) -> Result<()> {
        let (mut tx, account) = self.begin().await?;
        let presets = tx.guardrail_presets(&Slice::first(1)).await?.items;
        for (n, team) in (0..self.size.grants).zip(teams.iter().cycle()) {
            let (round, at) = (n / teams.len(), self.at(n));
            tx.upsert_model_grant(&ModelGrant {
                id: tx.new_id(),
                account_id: account.clone(),
                domain: Domain::Copilot,
                model_name: format!("model-{round}"),
                scope_type: ScopeType::Team,
                scope_id: team.to_string(),
                access_mode: AccessMode::Allow,
                created_by: None,
                created_at: at,
                updated_at: at,
                version: 1,
            })
            .await?;
            tx.upsert_entitlement(&FeatureEntitlement {
                id: tx.new_id(),
                account_id: account.clone(),
                domain: Domain::Copilot,
                feature_code: format!("feature-{round}"),
                scope_type: ScopeType::Team,
                scope_id: team.to_string(),
                enabled: true,
                config_json: JsonText::empty_object(),
                created_by: None,
                created_at: at,
                updated_at: at,
                version: 1,
            })
            .await?;
            let agent = Agent {
                id: tx.new_id(),
                account_id: account.clone(),
                name: format!("agent {n}"),
                description: None,
                definition_json: JsonText::empty_object(),
                visibility: AgentVisibility::Granted,
                created_by: None,
                created_at: at,
                updated_at: at,
                version: 1,
            };
            tx.insert_agent(&agent).await?;
            tx.insert_agent_grant(&agent.id, &Scope::new(ScopeType::Team, team.as_str())).await?;
            for preset in &presets {
                tx.assign_guardrail_preset(&preset.id, &Scope::new(ScopeType::Agent, agent.id.as_str())).await?;
                tx.assign_guardrail_preset(&preset.id, &Scope::new(ScopeType::Team, team.as_str())).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Credits for every team and every user.
    async fn budget(&self, teams: &[Id<Team>], users: &[Id<User>]) -> Result<Plan> {
        let (mut tx, account_id) = self.begin().await?;
        let plan = Plan {
            id: tx.new_id(),
            account_id: account_id.clone(),
            name: "plan".to_owned(),
            cycle: Cycle::Monthly,
            status: PlanStatus::Active,
            over_commit: OverCommit::Allow,
            rollover: RolloverMode::None,
            rollover_cap: None,
            rollover_windows: 1,
            rolled_to: None,
            look_again_at: None,
            created_by: None,
            created_at: self.now,
            updated_at: self.now,
            version: 1,
        };
        tx.insert_plan(&plan).await?;
        let teams = teams.iter().map(|id| Scope::new(ScopeType::Team, id.as_str()));
        let users = users.iter().map(|id| Scope::new(ScopeType::User, id.as_str()));
        let allocations: Vec<Allocation> = teams
            .chain(users)
            .enumerate()
            .map(|(n, scope)| Allocation {
                id: tx.new_id(),
                account_id: account_id.clone(),
                plan_id: plan.id.clone(),
                scope_type: scope.scope_type,
                scope_id: scope.scope_id,
                allocated_credits: Credits::from_units(10),
                overflow_cap: None,
                rollover_credits: Credits::ZERO,
                rollover_until: None,
                source: "manual".to_owned(),
                created_by: None,
                created_at: self.at(n),
                updated_at: self.at(n),
                version: 1,
            })
            .collect();
        tx.insert_allocations(&allocations).await?;
        tx.commit().await?;
        Ok(plan)
    }

    /// What the crowd has used: nearly all that each of them has.
    async fn usage(&self, plan: Plan, org: &Id<Org>, crowd: &Id<Team>, users: &[Id<User>]) -> Result<()> {
        let (mut tx, account_id) = self.begin().await?;
        let rules =
            BudgetRules { calendar: Calendar::default(), account: None, plan: Some(plan), allocations: Vec::new() };
        for (n, user) in users.iter().enumerate().filter(|(n, _)| n % CROWD == 1) {
            let (org, team, user) = (Some(org.clone()), Some(crowd.clone()), Some(user.clone()));
            let place = Placement { org, team, user, status: None };
            let links = rules.chain(&account_id, Domain::Copilot, &place, tx.now());
            let row = LedgerRow {
                request_id: tx.new_id::<LedgerRow>().to_string(),
                account_id: account_id.clone(),
                kind: RouteKind::Chat,
                entry: EntryKind::Usage,
                domain: Domain::Copilot,
                dimensions: Dimensions {
                    org_id: place.org.map(|id| id.to_string()),
                    team_id: place.team.map(|id| id.to_string()),
                    user_id: place.user.map(|id| id.to_string()),
                    model_name: Some("model-0".to_owned()),
                    ..Dimensions::default()
                },
                tokens: Tokens::default(),
                raw_cost: Usd::from_units(8),
                credit_factor: Factor::ONE,
                credits: Credits::from_units(8 + i64::try_from(n % 3)?),
                cost_source: CostSource::Recorded,
                marks: String::new(),
                upstream_call_id: None,
                status: 200,
                duration_us: 0,
                plan_id: None,
                cycle_start: None,
                metadata: "{}".to_owned(),
                day: day_of(self.now, &TimeZone::UTC),
                created_at: self.at(n),
            };
            tx.record(&row, &links).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// A new account of this size.
async fn seeded(store: &Store, size: Size) -> Result<Seeded> {
    let operator = master_key_context(None).super_admin()?;
    let mut tx = store.begin(&operator).await?;
    let id = tx.new_id::<Account>();
    let account = Account::new(id.clone(), format!("scale {id}"), None, SystemClock.now());
    tx.insert_account(&account).await?;
    tx.commit().await?;
    let seed = Seed { store, granted: operator.over(id.clone()), size, now: SystemClock.now() };
    let org = seed.org().await?;
    let mut teams = seed.teams(&org).await?;
    let crowd = teams.pop().ok_or("no team")?;
    let users = seed.users(&teams, &crowd).await?;
    seed.grants(&teams).await?;
    let plan = seed.budget(&teams, &users).await?;
    seed.usage(plan, &org, &crowd, &users).await?;
    let binding = AccountBinding {
        id,
        suspended: false,
        issuer: None,
        organization_id: None,
        role_prefix: None,
        role_mappings: std::collections::BTreeMap::new(),
    };
    let (team, user) = (teams.first().cloned().ok_or("no team")?, users.first().cloned().ok_or("no user")?);
    Ok(Seeded { size, caller: master_key_context(Some(&binding)), org, team, crowd, user })
}

/// What is asked, and of how many rows a list is, without which it is none.
type Question = (&'static str, String, Option<usize>);

impl Seeded {
    fn questions(&self) -> Vec<Question> {
        let Size { users, teams, grants } = self.size;
        let chain = format!("org_id={}&team_id={}&user_id={}", self.org, self.team, self.user);
        let list = |name, path: String, rows| (name, path, Some(rows));
        let one = |name, path: String| (name, path, None);
        vec![
            list("users", "/v1/copilot/users?".to_owned(), users),
            list("teams", "/v1/copilot/teams?".to_owned(), teams),
            list("teams of an org", format!("/v1/copilot/teams?org_id={}&", self.org), teams),
            list("members of a team", format!("/v1/copilot/teams/{}/members?", self.crowd), users / CROWD),
            list("model grants", "/v1/copilot/models/grants?".to_owned(), grants),
            list("model grants by model", "/v1/copilot/models/grants?model_name=model-0&".to_owned(), teams),
            list("entitlements", "/v1/features/entitlements?domain=copilot&".to_owned(), grants),
            list("agents with grants", "/v1/copilot/agents?include_grants=true&".to_owned(), grants),
            list("guardrail assignments", "/v1/copilot/guardrails/assignments?".to_owned(), grants),
            list("budget allocations", "/v1/budgets/copilot/allocations?".to_owned(), users),
            list("effective allocations of a plan", "/v1/budgets/copilot/effective-allocation?".to_owned(), users),
            list("usage by scope", "/v1/budgets/copilot/usage-by-scope?".to_owned(), users),
            list("alerts", "/v1/budgets/copilot/alerts?threshold=80&".to_owned(), users / CROWD),
            one("models/effective", format!("/v1/copilot/models/effective?model_name=model-0&{chain}")),
            one("features/effective", format!("/v1/features/effective?domain=copilot&feature_code=feature-0&{chain}")),
            one("guardrails/effective", format!("/v1/copilot/guardrails/effective?{chain}")),
            one("effective-allocation", format!("/v1/budgets/copilot/effective-allocation?user_id={}", self.user)),
            one("me/models", "/v1/me/models".to_owned()),
            one("me/features", "/v1/me/features".to_owned()),
            one("me/agents", "/v1/me/agents".to_owned()),
            one("me/allocation", "/v1/me/allocation".to_owned()),
        ]
    }

    /// Every request: of a list, the first page and one in the middle.
    async fn requests(&self, routes: &Router) -> Result<Vec<(String, String)>> {
        let mut requests = Vec::new();
        for (name, path, rows) in self.questions() {
            let Some(rows) = rows else {
                requests.push((name.to_owned(), path));
                continue;
            };
            let (_, before) = self.ask(routes, &format!("{path}limit=1&offset={}", rows / 2 - 1)).await?;
            let cursor = before.get("next_cursor").and_then(Value::as_str).ok_or("no page in the middle")?;
            requests.push((format!("{name}, first page"), format!("{path}limit={PAGE}")));
            requests.push((format!("{name}, in the middle"), format!("{path}limit={PAGE}&cursor={cursor}")));
        }
        Ok(requests)
    }

    /// Asks once; gives how long it took and the answer.
    async fn ask(&self, routes: &Router, path: &str) -> Result<(Duration, Value)> {
        let mut request = Request::get(path).body(Body::empty())?;
        request.extensions_mut().insert(RequestInfo { id: "scale".into(), client_ip: None });
        request.extensions_mut().insert(AskedPlace::default());
        request.extensions_mut().insert(self.caller.clone());
        let began = Instant::now();
        let (head, body) = routes.clone().oneshot(request).await?.into_parts();
        let body = to_bytes(body, usize::MAX).await?;
        let took = began.elapsed();
        if !head.status.is_success() {
            return Err(format!("{path}: {} {}", head.status, String::from_utf8_lossy(&body)).into());
        }
        Ok((took, serde_json::from_slice(&body)?))
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64) * 1e3
}

/// Gathers PostgreSQL's figures, as autovacuum does by itself within a minute of such a load: without them it takes a few
/// rows of a scope for as many as a whole account's, and reads all of those. SQLite has its figures from a migration.
async fn analyze(url: &str) -> Result<()> {
    #[cfg(feature = "postgres")]
    if !url.starts_with("sqlite:") {
        sqlx::PgConnection::connect(url).await?.execute("ANALYZE").await?;
    }
    let _ = url;
    Ok(())
}

/// Two accounts in one database; prints their table.
async fn compare(url: String, sizes: [Size; 2], rounds: usize) -> Result<()> {
    let config = DatabaseConfig { url, ..DatabaseConfig::default() };
    let store = Store::open(&config, Arc::new(SystemClock), Arc::new(RandomIds)).await?;
    migrate::apply(&store).await?;
    let [small, large] = sizes;
    let (small, large) = (seeded(&store, small).await?, seeded(&store, large).await?);
    analyze(&config.url).await?;
    let catalogue = Catalogue::new(|| (0..100).map(|n| format!("model-{n}")).collect());
    let routes = router(App::new(store.clone()).with_catalogue(catalogue));
    println!("\n| {} | {} users, ms | {} users, ms | ratio |", store.backend(), small.size.users, large.size.users);
    println!("|---|--:|--:|--:|");
    let requests = small.requests(&routes).await?.into_iter().zip(large.requests(&routes).await?);
    for ((name, of_small), (_, of_large)) in requests {
        let (mut times, warm) = ([Vec::new(), Vec::new()], rounds / 10);
        for round in 0..rounds + warm {
            let took = [small.ask(&routes, &of_small).await?.0, large.ask(&routes, &of_large).await?.0];
            if round >= warm {
                times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
            }
        }
        let [small, large] = times.map(median);
        println!("| {name} | {small:.3} | {large:.3} | {:.2} |", large / small);
    }
    store.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (rounds, scale) = if measured { (101, 50) } else { (1, 1) };
    let size = |times: usize| Size { users: 20 * times, teams: 8.max(times), grants: 16.max(4 * times) };
    let folder = tempfile::tempdir()?;
    let mut urls = vec![format!("sqlite:{}", folder.path().join("scale.db").display())];
    urls.extend(std::env::var("ALCHEMI_TEST_POSTGRES_URL").ok());
    for url in urls {
        compare(url, [size(scale), size(10 * scale)], rounds).await?;
    }
    Ok(())
}
