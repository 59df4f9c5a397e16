//! An admitted request in the journal: what begins its entry and what finishes it.
//!
//! Encoded with postcard: enumerations by the place of their variant, so that variants and
//! members are only ever added at the end, and [`VERSION`] is raised when that changes. What
//! the records of a segment add up to is [`Replay`]'s to find.

use std::borrow::Cow;
use std::collections::HashMap;

use postcard::ser_flavors::Flavor;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use super::Bill;
use super::ticket::{Detail, Request, Ticket};
use crate::clock::Timestamp;
use crate::context::Domain;
use crate::credits::{Credits, Factor, Usd};
use crate::id::Id;
use crate::journal::{Kind, Record};
use crate::model::budgets::Enforcement;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::{CostSource, CounterKey, Dimensions, RouteKind, Tokens};
use crate::policy::budget::Link;
use crate::store::ledger::Settlement;

/// The version of these encodings.
pub const VERSION: u8 = 2;

/// What a journal's segments say of the process that writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'a> {
    /// Under whose leases it admits; empty while it has none.
    pub holder: &'a str,
    /// The database that its requests are booked in; none in what earlier versions wrote.
    pub database: Option<&'a str>,
    /// Whether it may have admitted requests in memory alone; none where an earlier version does not say.
    pub in_memory: Option<bool>,
}

impl<'a> Note<'a> {
    /// Its bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        let in_memory = match self.in_memory {
            Some(true) => "memory",
            Some(false) => "disk",
            None => "",
        };
        [self.holder, self.database.unwrap_or_default(), in_memory].join("\n").into_bytes()
    }

    /// Reads [`Note::to_bytes`]. None: it is no text.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.split('\n');
        Some(Self {
            holder: lines.next().unwrap_or_default(),
            database: lines.next().filter(|database| !database.is_empty()),
            in_memory: lines.next().map(|place| place == "memory"),
        })
    }
}

/// Remarks that a bill may carry; one of a later version is left out.
const MARKS: [&str; 3] = ["cut", "not_forwarded", "unsettled"];

/// What begins an entry; `C` is its chain.
#[derive(Debug, Serialize, Deserialize)]
struct Admit<'a, C> {
    request_id: &'a str,
    account: &'a str,
    kind: RouteKind,
    domain: Domain,
    admitted_at: i64,
    hold: i64,
    over_cap: bool,
    factor: i64,
    estimate: i64,
    estimated_tokens: Tokens,
    #[serde(borrow)]
    lease: Option<&'a str>,
    #[serde(borrow)]
    org: Option<&'a str>,
    #[serde(borrow)]
    team: Option<&'a str>,
    #[serde(borrow)]
    user: Option<&'a str>,
    subject: &'a str,
    model: &'a str,
    #[serde(borrow)]
    agent: Option<&'a str>,
    #[serde(borrow)]
    guardrail: Option<&'a str>,
    #[serde(borrow)]
    connection: Option<&'a str>,
    #[serde(borrow)]
    plan: Option<&'a str>,
    cycle_start: Option<i64>,
    zone: &'a str,
    chain: C,
    /// Which enforcement let it over its cap; from version 2 on.
    let_over_by: Option<Enforcement>,
}

/// A counter of the chain.
#[derive(Debug, Serialize, Deserialize)]
struct Counted<'a> {
    scope_type: ScopeType,
    scope_id: &'a str,
    window_start: i64,
    held: bool,
}

/// A chain that is written without being copied first.
struct Chain<'a> {
    links: &'a [Link],
    holds: bool,
}

impl Serialize for Chain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut chain = serializer.serialize_seq(Some(self.links.len()))?;
        for link in self.links {
            chain.serialize_element(&Counted {
                scope_type: link.scope.scope_type,
                scope_id: &link.scope.scope_id,
                window_start: link.window.start.as_micros(),
                held: self.holds && link.cap.is_some(),
            })?;
        }
        chain.end()
    }
}

/// What finishes an entry.
#[derive(Debug, Serialize, Deserialize)]
struct Settle<'a> {
    request_id: &'a str,
    at: i64,
    /// What its lease, or its reservation, is rid of.
    hold: i64,
    tokens: Tokens,
    cost: i64,
    source: Option<CostSource>,
    #[serde(borrow)]
    marks: Vec<&'a str>,
    #[serde(borrow)]
    upstream_call_id: Option<&'a str>,
    status: u16,
    #[serde(borrow)]
    guardrail: Option<&'a str>,
}

