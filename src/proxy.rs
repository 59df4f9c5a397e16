//! The reverse proxy: from a request's head to the upstream and back.
//!
//! [`Gateway::govern`] is the pipeline. It reads top to bottom as the request goes,
//! each stage taking the proof of the one before: a verified token becomes a
//! context, the context and the ask a permit, the permit a reservation, and the
//! reservation is the meter's to settle.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Limited};
use tracing::Instrument;

use crate::allocation::{Admission, Allocations};
use crate::clock::{SharedClock, Timestamp};
use crate::id::Id;
use crate::layer::headers::{Bearer, RequestHeaders};
use crate::layer::{Authenticator, Credential};
use crate::metering::meter::{Meter, Metered};
use crate::model::accounts::Account;
use crate::model::usage::RouteKind;
use crate::plugin::Guardrail;
use crate::policy::{self, Companions, Denial, Permit, decide};
use crate::problem::Problem;

pub mod ask;
pub mod balance;
pub mod behind;
mod caller;
pub mod catalogue;
pub mod config;
mod exchange;
pub mod forward;
pub mod headers;
pub mod ingress;
mod listing;
pub mod metered;
pub mod metrics;
mod passthrough;
pub mod refusal;
pub mod routes;
mod screening;
pub mod service;
pub mod signed;
pub mod upstream;
pub mod wire;

use ask::ParsedAsk;
use behind::Behind;
use caller::{Caller, CallerKey};
use catalogue::Catalogue;
use config::GatewayConfig;
pub use exchange::Exchange;
use forward::{Deadlined, ForwardError, Outgoing};
use headers::{ContextHeaders, Decision};
use ingress::RequestId;
use metered::MeteredBody;
use metrics::GatewayMetrics;
use refusal::refuse;
use routes::Governed;
use screening::answer::Screening;

/// What the gateway is made of.
#[derive(Debug, Clone)]
pub struct GatewayParts {
    /// Judges credentials.
    pub authenticator: Authenticator,
    /// Makes reservations.
    pub allocations: Allocations,
    /// Where permitted requests go.
    pub behind: Behind,
    /// Knows prices.
    pub catalogue: Arc<Catalogue>,
    /// Run in this order, after the presets that accounts assign and before the reservation.
    pub guardrails: Vec<Arc<dyn Guardrail>>,
    /// Counts.
    pub metrics: GatewayMetrics,
    /// Settings.
    pub config: GatewayConfig,
    /// The time.
    pub clock: SharedClock,
}

impl GatewayParts {
    /// Parts with the settings of [`GatewayConfig::default`], no prices but those of
    /// answers, no guardrails but those that accounts assign, and nothing behind them yet.
    pub fn new(authenticator: Authenticator, allocations: Allocations, clock: SharedClock) -> Self {
        Self {
            authenticator,
            allocations,
            behind: Behind::Nothing,
            catalogue: Arc::default(),
            guardrails: Vec::new(),
            metrics: GatewayMetrics::default(),
            config: GatewayConfig::default(),
            clock,
        }
    }
}

/// The governed data plane; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: GatewayParts,
    callers: moka::sync::Cache<CallerKey, Arc<Caller>, foldhash::fast::RandomState>,
}

impl Gateway {
    /// Puts the parts together.
    pub fn new(parts: GatewayParts) -> Self {
        let callers = moka::sync::Cache::builder()
            .max_capacity(parts.config.callers_capacity)
            .time_to_live(parts.config.callers_ttl)
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self(Arc::new(Shared { parts, callers }))
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        self.0.parts.clock.now()
    }

