//! Alerts: how near a budget is to its end, and whom that is told.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::accounts::Account;
use super::budgets::Window;
use super::scope::{Scope, ScopeType};
use crate::clock::Timestamp;
use crate::credits::Credits;
use crate::id::Id;
use crate::secret::{Place, Sealed, SecretString};

/// How near a budget is to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertLevel {
    /// Below 90 per cent.
    Warning,
    /// From 90 per cent on.
    Critical,
    /// From 100 per cent on.
    Exceeded,
}

impl AlertLevel {
    /// The level of so many per cent.
    pub fn of(percentage: f64) -> Self {
        match percentage {
            p if p >= 100.0 => Self::Exceeded,
            p if p >= 90.0 => Self::Critical,
            _ => Self::Warning,
        }
    }
}

/// The per cent at which an account is told, unless it says otherwise.
pub const DEFAULT_THRESHOLDS: [u16; 3] = [80, 90, 100];

/// Where an account's alerts are sent.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AlertWebhook {
    /// Its id.
    pub id: Id<AlertWebhook>,
    /// The account.
    pub account_id: Id<Account>,
    /// Where alerts are posted to.
    #[schema(example = "https://hooks.example.com/budgets")]
    pub url: String,
    /// Whether they are. Those of a while without are sent afterwards.
    pub enabled: bool,
    /// At how many per cent of what is allocated, in rising order.
    #[schema(example = json!([80, 90, 100]))]
    pub thresholds: Vec<u16>,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
    /// What deliveries are signed with, sealed.
    #[serde(skip)]
    pub sealed: Sealed,
}

impl AlertWebhook {
    /// The table.
    pub const TABLE: &'static str = "Alchemi_AlertWebhookTable";

    /// Where the secret stands.
    pub fn place(&self) -> Place<'_> {
        Place { account: self.account_id.as_str(), table: Self::TABLE, row: self.id.as_str(), column: "secret_json" }
    }
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertEvent {
    /// A budget has reached a threshold.
    Alert,
    /// Nothing: somebody tries whether it arrives.
    Test,
}

impl AlertEvent {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Alert, Self::Test];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Test => "test",
        }
    }
}

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// It is tried until it succeeds, or has failed too often.
    Pending,
    /// The receiver answered with a 2xx.
    Delivered,
    /// It is not tried any more.
    Failed,
}

impl DeliveryState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Failed];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// One message to an account's webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AlertDelivery {
    /// Its id, the same in every attempt: `webhook-id`.
    pub id: Id<AlertDelivery>,
    /// The account.
    pub account_id: Id<Account>,
    /// What is told.
    pub event: AlertEvent,
    /// Of which kind of scope.
    pub scope_type: Option<ScopeType>,
    /// Of which scope.
    pub scope_id: Option<String>,
    /// The per cent that it has reached.
    pub threshold: Option<i64>,
    /// The first moment of the window that it was reached in.
    pub window_start: Option<Timestamp>,
    /// How far it is.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: i64,
    /// When it is tried next, while it is pending.
    pub next_attempt_at: Timestamp,
    /// What the receiver answered last; null: nothing.
    #[schema(example = 200)]
    pub last_status: Option<i64>,
    /// Why the last attempt failed.
    #[schema(example = "the receiver answered with status 500")]
    pub last_error: Option<String>,
    /// When it arrived.
    pub delivered_at: Option<Timestamp>,
    /// When it was written.
    pub created_at: Timestamp,
    /// The body that is sent.
    #[serde(skip)]
    pub payload: String,
}

impl AlertDelivery {
    /// The table.
    pub const TABLE: &'static str = "Alchemi_AlertDeliveryTable";

    /// A message about nothing, to be sent at once.
    pub fn test(id: Id<Self>, account_id: Id<Account>, payload: String, now: Timestamp) -> Self {
        Self {
            id,
            account_id,
            event: AlertEvent::Test,
            scope_type: None,
            scope_id: None,
            threshold: None,
            window_start: None,
            state: DeliveryState::Pending,
            attempts: 0,
            next_attempt_at: now,
            last_status: None,
            last_error: None,
            delivered_at: None,
            created_at: now,
            payload,
        }
    }
}