/// Postcard's way into a vector that has other bytes already.
struct Appending<'a>(&'a mut Vec<u8>);

impl Flavor for Appending<'_> {
    type Output = ();

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn append(value: &impl Serialize, out: &mut Vec<u8>) {
    // A sequence without a length is all that could fail.
    let _ = postcard::serialize_with_flavor(value, Appending(out));
}

/// Appends what begins a ticket's entry.
pub(super) fn admit(ticket: &Ticket, out: &mut Vec<u8>) {
    let (rules, place) = (ticket.rules(), &ticket.rules().placement);
    let lease = ticket.slice.as_ref().map(|slice| slice.lease_id());
    let admit = Admit {
        request_id: &ticket.request_id,
        account: rules.account.as_str(),
        kind: ticket.kind,
        domain: rules.domain,
        admitted_at: ticket.admitted_at.as_micros(),
        hold: ticket.hold.nanos(),
        over_cap: ticket.over_cap,
        factor: rules.factor.nanos(),
        estimate: ticket.estimate.nanos(),
        estimated_tokens: ticket.estimated_tokens,
        lease: lease.as_deref(),
        org: place.org.as_ref().map(Id::as_str),
        team: place.team.as_ref().map(Id::as_str),
        user: place.user.as_ref().map(Id::as_str),
        subject: &ticket.subject,
        model: &ticket.model,
        agent: rules.agent.as_ref().map(|agent| agent.id.as_str()),
        guardrail: ticket.guardrail.as_deref(),
        connection: rules.connection.as_ref().map(|connection| connection.id.as_str()),
        plan: ticket.plan().map(|plan| plan.id.as_str()),
        cycle_start: ticket.cycle_start(),
        zone: ticket.zone(),
        chain: Chain { links: ticket.links(), holds: ticket.holds },
        let_over_by: ticket.over_cap.then_some(rules.enforcement),
    };
    append(&admit, out);
}

/// Appends what finishes a ticket's entry.
pub(super) fn settle(ticket: &Ticket, bill: &Bill, at: Timestamp, out: &mut Vec<u8>) {
    let settle = Settle {
        request_id: &ticket.request_id,
        at: at.as_micros(),
        hold: ticket.owed().nanos(),
        tokens: bill.tokens,
        cost: bill.cost.nanos(),
        source: bill.source,
        marks: bill.marks.clone(),
        upstream_call_id: bill.upstream_call_id.as_deref(),
        status: bill.status,
        guardrail: bill.guardrail.as_deref(),
    };
    append(&settle, out);
}

/// What the records of a journal add up to.
#[derive(Debug, Default)]
pub struct Replay {
    begun: HashMap<String, (Request, Detail)>,
    /// Records that are whole and yet cannot be understood.
    pub unreadable: usize,
}

impl Replay {
    /// Takes the next record; gives what is to be written if it finishes a request that had begun.
    pub fn take(&mut self, record: &Record<'_>) -> Option<Settlement> {
        match record.kind {
            Kind::Begin => {
                let mut payload = Cow::Borrowed(record.payload);
                if record.version < 2 {
                    // Its last member is none.
                    payload.to_mut().push(0);
                }
                match postcard::from_bytes::<Admit<'_, Vec<Counted<'_>>>>(&payload) {
                    Ok(admit) => _ = self.begun.insert(admit.request_id.to_owned(), begun(admit)),
                    Err(_) => self.unreadable += 1,
                }
                None
            }
            Kind::Finish => {
                let Ok(settle) = postcard::from_bytes::<Settle<'_>>(record.payload) else {
                    self.unreadable += 1;
                    return None;
                };
                // What had begun in a segment that is gone was written before it went.
                let (request, detail) = self.begun.remove(settle.request_id)?;
                Some(finished(request, detail, settle))
            }
            Kind::Note => None,
        }
    }

    /// Requests that begun and did not finish, at their estimate and marked `unsettled`.
    pub fn unsettled(&mut self, now: Timestamp) -> impl Iterator<Item = Settlement> {
        self.begun.drain().map(move |(_, (request, detail))| detail.unsettled(request, now))
    }
}

