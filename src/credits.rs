//! Money: integers of nano units (1e-9), checked arithmetic, exact decimals in JSON.
//!
//! [`Usd`] is what the upstream charges, [`Credits`] what an account's budget is
//! counted in, [`Factor`] turns the one into the other. A product is computed in
//! 128 bits and rounded once, half to even, to the nano.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const NANOS: i64 = 1_000_000_000;
/// The largest amount that a caller may send, in whole units.
pub const MAX_UNITS: i64 = 9_000_000_000;

/// Why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a decimal number.
    #[error("must be a decimal number, as a JSON number or a string")]
    NotANumber,
    /// More than nine decimals.
    #[error("must have at most 9 decimals")]
    TooPrecise,
    /// Above 9,000,000,000 or below its negative.
    #[error("must be at most 9000000000")]
    TooLarge,
}

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(i64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest amount that can be held.
            pub const MAX: Self = Self(i64::MAX);

            /// From nano units.
            pub const fn from_nanos(nanos: i64) -> Self {
                Self(nanos)
            }
            /// From whole units; saturates.
            pub const fn from_units(units: i64) -> Self {
                Self(units.saturating_mul(NANOS))
            }
            /// In nano units.
            pub const fn nanos(self) -> i64 {
                self.0
            }
            /// The sum, unless it does not fit.
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }
            /// The difference, unless it does not fit.
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }
            /// The sum, held at the largest amount. For limits, never for books.
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
            /// The difference, held at the smallest amount. For display, never for books.
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
            /// Whether this is below zero.
            pub const fn is_negative(self) -> bool {
                self.0 < 0
            }
            /// Reads a decimal such as `1.545e-05`, rounding half to even to the nano.
            ///
            /// For amounts that others computed; what a caller sends is read with
            /// [`FromStr`], which refuses more than nine decimals.
            ///
            /// # Errors
            /// [`AmountError`] when it is no number or does not fit.
            pub fn rounded(text: &str) -> Result<Self, AmountError> {
                parse(text, true).map(Self)
            }
        }

        impl FromStr for $name {
            type Err = AmountError;
            fn from_str(text: &str) -> Result<Self, AmountError> {
                parse(text, false).map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                show(self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                show(self.0, f)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                exact_number(self, serializer)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                number_or_text(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                amount_schema()
            }
        }
        impl utoipa::ToSchema for $name {}
    };
}

amount! {
    /// An amount of credits, in nano-credits.
    ///
    /// ```
    /// use alchemi::credits::Credits;
    ///
    /// let credits: Credits = "12.5".parse()?;
    /// assert_eq!(credits.nanos(), 12_500_000_000);
    /// assert_eq!(serde_json::to_string(&credits).ok().as_deref(), Some("12.5"));
    /// # Ok::<(), alchemi::credits::AmountError>(())
    /// ```
    Credits
}
amount! {
    /// An amount of US dollars, in nano-dollars.
    Usd
}
amount! {
    /// Credits per dollar, in nano-credits per dollar. Default 1.
    Factor
}

impl Factor {
    /// One credit per dollar.
    pub const ONE: Self = Self(NANOS);

    /// What `cost` is in credits, rounded half to even; `None` when it does not fit.
    pub fn credits(self, cost: Usd) -> Option<Credits> {
        let product = i128::from(cost.0).checked_mul(i128::from(self.0))?;
        i64::try_from(divide_half_even(product, i128::from(NANOS))).ok().map(Credits)
    }
}

impl Credits {
    /// Splits the amount exactly over `n` parts: the remainder goes one nano at
    /// a time to the first parts.
    ///
    /// ```
    /// use alchemi::credits::Credits;
    ///
    /// let parts = Credits::from_nanos(10).split(3);
    /// assert_eq!(parts, [4, 3, 3].map(Credits::from_nanos));
    /// ```
    pub fn split(self, n: usize) -> Vec<Self> {
        let Ok(count) = i64::try_from(n) else { return Vec::new() };
        if count == 0 {
            return Vec::new();
        }
        let (each, rest) = (self.0.div_euclid(count), self.0.rem_euclid(count));
        (0..count).map(|i| Self(each + i64::from(i < rest))).collect()
    }

