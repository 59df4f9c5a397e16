//! What a handler is called with: proof that the guard let the caller through, the
//! way to a transaction, and the conventions of every answer.
//!
//! A guard is a type, so that a route says in its signature who may call it, and
//! the refusal comes before the body is read.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, header};
use serde::Serialize;

use super::App;
use super::answer::{Answer, Halt};
use super::trial::{Effect, SAMPLE, Trial};
use crate::context::{Context, Domain, Granted, Platform, RequestInfo, Tenant};
use crate::id::Id;
use crate::problem::Problem;
use crate::store::idempotency::{GivenAnswer, RequestKey};
use crate::store::{Reach, Tx};

/// Who may call a route.
pub trait Guard: Sized + Send + Sync {
    /// Whether the grant reaches one account or all.
    type Reach: 'static;

    /// The grant, or the refusal.
    ///
    /// # Errors
    /// 403 with the reason.
    fn admit(context: &Context, parts: &Parts) -> Result<(Self, Granted<Self::Reach>), Problem>;
}

/// Guard SUPER: an operator.
#[derive(Debug, Clone, Copy)]
pub struct SuperAdmin;
/// Guard SUPER in one account: an operator who is at home in it, or names it by `X-Account-Id`.
#[derive(Debug, Clone, Copy)]
pub struct AccountOperator;
/// Guard ACCOUNT: an admin of the whole account.
#[derive(Debug, Clone, Copy)]
pub struct AccountAdmin;
/// Guard DOMAIN of the path's first segment.
#[derive(Debug, Clone, Copy)]
pub struct DomainAdmin(pub Domain);
/// Guard DOMAIN(copilot).
#[derive(Debug, Clone, Copy)]
pub struct CopilotAdmin;
/// Guard DOMAIN of the domain that the query names, else of one of them: which one, the
/// body or a row says, and [`Call::domain_admin`] holds to it.
#[derive(Debug, Clone, Copy)]
pub struct EitherAdmin;
/// Any signed-in subject of the account.
#[derive(Debug, Clone, Copy)]
pub struct Member;

impl Guard for SuperAdmin {
    type Reach = Platform;
    fn admit(context: &Context, _: &Parts) -> Result<(Self, Granted<Platform>), Problem> {
        Ok((Self, context.super_admin()?))
    }
}
impl Guard for AccountOperator {
    type Reach = Tenant;
    fn admit(context: &Context, _: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        context.super_admin()?;
        Ok((Self, context.account_admin()?))
    }
}
impl Guard for AccountAdmin {
    type Reach = Tenant;
    fn admit(context: &Context, _: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        Ok((Self, context.account_admin()?))
    }
}
impl Guard for DomainAdmin {
    type Reach = Tenant;
    fn admit(context: &Context, parts: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        let path = parts.uri.path();
        let segment = path.strip_prefix("/v1/").unwrap_or(path).trim_start_matches('/').split('/').next();
        let domain = segment
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| Problem::not_found("There is no such product domain: expected console or copilot"))?;
        Ok((Self(domain), context.domain_admin(domain)?))
    }
}
impl Guard for CopilotAdmin {
    type Reach = Tenant;
    fn admit(context: &Context, _: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        Ok((Self, context.domain_admin(Domain::Copilot)?))
    }
}
impl Guard for EitherAdmin {
    type Reach = Tenant;
    fn admit(context: &Context, parts: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "domain");
        if let Some(domain) = named.and_then(|(_, domain)| domain.parse().ok()) {
            return Ok((Self, context.domain_admin(domain)?));
        }
        let of_console = || context.domain_admin(Domain::Console).ok();
        let granted = context.domain_admin(Domain::Copilot);
        Ok((Self, granted.or_else(|refusal| of_console().ok_or(refusal))?))
    }
}
impl Guard for Member {
    type Reach = Tenant;
    fn admit(context: &Context, _: &Parts) -> Result<(Self, Granted<Tenant>), Problem> {
        Ok((Self, context.member()?))
    }
}

/// The header of [`Call::expects`], for the description.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header, is never made")]
pub struct IfMatch {
    /// The `etag` of what you have read: 412 when it has changed since.
    #[param(rename = "if-match", example = "\"3\"")]
    if_match: Option<String>,
}

/// A call that `G` let through.
#[derive(Debug)]
pub struct Call<G: Guard> {
    /// What the routes share.
    pub app: App,
    /// Who calls.
    pub context: Context,
    /// The guard, where it found something out.
    pub guard: G,
    granted: Granted<G::Reach>,
    idempotency: Option<RequestKey>,
    in_flight: Option<InFlight>,
    if_match: Option<String>,
}

/// The digest of the query and body of a POST that carries an `Idempotency-Key`,
/// put there by the layer that buffers it.
#[derive(Debug, Clone)]
pub(super) struct BodyDigest(pub(super) String);

