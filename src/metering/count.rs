//! Tokens counted from text, for the estimate before a request and for a stream
//! that ends without saying what it used.

use std::fmt;
use std::num::NonZeroU32;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::policy::AskSize;

/// How bytes become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CountRules {
    /// Bytes of UTF-8 text that make one token; a rest counts as a whole one.
    pub bytes_per_token: NonZeroU32,
    /// Tokens that every message costs beyond its text.
    pub tokens_per_message: u32,
    /// Tokens of one image, audio clip or file, whatever its size.
    pub tokens_per_image: u32,
    /// Bytes of an audio file that are one second, where seconds are what costs: of speech at
    /// 16 kbit/s unless said, so that few files are longer than they are estimated.
    pub audio_bytes_per_second: NonZeroU32,
}

impl Default for CountRules {
    fn default() -> Self {
        Self {
            bytes_per_token: NonZeroU32::MIN.saturating_add(3),
            tokens_per_message: 4,
            tokens_per_image: 1000,
            audio_bytes_per_second: NonZeroU32::MIN.saturating_add(1_999),
        }
    }
}

impl CountRules {
    /// Tokens of so many bytes of text.
    ///
    /// ```
    /// use alchemi::metering::count::CountRules;
    ///
    /// assert_eq!(CountRules::default().tokens(9), 3);
    /// ```
    pub fn tokens(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.bytes_per_token.get()))
    }

    /// Seconds of so many bytes of audio.
    pub fn seconds(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.audio_bytes_per_second.get()))
    }

    /// Tokens that so much text cannot be more than: no tokenizer makes less than a byte
    /// of one.
    pub fn most(&self, size: &TextSize) -> u64 {
        // An answer is primed as if by one more message.
        let size = TextSize { messages: size.messages.saturating_add(1), ..*size };
        Self { bytes_per_token: NonZeroU32::MIN, ..*self }.input(&size)
    }

    /// Tokens of a whole prompt.
    pub fn input(&self, size: &TextSize) -> u64 {
        self.tokens(size.bytes)
            .saturating_add(size.tokens)
            .saturating_add(size.media.saturating_mul(u64::from(self.tokens_per_image)))
            .saturating_add(size.messages.saturating_mul(u64::from(self.tokens_per_message)))
    }
}

/// What a JSON value holds of things that a model reads or writes.
///
/// Strings count by their bytes, except the names that steer a message
/// (`role`, `type`, ids); what stands under `image_url`, `input_audio`,
/// `file_data` or a non-text `source` counts as one medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TextSize {
    /// Bytes of text, unescaped.
    pub bytes: u64,
    /// Tokens that were sent as numbers.
    pub tokens: u64,
    /// Images, audio clips and files.
    pub media: u64,
    /// Objects in the outermost array.
    pub messages: u64,
}

impl<'de> Deserialize<'de> for TextSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut size = Self::default();
        Measure::of(&mut size).deserialize(deserializer)?;
        Ok(size)
    }
}

/// Adds a JSON value to a [`TextSize`] without building it.
pub(crate) struct Measure<'s> {
    size: &'s mut TextSize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    /// Directly in the outermost array: a message or a prompt.
    Item,
    /// In an array further in.
    Element,
    Member,
    /// The `source` of an Anthropic content block: a medium, unless its type says text.
    Source,
}

impl<'s> Measure<'s> {
    pub(crate) fn of(size: &'s mut TextSize) -> Self {
        Self { size, place: Place::Root }
    }

    fn number<E>(self) -> Result<(), E> {
        if matches!(self.place, Place::Item | Place::Element) {
            self.size.tokens = self.size.tokens.saturating_add(1);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Measure<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measure<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.number()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.number()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.number()
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.size.bytes = self.size.bytes.saturating_add(text.len() as u64);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let place = if self.place == Place::Root { Place::Item } else { Place::Element };
        while seq.next_element_seed(Measure { size: self.size, place })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.place == Place::Item {
            self.size.messages = self.size.messages.saturating_add(1);
        }
        let before = *self.size;
        let mut medium = false;
        while let Some(member) = map.next_key::<Member>()? {
            match member {
                Member::Text => map.next_value_seed(Measure { size: self.size, place: Place::Member })?,
                Member::Source => map.next_value_seed(Measure { size: self.size, place: Place::Source })?,
                Member::Name => drop(map.next_value::<IgnoredAny>()?),
                Member::Type => {
                    let kind: &RawValue = map.next_value()?;
                    medium = matches!(kind.get(), r#""base64""# | r#""url""# | r#""file""#);
                }
                Member::Medium => {
                    map.next_value::<IgnoredAny>()?;
                    self.size.media = self.size.media.saturating_add(1);
                }
            }
        }
        if medium && self.place == Place::Source {
            *self.size = TextSize { media: before.media.saturating_add(1), ..before };
        }
        Ok(())
    }
}

/// What a member of an object means for its size.
enum Member {
    Text,
    Name,
    Type,
    Medium,
    Source,
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = Member;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E>(self, key: &str) -> Result<Member, E> {
                Ok(match key {
                    "type" => Member::Type,
                    "role" | "id" | "call_id" | "tool_call_id" | "tool_use_id" | "finish_reason" | "logprobs" => {
                        Member::Name
                    }
                    "image_url" | "input_audio" | "file_data" => Member::Medium,
                    "source" => Member::Source,
                    _ => Member::Text,
                })
            }
        }
        deserializer.deserialize_str(Key)
    }
}

/// Output tokens that a request may make at most: what it asks for, else
/// `default`, never above what the model can; times the answers it wants.
pub(crate) fn output_bound(size: &AskSize, default: u64, known_max: Option<u64>) -> u64 {
    size.max_output.unwrap_or(default).min(known_max.unwrap_or(u64::MAX)).saturating_mul(size.answers.max(1))
}