    /// Answers a governed request: the whole pipeline, or a refusal in the shape of
    /// the client's SDK.
    pub async fn govern<B>(&self, request: Request<B>, exchange: &Exchange, route: Governed<'_>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<forward::BoxError>,
    {
        let kind = route.kind;
        // Boxed: it is large, and each future around it would be moved about with it.
        let pipeline = Box::pin(self.pipeline(request, exchange, &route));
        match pipeline.instrument(exchange.span().clone()).await {
            Ok(response) => {
                exchange.answered(kind.as_str(), "allow", response.status());
                response
            }
            Err(problem) => {
                exchange.answered(kind.as_str(), problem.code(), problem.status_code());
                self.refused(problem, Some(kind), &exchange.id, exchange.account())
            }
        }
    }

    async fn pipeline<B>(
        &self,
        request: Request<B>,
        exchange: &Exchange,
        route: &Governed<'_>,
    ) -> Result<Response<Body>, Problem>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<forward::BoxError>,
    {
        let Shared { parts: own, .. } = &*self.0;
        let (mut head, body) = request.into_parts();
        // Ingress: what clients must not say is gone from here on.
        let asked = RequestHeaders::take(&mut head.headers)?;
        // Identity: a credential becomes proof.
        let credential = own.authenticator.credential(asked.bearer.as_ref().map(Bearer::token)).await?;
        if matches!(credential, Credential::Upstream) {
            return Box::pin(self.unmanaged(head, Outgoing::stream(body), exchange)).await;
        }
        refuse_repeated(&head.headers)?;
        if let Some(target) = ingress::governed_target(&head.uri) {
            head.uri = target;
        }
        // Context and rules: who that is here, and what holds for them.
        let caller = self.caller(credential, &asked).await?;
        exchange.belongs_to(&caller.rules, &caller.context.actor().subject);
        // Ask: what the body wants, read once and strictly.
        let body = self.read_body(&head, body, exchange).await?;
        let ask = self.read_ask(&head, route, &body)?;
        // Policy: the verdict, a pure function.
        let permit = decide(&caller.context, &ask.ask, companions(&asked), &caller.rules, own.clock.now())
            .map_err(|denial| self.explained(denial, &ask, &caller, &asked))?;
        self.check_stored_response(&caller, &ask, route).await?;
        if route.kind == RouteKind::Models {
            return Box::pin(self.listing(head, exchange, route, &caller, &asked)).await;
        }
        // Guardrails: the body's text.
        let (body, guardrail) = self.screen(&caller, &ask, &permit, body).await?;
        // Reserve: credits on every capped scope of the chain, all or nothing.
        let admitted = self.reserve(exchange, &caller, &ask, permit, guardrail).await?;
        // Forward and meter: the answer passes while it is read.
        let mut answer = self.forward(head, body, exchange, (&caller, &asked), route.kind, admitted).await?;
        if let Some(trace) = self.trace(&ask, &caller, &asked) {
            headers::explain(answer.headers_mut(), &trace);
        }
        Ok(answer)
    }

    async fn read_body<B>(&self, head: &Parts, body: B, exchange: &Exchange) -> Result<Bytes, Problem>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<forward::BoxError>,
    {
        let config = &self.0.parts.config;
        let coded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v.as_bytes() != b"identity");
        if coded {
            return Err(Problem::new(
                http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_encoding",
                "Send the body without Content-Encoding",
            ));
        }
        if body.size_hint().lower() > config.max_body {
            return Err(config.body_too_large());
        }
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let limit = usize::try_from(config.max_body).unwrap_or(usize::MAX);
        let asked = Instant::now();
        let read = tokio::time::timeout(config.body_timeout, Limited::new(body, limit).collect()).await;
        exchange.waited(asked.elapsed());
        match read {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(config.body_too_large()),
            Ok(Err(_)) => Err(Problem::bad_request("incomplete_body", "The body ended early or is malformed")),
            Err(_) => Err(Problem::new(
                http::StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "The body did not arrive in time; send it again",
            )),
        }
    }

    fn read_ask(&self, head: &Parts, route: &Governed<'_>, body: &Bytes) -> Result<ParsedAsk, Problem> {
        if matches!(route.kind, RouteKind::Models | RouteKind::ResponseItem) {
            let model = route.item.as_deref().filter(|_| route.kind == RouteKind::Models);
            return Ok(ParsedAsk::without_body(route.kind, model));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or_default());
        Ok(ask::read(route.kind, route.model.as_deref(), content_type, body, &self.0.parts.config.ask)?)
    }