fn begun(admit: Admit<'_, Vec<Counted<'_>>>) -> (Request, Detail) {
    let own = |text: Option<&str>| text.map(str::to_owned);
    let counter = |counted: &Counted<'_>| CounterKey {
        scope: Scope::new(counted.scope_type, counted.scope_id),
        window_start: counted.window_start,
    };
    let request = Request {
        request_id: admit.request_id.to_owned(),
        account: Id::stored(admit.account),
        hold: Credits::from_nanos(admit.hold),
        lease: admit.lease.map(Into::into),
        reserved: admit.lease.is_none(),
        admitted_at: Timestamp::from_micros(admit.admitted_at),
    };
    let detail = Detail {
        kind: admit.kind,
        domain: admit.domain,
        dimensions: Dimensions {
            org_id: own(admit.org),
            team_id: own(admit.team),
            user_id: own(admit.user),
            subject: Some(admit.subject.to_owned()),
            model_name: Some(admit.model.to_owned()),
            agent_id: own(admit.agent),
            guardrail_code: own(admit.guardrail),
            connection_id: own(admit.connection),
        },
        counters: admit.chain.iter().map(counter).collect(),
        held: admit.chain.iter().filter(|counted| counted.held).map(counter).collect(),
        over_cap: admit.over_cap,
        // Version 1 did not say it.
        enforcement: admit.let_over_by.unwrap_or(Enforcement::Soft),
        factor: Factor::from_nanos(admit.factor),
        estimate: Usd::from_nanos(admit.estimate),
        estimated_tokens: admit.estimated_tokens,
        plan_id: own(admit.plan),
        cycle_start: admit.cycle_start,
        zone: admit.zone.to_owned(),
    };
    (request, detail)
}

fn finished(request: Request, detail: Detail, settle: Settle<'_>) -> Settlement {
    let known = |mark: &str| MARKS.into_iter().find(|known| *known == mark);
    let bill = Bill {
        tokens: settle.tokens,
        cost: Usd::from_nanos(settle.cost),
        source: settle.source,
        marks: settle.marks.into_iter().filter_map(known).collect(),
        upstream_call_id: settle.upstream_call_id.map(str::to_owned),
        status: settle.status,
        guardrail: settle.guardrail.map(str::to_owned),
    };
    let request = Request { hold: Credits::from_nanos(settle.hold), ..request };
    detail.settlement(request, bill, Timestamp::from_micros(settle.at))
}