    /// `self` as a percentage of `whole`, zero of nothing being 0.
    pub fn percent_of(self, whole: Self) -> f64 {
        if whole.0 == 0 { 0.0 } else { self.0 as f64 * 100.0 / whole.0 as f64 }
    }
}

/// The price of one unit (a token, a second, an image) in US dollars, kept as an
/// exact decimal: `mantissa × 10^-scale`.
///
/// LiteLLM's prices go down to 1e-10 dollars a token, which a nano would lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnitPrice {
    mantissa: i64,
    scale: u32,
}

/// Digits behind the point that a sum of prices is computed with.
const SUM_SCALE: u32 = 18;

impl UnitPrice {
    /// The price of `quantity` units, in units of 1e-18 dollars.
    pub(crate) fn times(self, quantity: u64) -> Option<i128> {
        let atto = i128::from(self.mantissa).checked_mul(10_i128.checked_pow(SUM_SCALE.checked_sub(self.scale)?)?)?;
        atto.checked_mul(i128::from(quantity))
    }

    /// Whether the price is nothing.
    pub const fn is_zero(self) -> bool {
        self.mantissa == 0
    }
}

/// A sum of units of 1e-18 dollars as nano-dollars, rounded once, half to even.
pub(crate) fn usd_from_atto(atto: i128) -> Option<Usd> {
    i64::try_from(divide_half_even(atto, 1_000_000_000)).ok().map(Usd)
}

impl FromStr for UnitPrice {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let Decimal { digits, exponent } = decimal(text)?;
        let (mut mantissa, mut exponent) = (digits, exponent);
        while mantissa != 0 && mantissa % 10 == 0 {
            (mantissa, exponent) = (mantissa / 10, exponent + 1);
        }
        if mantissa == 0 {
            return Ok(Self::default());
        }
        while exponent > 0 {
            mantissa = mantissa.checked_mul(10).ok_or(AmountError::TooLarge)?;
            exponent -= 1;
        }
        let scale = exponent.unsigned_abs();
        if scale > SUM_SCALE {
            return Err(AmountError::TooPrecise);
        }
        let mantissa = i64::try_from(mantissa).map_err(|_| AmountError::TooLarge)?;
        Ok(Self { mantissa, scale })
    }
}

impl<'de> Deserialize<'de> for UnitPrice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

struct Decimal {
    digits: i128,
    exponent: i32,
}