impl<G: Guard> FromRequestParts<App> for Call<G> {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Halt> {
        let context = caller(parts).ok_or_else(token_missing)?;
        let (guard, granted) = G::admit(&context, parts)?;
        let if_match = if_match(&parts.headers)?;
        app.parameters.check(parts, if_match.as_deref())?;
        let granted = match parts.extensions.get::<RequestInfo>() {
            Some(info) => granted.for_request(Arc::clone(&info.id), info.client_ip),
            None => granted,
        };
        let idempotency = request_key(parts, &context)?;
        let in_flight = idempotency.clone().map(|key| app.in_flight.enter(key)).transpose()?;
        Ok(Self { app: app.clone(), context, guard, granted, idempotency, in_flight, if_match })
    }
}

/// Who calls, if anybody is signed in.
fn caller(parts: &Parts) -> Option<Context> {
    parts.extensions.get::<Context>().cloned()
}

fn token_missing() -> Problem {
    Problem::unauthenticated("token_missing", "Send a Zitadel access token as Authorization: Bearer …")
}

/// A caller who need not be signed in.
#[derive(Debug)]
pub struct Anyone(pub Option<Context>);

impl FromRequestParts<App> for Anyone {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        app.parameters.check(parts, None)?;
        Ok(Self(caller(parts)))
    }
}

impl<G: Guard> Call<G> {
    /// Narrows the call to admins of `domain`.
    ///
    /// # Errors
    /// 403 as [`Context::domain_admin`].
    pub fn domain_admin(self, domain: Domain) -> Result<Call<DomainAdmin>, Problem> {
        let by = self.granted.by().clone();
        let granted = self.context.domain_admin(domain)?;
        let granted = match by.request_id {
            Some(id) => granted.for_request(id, by.source_ip),
            None => granted,
        };
        let Self { app, context, idempotency, in_flight, if_match, .. } = self;
        Ok(Call { app, context, guard: DomainAdmin(domain), granted, idempotency, in_flight, if_match })
    }
}

impl<G: Guard> Call<G>
where
    Granted<G::Reach>: Reach,
{
    /// The grant.
    pub fn granted(&self) -> &Granted<G::Reach> {
        &self.granted
    }

    /// A transaction that may write; or the answer that was given to the same
    /// `Idempotency-Key` before.
    ///
    /// # Errors
    /// [`Halt::Replay`] with the earlier answer, 422 `idempotency_key_reused`, 503.
    pub async fn begin(&self) -> Result<Tx<G::Reach>, Halt> {
        let mut tx = self.app.store.begin(&self.granted).await?;
        let Some(key) = &self.idempotency else { return Ok(tx) };
        match tx.given_answer(key).await? {
            None => Ok(tx),
            Some(given) if given.body_hash == key.body_hash => Err(Halt::Replay(Answer::replayed(given))),
            Some(_) => Err(Problem::new(
                http::StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "This Idempotency-Key was used with another body within the last 24 hours: send a new key",
            )
            .into()),
        }
    }

    /// As [`Call::begin`]; with `dry_run=true` a rehearsal, whose effect is the answer
    /// and of which nothing is kept, an `Idempotency-Key` neither.
    ///
    /// # Errors
    /// As [`Call::begin`].
    pub async fn begin_or_try(&self, trial: &Trial) -> Result<Tx<G::Reach>, Halt> {
        if !trial.dry_run {
            return self.begin().await;
        }
        let mut tx = self.app.store.begin(&self.granted).await?;
        tx.rehearse();
        Ok(tx)
    }

    /// A transaction that only reads.
    ///
    /// # Errors
    /// 503 when the database cannot be reached.
    pub async fn read(&self) -> Result<Tx<G::Reach>, Halt> {
        Ok(self.app.store.read(&self.granted).await?)
    }

    /// A transaction that only reads, for a POST that asks something: its answer too is
    /// kept under the `Idempotency-Key`, if one was sent.
    ///
    /// # Errors
    /// As [`Call::begin`].
    pub async fn ask(&self) -> Result<Tx<G::Reach>, Halt> {
        if self.idempotency.is_some() { self.begin().await } else { self.read().await }
    }

    /// Commits and answers with `body`; a dry run is taken back, and answers with its effect.
    ///
    /// # Errors
    /// 409 when the same `Idempotency-Key` was answered by another gateway meanwhile.
    pub async fn done<R>(&self, tx: Tx<R>, body: &impl Serialize) -> Result<Answer, Halt>
    where
        Granted<R>: Reach,
    {
        self.finish(tx, Answer::of(body)).await
    }

    /// Commits and answers with `body`, whose `ETag` is `version`.
    ///
    /// # Errors
    /// As [`Call::done`].
    pub async fn done_tagged<R>(&self, tx: Tx<R>, body: &impl Serialize, version: i64) -> Result<Answer, Halt>
    where
        Granted<R>: Reach,
    {
        self.finish(tx, Answer::of(body).tagged(version)).await
    }

    async fn finish<R>(&self, mut tx: Tx<R>, answer: Answer) -> Result<Answer, Halt>
    where
        Granted<R>: Reach,
    {
        if tx.is_rehearsal() {
            return Ok(Answer::of(&Effect::from(tx.rehearsed(SAMPLE).await?)));
        }
        if let Some(key) = &self.idempotency {
            let given = GivenAnswer {
                body_hash: key.body_hash.clone(),
                status: 200,
                etag: answer.etag().map(str::to_owned),
                answer: answer.text().to_owned(),
            };
            tx.keep_answer(key, &given).await.map_err(|e| match e {
                crate::store::StoreError::Unique(_) => in_progress().into(),
                other => Halt::from(other),
            })?;
        }
        tx.commit().await?;
        Ok(answer)
    }

    /// Holds a write to the version that the caller has seen, when they sent `If-Match`.
    ///
    /// # Errors
    /// 412 `version_mismatch`.
    pub fn expects(&self, version: i64) -> Result<(), Problem> {
        let Some(wanted) = &self.if_match else { return Ok(()) };
        let tag = format!("\"{version}\"");
        // Strong comparison (RFC 9110 section 13.1.1): a weak tag fits nothing.
        let fits = wanted.trim() == "*" || entity_tags(wanted).is_some_and(|tags| tags.contains(&tag.as_str()));
        if fits {
            return Ok(());
        }
        Err(Problem::new(
            http::StatusCode::PRECONDITION_FAILED,
            "version_mismatch",
            "The resource has changed since you read it: read it again and repeat the change",
        ))
    }
}

