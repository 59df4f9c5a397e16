//! The marketplace: agents and connections of an account, listed for its users.

use serde::{Deserialize, Serialize};

use super::accounts::Account;
use super::scope::{Scope, ScopeType};
use crate::clock::Timestamp;
use crate::id::Id;
use crate::problem::Problem;

/// Kinds of scopes that a listing may be granted to.
pub const GRANTED_TO: &[ScopeType] = &[ScopeType::Org, ScopeType::Team, ScopeType::User];

/// What a listing is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntityType {
    /// An agent of the account.
    Agent,
    /// A connection of the account.
    Connection,
}

impl EntityType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Agent, Self::Connection];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Connection => "connection",
        }
    }

    /// Reads a kind, whatever its case.
    ///
    /// # Errors
    /// 400 that lists what is allowed.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim().to_lowercase();
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| Problem::bad_request("invalid_entity_type", "entity_type must be one of: agent,connection"))
    }
}

/// Who may see a listing that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Everybody of the account.
    Global,
    /// Whoever stands in a scope that it is granted to.
    Granted,
}

impl Visibility {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Global, Self::Granted];

    /// The name in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Granted => "granted",
        }
    }
}

/// Stars, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Stars(i64);

impl Stars {
    const MILLION: i64 = 1_000_000;
    /// The most that there can be.
    pub const MAX: Self = Self(5 * Self::MILLION);

    /// As stored.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// From what is stored.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The average of ratings that add up to `total`; none of no rating.
    pub fn average(total: Self, count: i64) -> Option<Self> {
        Some(Self(total.0.checked_div(count)?.clamp(0, Self::MAX.0)))
    }

    /// What `count` ratings of this average add up to.
    #[must_use]
    pub fn times(self, count: i64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

impl From<Rating> for Stars {
    fn from(rating: Rating) -> Self {
        Self(i64::from(rating.0) * Self::MILLION)
    }
}

impl TryFrom<f64> for Stars {
    type Error = &'static str;

    #[expect(clippy::cast_possible_truncation, reason = "0 to 5 million fits")]
    fn try_from(stars: f64) -> Result<Self, Self::Error> {
        if (0.0..=5.0).contains(&stars) { Ok(Self((stars * 1e6).round() as i64)) } else { Err("must be 0 to 5") }
    }
}

impl Serialize for Stars {
    #[expect(clippy::cast_precision_loss, reason = "at most 5 million, and shown, not reckoned with")]
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 % Self::MILLION == 0 {
            return serializer.serialize_i64(self.0 / Self::MILLION);
        }
        serializer.serialize_f64(self.0 as f64 / 1e6)
    }
}

/// One user's rating: 1 to 5 stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Rating(u8);

impl Rating {
    /// As stored.
    pub fn as_i64(self) -> i64 {
        i64::from(self.0)
    }

    /// From what is stored.
    pub fn from_i64(stars: i64) -> Option<Self> {
        u8::try_from(stars).ok().filter(|stars| (1..=5).contains(stars)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Rating {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stars = i64::deserialize(deserializer)?;
        Self::from_i64(stars).ok_or_else(|| serde::de::Error::custom("must be a whole number from 1 to 5"))
    }
}

/// An agent or a connection, shown to users.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Listing {
    /// Its id.
    pub id: Id<Listing>,
    /// The account.
    pub account_id: Id<Account>,
    /// What it is about.
    pub entity_type: EntityType,
    /// Which one.
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    pub entity_id: String,
    /// What it is called here.
    #[schema(example = "Contract reader")]
    pub title: String,
    /// What it is for.
    pub description: Option<String>,
    /// Who may see it, once it is published.
    #[serde(skip)]
    pub visibility: Visibility,
    /// Whether users see it.
    pub is_published: bool,
    /// Whether it is put forward.
    pub is_featured: bool,
    /// Whether an admin vouches for it.
    pub is_verified: bool,
    /// How it is paid for, in the account's own words.
    #[schema(example = "free")]
    pub pricing_model: String,
    /// The version of what is listed.
    #[schema(example = "1.0.0")]
    pub version: String,
    /// Who made it.
    pub author: Option<String>,
    /// How many scopes have it installed.
    pub installation_count: i64,
    /// The average of its ratings, 0 to 5; 0 while there is none.
    #[schema(value_type = f64, example = 4.5)]
    pub rating_avg: Stars,
    /// How many ratings it has.
    pub rating_count: i64,
    /// Who listed it.
    pub created_by: Option<String>,
    /// When it was listed.
    pub created_at: Timestamp,
    /// When an admin last changed it.
    pub updated_at: Timestamp,
    /// What the ratings add up to.
    #[serde(skip)]
    pub rating_total: Stars,
    /// Counts the changes of admins; the `ETag`. Installations and ratings of users are none.
    #[serde(skip)]
    pub revision: i64,
}

impl Listing {
    /// Counts a rating that was changed from one to another, or newly made or taken back.
    ///
    /// An admin may have set the counters to anything: they stay within their bounds.
    pub fn rate(&mut self, before: Option<Rating>, after: Option<Rating>) {
        let stars = |rating: Option<Rating>| rating.map(Stars::from).unwrap_or_default().micros();
        let more = i64::from(after.is_some()) - i64::from(before.is_some());
        self.rating_count = self.rating_count.saturating_add(more).max(0);
        let most = Stars::MAX.times(self.rating_count).micros();
        let total = self.rating_total.micros().saturating_add(stars(after)).saturating_sub(stars(before));
        self.rating_total = Stars::from_micros(total.clamp(0, most));
        self.rating_avg = Stars::average(self.rating_total, self.rating_count).unwrap_or_default();
    }
}

/// Shows a listing to a scope.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct ListingGrant {
    /// Its id.
    pub id: Id<ListingGrant>,
    /// The account.
    pub account_id: Id<Account>,
    /// The listing.
    pub marketplace_id: Id<Listing>,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Who made it.
    pub created_by: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last made again.
    pub updated_at: Timestamp,
}

/// A listing installed in a scope.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Installation {
    /// Its id.
    pub id: Id<Installation>,
    /// The account.
    pub account_id: Id<Account>,
    /// The listing.
    pub marketplace_id: Id<Listing>,
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// Who installed it.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
}