    /// A stored response may be read, removed and continued by who made it alone: the
    /// upstream keeps those of all tenants under our one credential.
    async fn check_stored_response(
        &self,
        caller: &Caller,
        ask: &ParsedAsk,
        route: &Governed<'_>,
    ) -> Result<(), Problem> {
        let item = route.item.as_deref().filter(|_| route.kind == RouteKind::ResponseItem);
        let Some(id) = item.or(ask.previous_response.as_deref()) else { return Ok(()) };
        let subject = &caller.context.actor().subject;
        if Box::pin(self.0.parts.allocations.owns_response(&caller.rules.account, subject, id)).await? {
            return Ok(());
        }
        Err(Problem::not_found("There is no stored response of yours with this id"))
    }

    /// Adds to a refused model which ones the caller may use, and for an admin who
    /// asks what decided.
    fn explained(&self, denial: Denial, ask: &ParsedAsk, caller: &Caller, asked: &RequestHeaders) -> Problem {
        let problem: Problem = denial.suggesting(&caller.rules, || self.0.parts.catalogue.models()).into();
        match self.trace(ask, caller, asked) {
            Some(trace) => problem.with("trace", trace),
            None => problem,
        }
    }

    /// What decided, if an admin of the account asks with `x-alchemi-explain: 1`.
    fn trace(&self, ask: &ParsedAsk, caller: &Caller, asked: &RequestHeaders) -> Option<Vec<String>> {
        let may_know = asked.explain && caller.context.account_admin().is_ok();
        may_know.then(|| {
            let now = self.0.parts.clock.now();
            policy::trace(&caller.context, &ask.ask, companions(asked), &caller.rules, now)
        })
    }

    fn output_bound(&self, ask: &ParsedAsk) -> Option<u64> {
        let own = &self.0.parts;
        let model = ask.ask.model.as_deref()?;
        // What is too dear is refused when it comes to be reserved.
        let estimate =
            own.catalogue.book().estimate(model, &ask.ask.size, own.config.metering.default_max_output).ok()?;
        Some(estimate.tokens.output / ask.ask.size.answers.max(1))
    }

    /// Holds the estimate and hands the reservation to a meter. Free kinds have none.
    async fn reserve(
        &self,
        exchange: &Exchange,
        caller: &Caller,
        ask: &ParsedAsk,
        permit: Permit,
        guardrail: Option<String>,
    ) -> Result<Admitted, Problem> {
        let own = &self.0.parts;
        let (metering, kind) = (&own.config.metering, ask.ask.kind);
        let Some(model) = ask.ask.model.as_deref().filter(|_| kind.is_metered()) else {
            return Ok(Admitted::Free(permit));
        };
        let prices = own.catalogue.book();
        let (estimated_tokens, estimate) = metering.held(&prices, &ask.ask, model)?;
        let model: Arc<str> = Arc::from(model);
        let reservation = own
            .allocations
            .reserve(Admission {
                permit,
                request_id: exchange.id.text(),
                kind,
                subject: Arc::clone(&caller.context.actor().subject),
                model: Arc::clone(&model),
                guardrail,
                estimate: Some(estimate),
                estimated_tokens,
            })
            .await?;
        Ok(Admitted::Metered(Meter::new(
            reservation,
            Metered {
                kind,
                model,
                size: ask.ask.size,
                withhold_usage: ask.withholds_usage(),
                prices,
                unpriced: metering.unpriced,
                count: own.config.ask.count,
                cost_header: metering.cost_header.0.clone(),
            },
        )))
    }