/// The one `If-Match`.
fn if_match(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut lines = headers.get_all(header::IF_MATCH).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    match (line.to_str(), lines.next()) {
        (Ok(text), None) if text.trim() == "*" || entity_tags(text).is_some() => Ok(Some(text.to_owned())),
        _ => {
            let detail = "Send If-Match once, with the ETag of what you have read as it was sent: in its quotes";
            Err(Problem::bad_request("invalid_if_match", detail))
        }
    }
}

/// The entity tags of a list, in their quotes (RFC 9110 section 8.8.3): a comma may stand in one, and
/// empty elements are passed over. None, where anything else stands there.
fn entity_tags(list: &str) -> Option<Vec<&str>> {
    const BETWEEN: [char; 3] = [' ', '\t', ','];
    let mut tags = Vec::new();
    let mut rest = list.trim_matches(BETWEEN);
    while !rest.is_empty() {
        let (_, after) = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"')?.split_once('"')?;
        tags.push(rest.strip_suffix(after)?);
        let next = after.trim_start_matches([' ', '\t']);
        if !next.is_empty() && !next.starts_with(',') {
            return None;
        }
        rest = next.trim_start_matches(BETWEEN);
    }
    Some(tags)
}

/// The `Idempotency-Key` of a POST with what it belongs to.
fn request_key(parts: &Parts, context: &Context) -> Result<Option<RequestKey>, Problem> {
    let (Some(value), Some(BodyDigest(body_hash))) =
        (parts.headers.get("idempotency-key"), parts.extensions.get::<BodyDigest>())
    else {
        return Ok(None);
    };
    let key = value.to_str().ok().filter(|k| (1..=255).contains(&k.len()) && !k.contains('\t')).ok_or_else(|| {
        Problem::bad_request("invalid_idempotency_key", "Idempotency-Key must be 1 to 255 visible ASCII characters")
    })?;
    let actor = context.actor();
    Ok(Some(RequestKey {
        account: context.account().cloned().unwrap_or_else(Id::nobody),
        caller: format!("{} {}", actor.issuer, actor.subject),
        route: format!("{} {}", parts.method, parts.uri.path()),
        key: key.to_owned(),
        body_hash: body_hash.clone(),
    }))
}

fn in_progress() -> Problem {
    Problem::conflict("request_in_progress", "A request with this Idempotency-Key is being answered: wait for it")
}

/// Requests with an `Idempotency-Key` that this process is answering.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlightSet(Arc<Mutex<HashSet<RequestKey>>>);

#[derive(Debug)]
struct InFlight {
    set: InFlightSet,
    key: RequestKey,
}

impl InFlightSet {
    fn enter(&self, mut key: RequestKey) -> Result<InFlight, Problem> {
        key.body_hash.clear();
        let fresh = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        if fresh { Ok(InFlight { set: self.clone(), key }) } else { Err(in_progress()) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.set.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