/// Why somebody sees a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Sight {
    /// Whether everybody does, or only those it is granted to.
    pub mode: Visibility,
    /// `global`, or the nearest scope of theirs that it is granted to, as `team:<id>`.
    #[schema(example = "global")]
    pub matched_scope: String,
}

impl Sight {
    /// Why whoever stands in `chain`, the most specific scope first, sees a published
    /// listing that is granted to `grants`; none: they do not.
    pub fn of(visibility: Visibility, grants: &[Scope], chain: &[Scope]) -> Option<Self> {
        match visibility {
            Visibility::Global => Some(Self { mode: Visibility::Global, matched_scope: "global".to_owned() }),
            Visibility::Granted => {
                let nearest = chain.iter().find(|scope| grants.contains(scope))?;
                let matched_scope = format!("{}:{}", nearest.scope_type, nearest.scope_id);
                Some(Self { mode: Visibility::Granted, matched_scope })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listing(count: i64, total: i64) -> Listing {
        Listing {
            id: Id::stored("listing"),
            account_id: Id::stored("acc"),
            entity_type: EntityType::Agent,
            entity_id: "agent".to_owned(),
            title: "A".to_owned(),
            description: None,
            visibility: Visibility::Global,
            is_published: true,
            is_featured: false,
            is_verified: false,
            pricing_model: "free".to_owned(),
            version: "1.0.0".to_owned(),
            author: None,
            installation_count: 0,
            rating_avg: Stars::default(),
            rating_count: count,
            created_by: None,
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
            rating_total: Stars::from_micros(total),
            revision: 1,
        }
    }

    proptest! {
        /// Whatever users do, the average is that of the ratings that there are.
        #[test]
        fn the_average_is_exact(done in proptest::collection::vec((0_usize..4, proptest::option::of(1_i64..=5)), 0..40)) {
            let (mut listing, mut ratings) = (listing(0, 0), [None::<i64>; 4]);
            for (user, stars) in done {
                listing.rate(ratings[user].and_then(Rating::from_i64), stars.and_then(Rating::from_i64));
                ratings[user] = stars;
            }
            let all: Vec<i64> = ratings.into_iter().flatten().collect();
            let count = i64::try_from(all.len()).unwrap();
            prop_assert_eq!(listing.rating_count, count);
            let average = (all.iter().sum::<i64>() * 1_000_000).checked_div(count).unwrap_or(0);
            prop_assert_eq!(listing.rating_avg.micros(), average);
        }

        /// Whatever an admin has set, the counters stay within their bounds.
        #[test]
        fn counters_stay_within_their_bounds(
            count in 0_i64..10, stars in 0_i64..=5_000_000, before in 0_i64..=5, after in 0_i64..=5,
        ) {
            let mut listing = listing(count, stars * count);
            listing.rate(Rating::from_i64(before), Rating::from_i64(after));
            prop_assert!(listing.rating_count >= 0 && listing.rating_total.micros() >= 0);
            prop_assert!((0..=5_000_000).contains(&listing.rating_avg.micros()));
        }
    }
}