    async fn forward(
        &self,
        mut head: Parts,
        body: Bytes,
        exchange: &Exchange,
        (caller, asked): (&Caller, &RequestHeaders),
        kind: RouteKind,
        mut admitted: Admitted,
    ) -> Result<Response<Body>, Problem> {
        let own = &self.0.parts;
        self.set_context(&mut head, exchange, caller, asked, admitted.meter().is_some());
        own.metrics.forwarded(exchange.own_time());
        if let Some(meter) = admitted.meter() {
            meter.sent();
        }
        let asked_at = Instant::now();
        let until = exchange.received + own.config.total_timeout;
        let sending = own.behind.send(Request::from_parts(head, Outgoing::from(body)), Some(&caller.context));
        let answered = tokio::time::timeout_at(until.into(), sending).await;
        let answered = answered.unwrap_or(Err(ForwardError::Timeout(own.config.total_timeout)));
        let (mut answer, body) = answered.inspect_err(|error| admitted.failed(error))?.into_parts();
        own.metrics.decided(Some(kind), "allow");
        own.metrics.answered(kind, answer.status.as_u16(), asked_at.elapsed());
        if answer.status == http::StatusCode::UNAUTHORIZED {
            // The client, who gets it, can do nothing about it.
            tracing::warn!(request_id = %exchange.id, "the upstream refuses the gateway's own credential: see upstream.api_key");
        }
        if let Some(meter) = admitted.meter() {
            meter.answered(answer.status.as_u16(), &answer.headers);
        }
        let over_cap = admitted.meter().is_some_and(|meter| meter.is_over_cap());
        let decision = if over_cap { Decision::OverCap } else { Decision::Allow };
        headers::answer(&mut answer.headers, &own.config.leaks, &exchange.id, decision);
        let body = Deadlined::new(body, own.config.idle_timeout, until.into());
        let (meter, in_flight) = (admitted.into_meter(), own.metrics.enter());
        let screening = match self.screening(caller, kind, &exchange.id, &answer) {
            Some(Screening::Whole(screen)) => return Box::pin(self.judged(answer, body, meter, screen)).await,
            Some(Screening::Stream(screening)) => Some(screening),
            None => None,
        };
        let body = MeteredBody::new(body, meter, screening, (in_flight, exchange.span().clone()));
        if body.may_shrink() {
            answer.headers.remove(header::CONTENT_LENGTH);
        }
        Ok(Response::from_parts(answer, Body::new(body)))
    }

    fn set_context(
        &self,
        head: &mut Parts,
        exchange: &Exchange,
        caller: &Caller,
        asked: &RequestHeaders,
        reserved: bool,
    ) {
        let own = &self.0.parts;
        exchange.arrival.forward(&mut head.headers);
        ContextHeaders {
            facts: Caller::facts(&caller.context, &caller.rules),
            written: &caller.headers,
            agent_id: asked.agent_id.as_deref(),
            reserved,
            signer: own.config.signer.as_ref(),
            now: own.clock.now(),
            request_id: &exchange.id,
            credential: own.config.credential.as_ref(),
            litellm: own.config.litellm,
        }
        .set(&mut head.headers, asked);
    }

    /// Answers with a refusal, counted and logged.
    pub fn refused(
        &self,
        problem: Problem,
        kind: Option<RouteKind>,
        id: &RequestId,
        account: Option<&Id<Account>>,
    ) -> Response<Body> {
        self.0.parts.metrics.decided(kind, problem.code());
        refusal::log(&problem, kind.map_or("other", RouteKind::as_str), id, account);
        refuse(problem, kind, id)
    }
}

/// What the request asks for beside its body.
fn companions(asked: &RequestHeaders) -> Companions<'_> {
    Companions { agent: asked.agent_id.as_deref(), connection: asked.connection_id.as_deref() }
}

/// What is judged once must stand once, or the upstream might read another line.
fn refuse_repeated(headers: &http::HeaderMap) -> Result<(), Problem> {
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Problem::bad_request("invalid_header", format!("Header {name} must not be repeated")));
        }
    }
    Ok(())
}

/// A request that may be forwarded: with a reservation, or of a kind that is free.
enum Admitted {
    Metered(Meter),
    Free(#[expect(dead_code, reason = "the proof goes along until the request is over")] Permit),
}

impl Admitted {
    fn meter(&mut self) -> Option<&mut Meter> {
        match self {
            Self::Metered(meter) => Some(meter),
            Self::Free(_) => None,
        }
    }

    /// A request that never left is not charged.
    fn failed(&mut self, error: &ForwardError) {
        if let (true, Some(meter)) = (error.is_unsent(), self.meter()) {
            meter.not_sent();
        }
    }

    fn into_meter(self) -> Option<Meter> {
        match self {
            Self::Metered(meter) => Some(meter),
            Self::Free(_) => None,
        }
    }
}
