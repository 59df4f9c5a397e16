//! Clients: some patient, some not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::{Client, Reply};
use crate::seed::Dice;
use crate::upstream::{ALLOWED, AT_LENGTH};

/// Clients at each gateway.
const WORKERS: usize = 3;

/// How long a client waits for a whole answer.
const PATIENCE: Duration = Duration::from_secs(6);

/// What clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Ids of whole answers.
    pub(crate) answered: Vec<String>,
    /// Refused for want of credits.
    pub(crate) exhausted: usize,
    /// Refused or failed otherwise, by status.
    pub(crate) failed: std::collections::BTreeMap<u16, usize>,
    /// Connections that broke, and answers that did not end.
    pub(crate) broken: usize,
    /// Clients that left.
    pub(crate) left: usize,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.answered.extend(other.answered);
        self.exhausted += other.exhausted;
        other.failed.into_iter().for_each(|(status, times)| *self.failed.entry(status).or_default() += times);
        self.broken += other.broken;
        self.left += other.left;
    }
}

/// A question that holds at most [`MOST_HELD`](crate::upstream::MOST_HELD), and whose answer costs no more.
pub(crate) fn question(stream: bool) -> Value {
    asking("How is gold made of lead?", stream)
}

fn asking(what: &str, stream: bool) -> Value {
    json!({
        "model": "m", "max_tokens": ALLOWED, "stream": stream,
        "messages": [{"role": "user", "content": what}],
    })
}

#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    workers: JoinSet<Seen>,
}

impl Load {
    /// Clients at every gateway, each of whom asks on one of `people`'s credits at a time.
    pub(crate) fn start(gateways: &[String], people: &[Client], dice: &Dice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        for url in gateways.iter().flat_map(|url| std::iter::repeat_n(url, WORKERS)) {
            let people: Vec<_> = people.iter().map(|person| person.at(url)).collect();
            workers.spawn(work(people, dice.fork(), Arc::clone(&stop)));
        }
        Self { stop, workers }
    }

    /// No client begins another request; gives what they saw when the last is over.
    pub(crate) async fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        while let Some(one) = self.workers.join_next().await {
            seen.add(one.unwrap());
        }
        seen
    }
}

async fn work(people: Vec<Client>, dice: Dice, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let person = &people[dice.below(people.len() as u64) as usize];
        let stream = dice.below(2) == 0;
        let asked = if dice.below(10) == 0 { asking(AT_LENGTH, stream) } else { question(stream) };
        match dice.below(10) {
            0..7 => whole(person, &asked, stream, &mut seen).await,
            _ => leave(person, &asked, dice.millis(0..if stream { 150 } else { 70 }), &mut seen).await,
        }
        tokio::time::sleep(dice.millis(1..30)).await;
    }
    seen
}

async fn whole(person: &Client, asked: &Value, stream: bool, seen: &mut Seen) {
    let request = person.request(Method::POST, "/v1/chat/completions").json(asked).timeout(PATIENCE);
    match person.try_send(request).await {
        Ok(reply) if reply.status.is_success() && complete(&reply, stream) => {
            seen.answered.push(reply.header("x-request-id").to_owned());
        }
        Ok(reply) if reply.status.is_success() => seen.broken += 1,
        Ok(reply) if reply.status == 402 => seen.exhausted += 1,
        Ok(reply) => *seen.failed.entry(reply.status.as_u16()).or_default() += 1,
        Err(_) => seen.broken += 1,
    }
}

fn complete(reply: &Reply, stream: bool) -> bool {
    if stream { reply.text().contains("data: [DONE]") } else { serde_json::from_slice::<Value>(&reply.body).is_ok() }
}

async fn leave(person: &Client, asked: &Value, patience: Duration, seen: &mut Seen) {
    let request = person.request(Method::POST, "/v1/chat/completions").json(asked);
    let _ = tokio::time::timeout(patience, person.try_send(request)).await;
    seen.left += 1;
}