/// Records for tests elsewhere in the crate.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::model::accounts::Account;

    /// What begins the entry of a request on an account's own counter from 0 on, in nano-credits.
    pub(crate) fn begun(id: &str, account: &Id<Account>, lease: Option<&str>, hold: i64) -> Vec<u8> {
        begun_over(None, id, account, lease, hold)
    }

    /// The same of one that was let over a cap.
    pub(crate) fn begun_over(
        over_cap: Option<Enforcement>,
        id: &str,
        account: &Id<Account>,
        lease: Option<&str>,
        hold: i64,
    ) -> Vec<u8> {
        let chain =
            vec![Counted { scope_type: ScopeType::Account, scope_id: account.as_str(), window_start: 0, held: true }];
        let admit = Admit {
            request_id: id,
            account: account.as_str(),
            kind: RouteKind::Chat,
            domain: Domain::Copilot,
            admitted_at: 1_700_000_000_000_000,
            hold,
            over_cap: over_cap.is_some(),
            factor: Factor::ONE.nanos(),
            estimate: hold,
            estimated_tokens: Tokens { input: 7, output: 300, ..Tokens::default() },
            lease,
            org: None,
            team: Some("team"),
            user: None,
            subject: "ada",
            model: "m",
            agent: None,
            guardrail: None,
            connection: None,
            plan: None,
            cycle_start: Some(-1),
            zone: "Europe/Paris",
            chain,
            let_over_by: over_cap,
        };
        let mut out = Vec::new();
        append(&admit, &mut out);
        out
    }

    /// What finishes it.
    pub(crate) fn finished(id: &str, used: i64) -> Vec<u8> {
        let settle = Settle {
            request_id: id,
            at: 1_700_000_001_000_000,
            hold: used,
            tokens: Tokens { input: 5, output: 6, ..Tokens::default() },
            cost: used,
            source: Some(CostSource::Header),
            marks: vec!["cut", "of a later version"],
            upstream_call_id: Some("call"),
            status: 200,
            guardrail: None,
        };
        let mut out = Vec::new();
        append(&settle, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, payload: &[u8]) -> Record<'_> {
        Record { kind, version: VERSION, payload }
    }

    #[test]
    fn a_request_that_finished_gets_its_row_and_one_that_did_not_its_estimate() {
        let account = "acme".parse().unwrap();
        let mut replay = Replay::default();
        for id in ["one", "two"] {
            let begun = testing::begun(id, &account, Some("lease"), 9);
            // Carried over, it is there twice.
            assert!(replay.take(&record(Kind::Begin, &begun)).is_none());
            assert!(replay.take(&record(Kind::Begin, &begun)).is_none());
        }
        let finished = testing::finished("one", 4);
        let one = replay.take(&record(Kind::Finish, &finished)).unwrap();
        assert!(replay.take(&record(Kind::Finish, &finished)).is_none(), "once");
        assert_eq!((one.row.credits.nanos(), one.hold.nanos(), one.row.marks.as_str()), (4, 4, "cut"));
        assert_eq!((one.row.status, one.row.duration_us, one.row.day.as_str()), (200, 1_000_000, "2023-11-14"));
        assert_eq!((one.row.dimensions.team_id.as_deref(), one.lease.as_deref()), (Some("team"), Some("lease")));
        assert_eq!((one.counters.len(), one.held.len(), one.reserved), (1, 1, false));
        let rest: Vec<_> = replay.unsettled(Timestamp::from_secs(1_700_000_002)).collect();
        assert_eq!(rest.len(), 1);
        assert_eq!(
            (rest[0].row.credits.nanos(), rest[0].hold.nanos(), rest[0].row.marks.as_str()),
            (9, 9, "unsettled")
        );
        assert_eq!((rest[0].row.tokens.output, rest[0].row.cost_source), (300, CostSource::Unsettled));
        assert!(replay.take(&record(Kind::Begin, &[0xff; 3])).is_none());
        assert!(replay.take(&record(Kind::Finish, &[0xff; 3])).is_none());
        assert_eq!(replay.unreadable, 2);
    }

    #[test]
    fn what_was_let_over_its_cap_says_why() {
        let account = "acme".parse().unwrap();
        for (enforcement, mark) in
            [(Enforcement::Soft, "unsettled,over_cap"), (Enforcement::Shadow, "unsettled,would_refuse")]
        {
            let mut replay = Replay::default();
            let begun = testing::begun_over(Some(enforcement), "one", &account, None, 9);
            assert!(replay.take(&record(Kind::Begin, &begun)).is_none());
            let rows: Vec<_> = replay.unsettled(Timestamp::from_secs(1_700_000_002)).map(|s| s.row.marks).collect();
            assert_eq!(rows, [mark]);
        }
        // As version 1 wrote it.
        let begun = testing::begun_over(Some(Enforcement::Shadow), "one", &account, None, 9);
        let older = Record { kind: Kind::Begin, version: 1, payload: &begun[..begun.len() - 2] };
        let mut replay = Replay::default();
        assert!(replay.take(&older).is_none());
        let rows: Vec<_> = replay.unsettled(Timestamp::from_secs(1_700_000_002)).map(|s| s.row.marks).collect();
        assert_eq!((rows, replay.unreadable), (vec!["unsettled,over_cap".to_owned()], 0));
    }

    #[test]
    fn the_encoding_is_what_older_journals_have() {
        let account = "a".parse().unwrap();
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(testing::begun("r", &account, Some("l"), 3)),
            "0172016100018080f28183898506060080a8d6b9070607ac02000000000001016c0001047465616d0003616461016d0000000001010c4575726f70652f506172697301000161000100"
        );
        assert_eq!(
            hex(testing::finished("r", 2)),
            "01728089ec828389850604050600000000000401000203637574126f662061206c617465722076657273696f6e010463616c6cc80100"
        );
    }
}