/// `[-]digits[.digits][e[±]digits]`, at most 30 significant digits.
fn decimal(text: &str) -> Result<Decimal, AmountError> {
    let bad = AmountError::NotANumber;
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (number, exponent) = match rest.split_once(['e', 'E']) {
        Some((number, exponent)) if exponent.len() <= 5 => (number, exponent.parse::<i32>().map_err(|_| bad)?),
        Some(_) => return Err(bad),
        None => (rest, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let well_formed = !whole.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && !(fraction.is_empty() && number.contains('.'));
    if !well_formed {
        return Err(bad);
    }
    let mut digits: i128 = 0;
    for byte in whole.bytes().chain(fraction.bytes()) {
        let digit = i128::from(byte.wrapping_sub(b'0'));
        digits = digits.checked_mul(10).and_then(|d| d.checked_add(digit)).ok_or(AmountError::TooLarge)?;
        if digit > 9 {
            return Err(bad);
        }
    }
    let places = i32::try_from(fraction.len()).map_err(|_| bad)?;
    Ok(Decimal { digits: if negative { -digits } else { digits }, exponent: exponent - places })
}

fn parse(text: &str, round: bool) -> Result<i64, AmountError> {
    let Decimal { digits, exponent } = decimal(text)?;
    let shift = exponent + 9;
    let nanos = if digits == 0 {
        0
    } else if shift >= 0 {
        10_i128
            .checked_pow(shift.unsigned_abs())
            .and_then(|power| digits.checked_mul(power))
            .ok_or(AmountError::TooLarge)?
    } else {
        let power = 10_i128.checked_pow(shift.unsigned_abs());
        match power {
            Some(power) if round || digits % power == 0 => divide_half_even(digits, power),
            None if round => 0,
            _ => return Err(AmountError::TooPrecise),
        }
    };
    let limit = i128::from(MAX_UNITS) * i128::from(NANOS);
    match i64::try_from(nanos) {
        Ok(fits) if nanos.abs() <= limit => Ok(fits),
        _ => Err(AmountError::TooLarge),
    }
}

fn divide_half_even(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value.div_euclid(by), value.rem_euclid(by));
    let twice = rest.saturating_mul(2);
    let up = twice > by || (twice == by && quotient.rem_euclid(2) == 1);
    quotient + i128::from(up)
}

fn show(nanos: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let unit = NANOS.unsigned_abs();
    let (units, fraction) = (magnitude / unit, magnitude % unit);
    if fraction == 0 {
        return write!(f, "{sign}{units}");
    }
    let digits = format!("{fraction:09}");
    write!(f, "{sign}{units}.{}", digits.trim_end_matches('0'))
}

/// A JSON number with every digit, which no float could carry.
fn exact_number<S: serde::Serializer>(amount: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(amount.to_string()).map_err(serde::ser::Error::custom)?.serialize(serializer)
}

/// The text of a JSON number, or of a string that holds one.
fn number_or_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let text = raw.get();
    if text.starts_with('"') {
        serde_json::from_str(text).map_err(serde::de::Error::custom)
    } else {
        Ok(text.to_owned())
    }
}

fn amount_schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    ObjectBuilder::new()
        .schema_type(Type::Number)
        .description(Some("An exact decimal with at most 9 places. A request may send it as a string too."))
        .examples([serde_json::json!(12.5)])
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_litellm_writes() {
        assert_eq!(Usd::rounded("1.545e-05").map(Usd::nanos), Ok(15_450));
        assert_eq!(Usd::rounded("0.0").map(Usd::nanos), Ok(0));
        assert_eq!(Usd::rounded("2.5e-9").map(Usd::nanos), Ok(2), "half to even");
        assert_eq!(Usd::rounded("3.5e-9").map(Usd::nanos), Ok(4), "half to even");
        assert_eq!(Usd::rounded("1e-400"), Err(AmountError::NotANumber).or(Usd::rounded("0")));
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in ["", "-", ".5", "5.", "1e", "1e999999", "NaN", "Infinity", "0x1", "1 ", "+1", "1_0", "1.2.3"] {
            assert!(text.parse::<Credits>().is_err(), "{text:?}");
        }
        assert_eq!("0.0000000001".parse::<Credits>(), Err(AmountError::TooPrecise));
        assert_eq!("9000000000.000000001".parse::<Credits>(), Err(AmountError::TooLarge));
    }

    proptest::proptest! {
        #[test]
        fn text_and_json_round_trip(nanos in -MAX_UNITS * NANOS..=MAX_UNITS * NANOS) {
            let credits = Credits::from_nanos(nanos);
            proptest::prop_assert_eq!(credits.to_string().parse::<Credits>(), Ok(credits));
            let json = serde_json::to_string(&credits).unwrap();
            proptest::prop_assert_eq!(serde_json::from_str::<Credits>(&json).unwrap(), credits);
            proptest::prop_assert_eq!(serde_json::from_str::<Credits>(&format!("\"{json}\"")).unwrap(), credits);
        }

        #[test]
        fn split_is_exact_and_even(nanos in 0..i64::MAX, n in 1_usize..200) {
            let parts = Credits::from_nanos(nanos).split(n);
            proptest::prop_assert_eq!(parts.iter().map(|p| i128::from(p.nanos())).sum::<i128>(), i128::from(nanos));
            proptest::prop_assert!(parts[0].nanos() - parts[n - 1].nanos() <= 1);
        }
    }
}
