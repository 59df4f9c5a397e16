//! The guardrails' stage: the texts of the body, before anything is reserved or sent, and
//! [those of the answer](answer).

use std::ops::Range;

use bytes::Bytes;

pub(super) mod answer;
mod stream;
mod texts;

use super::Gateway;
use super::ask::{ParsedAsk, Texts};
use super::caller::Caller;
use crate::plugin::Screened;
use crate::policy::Permit;
use crate::policy::guardrails::{Finding, Guardrails};
use crate::problem::Problem;

/// Bodies up to this size are screened where they are; larger ones on a thread on which
/// nobody else waits.
const AT_ONCE: usize = 16 << 10;

impl Gateway {
    /// The body to forward, and the code of the guardrail that found something in it.
    pub(super) async fn screen(
        &self,
        caller: &Caller,
        ask: &ParsedAsk,
        permit: &Permit,
        body: Bytes,
    ) -> Result<(Bytes, Option<String>), Problem> {
        let config = &self.0.parts.config;
        let bound = config.metering.strict.then(|| self.output_bound(ask)).flatten();
        let (mut body, mut acted) = (ask.forwarded(&body, bound), None);
        let assigned = &permit.rules().guardrails;
        if !assigned.is_empty() {
            let screened = Box::pin(screen_by(assigned, ask.fields(), body.clone())).await?;
            (body, acted) = passed(screened, body, acted)?;
        }
        for guardrail in &self.0.parts.guardrails {
            let screened = guardrail.screen(&caller.context, &ask.ask, permit, &body);
            (body, acted) = passed(screened, body, acted)?;
        }
        Ok((body, acted))
    }
}

async fn screen_by(assigned: &Guardrails, fields: Option<&[Range<usize>]>, body: Bytes) -> Result<Screened, Problem> {
    if body.len() <= AT_ONCE {
        return screened(assigned, fields, &body);
    }
    let (assigned, fields) = (assigned.clone(), fields.map(<[_]>::to_vec));
    let screening = tokio::task::spawn_blocking(move || screened(&assigned, fields.as_deref(), &body));
    screening.await.unwrap_or_else(|_| Err(Problem::internal()))
}

fn screened(assigned: &Guardrails, fields: Option<&[Range<usize>]>, body: &Bytes) -> Result<Screened, Problem> {
    let texts = match fields {
        Some(fields) => Texts::of_fields(body, fields),
        None => Texts::of_json(std::str::from_utf8(body).map_err(|_| Problem::internal())?),
    };
    if texts.tokens {
        return Err(Problem::bad_request(
            "unreadable_prompt",
            "Guardrails hold for you, and they cannot read token ids: send the prompt as text",
        ));
    }
    Ok(match assigned.screen(&texts.passages) {
        Finding::Clean => Screened::Passed,
        Finding::Detected { code } => Screened::Detected { code },
        Finding::Masked { code, masks } => Screened::Masked { code, body: texts.masked(body, &masks) },
        Finding::Blocked { code, pattern } => Screened::Blocked { code, pattern },
    })
}

/// What goes on after a guardrail's finding. A mask is worth more in the ledger than
/// what was only noted before it.
fn passed(screened: Screened, body: Bytes, acted: Option<String>) -> Result<(Bytes, Option<String>), Problem> {
    match screened {
        Screened::Passed => Ok((body, acted)),
        Screened::Detected { code } => Ok((body, acted.or(Some(code)))),
        Screened::Masked { code, body } => Ok((body, Some(code))),
        Screened::Blocked { code, pattern } => {
            let detail =
                format!("Guardrail `{code}` blocks this request (pattern `{pattern}`): take the matching text out");
            Err(blocked(detail, code, pattern))
        }
    }
}

fn blocked(detail: String, code: String, pattern: String) -> Problem {
    Problem::forbidden("guardrail_blocked", detail).with("guardrail", code).with("pattern", pattern)
}