/// A body of the kind that webhooks are sent ([Standard Webhooks](https://www.standardwebhooks.com)).
#[derive(Debug, Clone, Serialize)]
pub struct Message<'a, T> {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// When it came to be.
    pub timestamp: Timestamp,
    /// The rest.
    pub data: T,
}

/// A budget that has reached a threshold.
#[derive(Debug, Clone, Serialize)]
pub struct ReachedThreshold<'a> {
    /// The account.
    pub account_id: &'a Id<Account>,
    /// Whose budget: the name, a user's e-mail address, else the id.
    pub entity_name: &'a str,
    /// `ACCOUNT`, `ORG`, `TEAM`, `USER` or `POOL`.
    pub entity_type: String,
    /// The scope.
    pub entity_id: &'a str,
    /// The per cent that it has reached.
    pub threshold: u16,
    /// How near the budget is to its end.
    pub alert_level: AlertLevel,
    /// Used of allocated.
    pub usage_percentage: f64,
    /// Credits of settled requests.
    pub used: Credits,
    /// What the scope has.
    pub allocated_credits: Credits,
    /// What the figures are counted in.
    pub window: Window,
}

/// The thresholds that `used` of `allocated` has reached; none of nothing.
pub fn reached(thresholds: &[u16], used: Credits, allocated: Credits) -> impl Iterator<Item = u16> {
    let reached = move |threshold: &&u16| {
        let (used, allocated) = (i128::from(used.nanos()) * 100, i128::from(allocated.nanos()));
        allocated > 0 && used >= allocated * i128::from(**threshold)
    };
    thresholds.iter().filter(reached).copied()
}

/// Which budget reached which threshold in which window: told once.
pub type Reached = (Scope, Timestamp, u16);

/// What deliveries are signed with: `whsec_` and 24 to 64 bytes in base64.
///
/// ```
/// use alchemi::model::alerts::SigningSecret;
///
/// let secret: SigningSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, r#"{"test": 2432232314}"#);
/// assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// # Ok::<(), alchemi::model::alerts::SigningSecretError>(())
/// ```
#[derive(Debug, Clone)]
pub struct SigningSecret(SecretString);

/// Not a signing secret. The text does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be whsec_ and 24 to 64 random bytes in base64")]
pub struct SigningSecretError;

const PREFIX: &str = "whsec_";

impl SigningSecret {
    fn key(text: &str) -> Result<Zeroizing<Vec<u8>>, SigningSecretError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(SigningSecretError)?;
        let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SigningSecretError)?);
        if (24..=64).contains(&key.len()) { Ok(key) } else { Err(SigningSecretError) }
    }

    /// The text, for sealing.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// `v1,` and the HMAC-SHA256 of id, moment (seconds since 1970) and body, in base64.
    pub fn sign(&self, id: &str, at: i64, body: &str) -> String {
        let key = Self::key(self.0.expose()).unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let tag = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    }
}

impl std::str::FromStr for SigningSecret {
    type Err = SigningSecretError;

    fn from_str(text: &str) -> Result<Self, SigningSecretError> {
        Self::key(text)?;
        Ok(Self(SecretString::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [u16; 0] = [];

    #[test]
    fn a_threshold_is_reached_exactly() {
        let units = Credits::from_units;
        let all = [80, 90, 100, 150];
        let of = |used, allocated| reached(&all, used, allocated).collect::<Vec<_>>();
        assert_eq!(of(Credits::from_nanos(79_999_999_999), units(100)), NONE);
        assert_eq!(of(units(80), units(100)), [80]);
        assert_eq!(of(units(149), units(100)), [80, 90, 100]);
        assert_eq!(of(Credits::MAX, Credits::MAX), [80, 90, 100]);
        assert_eq!(of(units(1), Credits::ZERO), NONE);
        assert_eq!(of(units(-1), units(1)), NONE);
    }

    #[test]
    fn a_secret_is_long_enough_and_never_shown() {
        for text in ["", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_not base64!"] {
            assert_eq!(text.parse::<SigningSecret>().unwrap_err(), SigningSecretError, "{text}");
        }
        let secret: SigningSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "SigningSecret(SecretString(redacted))");
    }
}
