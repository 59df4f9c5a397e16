//! How the upstream misbehaves when asked to.

use std::str::FromStr;
use std::time::Duration;

use http::StatusCode;

/// How to answer. The default is a prompt, complete answer.
///
/// A request can bring its own behind its model's name, each part after a `+`:
/// `delay=<ms>`, `gap=<ms>`, `cut=<frames>`, `endless`, `no-usage`, `no-cost`,
/// `status=<code>`, `retry-after=<seconds>`. It then replaces the upstream's.
///
/// ```
/// use alchemi::dev::Behaviour;
/// use std::time::Duration;
///
/// let slow: Behaviour = "delay=250+cut=3".parse()?;
/// assert_eq!(slow, Behaviour { delay: Duration::from_millis(250), cut_after: Some(3), ..Behaviour::default() });
/// # Ok::<(), alchemi::dev::upstream::NotABehaviour>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Rest before the head of the answer.
    pub delay: Duration,
    /// Rest before each frame of a stream.
    pub gap: Duration,
    /// Breaks the connection after so many frames of a stream.
    pub cut_after: Option<usize>,
    /// Repeats the text of a stream for ever.
    pub endless: bool,
    /// Leaves usage (and with it cost) out.
    pub no_usage: bool,
    /// Leaves cost out of headers and bodies, usage in.
    pub no_cost: bool,
    /// Fails instead of answering.
    pub fail: Option<Failure>,
}

/// An error answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Its status, such as 429 or 500.
    pub status: StatusCode,
    /// Its `retry-after`, in seconds.
    pub retry_after: Option<u32>,
}

/// The text is not a [`Behaviour`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected parts such as `delay=250`, `cut=3` or `status=429`, joined by `+`")]
pub struct NotABehaviour;

impl FromStr for Behaviour {
    type Err = NotABehaviour;

    fn from_str(text: &str) -> Result<Self, NotABehaviour> {
        let mut behaviour = Self::default();
        let (mut status, mut retry_after) = (None, None);
        for part in text.split('+') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match (name, value) {
                ("endless", "") => behaviour.endless = true,
                ("no-usage", "") => behaviour.no_usage = true,
                ("no-cost", "") => behaviour.no_cost = true,
                ("delay", ms) => behaviour.delay = Duration::from_millis(number(ms)?),
                ("gap", ms) => behaviour.gap = Duration::from_millis(number(ms)?),
                ("cut", frames) => behaviour.cut_after = Some(number(frames)?),
                ("status", code) => status = Some(StatusCode::from_u16(number(code)?).map_err(|_| NotABehaviour)?),
                ("retry-after", secs) => retry_after = Some(number(secs)?),
                _ => return Err(NotABehaviour),
            }
        }
        behaviour.fail = match (status, retry_after) {
            (Some(status), retry_after) => Some(Failure { status, retry_after }),
            (None, None) => None,
            (None, Some(_)) => return Err(NotABehaviour),
        };
        Ok(behaviour)
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, NotABehaviour> {
    text.parse().map_err(|_| NotABehaviour)
}
