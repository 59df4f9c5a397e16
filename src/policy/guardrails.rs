//! Guardrails: what the texts of a prompt are screened by.
//!
//! Patterns run on an engine without backtracking, under limits of size: the time for a
//! text grows with its length, whatever the pattern. A pattern belongs to a preset; a
//! match of one that allows exempts what it covers from the preset's other patterns, and
//! from no other preset's. Where several have matched, blocking comes before masking,
//! and masking before noting.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

use crate::model::guardrails::{GuardrailPattern, GuardrailPreset, MatchAction};

mod checksum;

use checksum::Check;

/// The longest expression, in bytes.
pub const MAX_PATTERN: usize = 1024;
/// The most patterns of one preset that an account may add.
pub const MAX_PATTERNS: i64 = 200;
/// The most memory of a compiled expression, in bytes.
const MAX_COMPILED: usize = 256 << 10;
/// The most memory of the tables that an engine fills while it runs, in bytes.
const MAX_TABLES: usize = 4 << 20;
/// The most matches of one pattern that are replaced in one text; more are refused.
const MAX_MATCHES: usize = 10_000;
/// The most candidates of one pattern that are looked at in one text; more are refused.
const MAX_CANDIDATES: usize = 100_000;

/// Why an expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Empty or too long.
    #[error("must have 1 to 1024 bytes")]
    Length,
    /// No expression.
    #[error("is not a regular expression at character {at}: {reason}")]
    Syntax {
        /// Where, from 1.
        at: usize,
        /// What is wrong there.
        reason: String,
    },
    /// An expression that takes too much memory.
    #[error("is too large once compiled: use fewer or smaller repetitions, or ASCII classes such as (?-u:\\w)")]
    TooLarge,
    /// An expression that finds nothing at every place.
    #[error("must not match the empty text")]
    MatchesNothing,
}

/// Checks an expression before it is kept.
///
/// # Errors
/// [`PatternError`], whose text says where and what.
///
/// ```
/// use alchemi::policy::guardrails::check_pattern;
///
/// assert!(check_pattern(r"\bC-[0-9]{8}\b").is_ok());
/// let error = check_pattern("C-([0-9]").unwrap_err();
/// assert_eq!(error.to_string(), "is not a regular expression at character 3: unclosed group");
/// ```
pub fn check_pattern(text: &str) -> Result<(), PatternError> {
    if !(1..=MAX_PATTERN).contains(&text.len()) {
        return Err(PatternError::Length);
    }
    let syntax = |offset: usize, reason: &dyn fmt::Display| {
        let at = text.get(..offset).map_or(0, |before| before.chars().count()) + 1;
        PatternError::Syntax { at, reason: reason.to_string() }
    };
    let tree = regex_syntax::Parser::new().parse(text).map_err(|error| match &error {
        regex_syntax::Error::Parse(error) => syntax(error.span().start.offset, error.kind()),
        regex_syntax::Error::Translate(error) => syntax(error.span().start.offset, error.kind()),
        _ => syntax(0, &"it cannot be read"),
    })?;
    if tree.properties().minimum_len() == Some(0) {
        return Err(PatternError::MatchesNothing);
    }
    compile(text).map(drop).map_err(|_| PatternError::TooLarge)
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_TABLES).build()
}

/// What a preset is compiled from: its patterns, as far as they are in use. Presets of
/// several accounts that say the same are compiled once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PresetSource {
    code: String,
    patterns: Vec<PatternSource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PatternSource {
    name: String,
    regex: String,
    does: MatchAction,
    is_system: bool,
}

impl PresetSource {
    /// The source of `preset`; `patterns` may be those of others too.
    pub fn new(preset: &GuardrailPreset, patterns: &[GuardrailPattern]) -> Self {
        let mut own: Vec<_> = patterns
            .iter()
            .filter(|p| p.preset_id == preset.id && p.enabled)
            .map(|p| PatternSource {
                name: p.pattern_name.clone(),
                regex: p.pattern_regex.clone(),
                does: p.does(),
                is_system: p.is_system,
            })
            .collect();
        own.sort_unstable_by(|a, b| (!a.is_system, &a.name).cmp(&(!b.is_system, &b.name)));
        Self { code: preset.code.clone(), patterns: own }
    }

    /// Whether it has no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Compiles it: some milliseconds of work.
    pub fn compile(&self) -> CompiledPreset {
        let (mut patterns, mut unusable) = (Vec::new(), None);
        for source in &self.patterns {
            match compile(&source.regex) {
                Ok(regex) => patterns.push(Pattern {
                    name: source.name.clone(),
                    does: source.does,
                    check: source.is_system.then(|| Check::of(&source.name)).flatten(),
                    regex,
                }),
                // Limits can have become tighter since it was kept. What was to be kept
                // from the upstream still is.
                Err(_) if matches!(source.does, MatchAction::Block | MatchAction::Mask) => {
                    unusable.get_or_insert_with(|| source.name.clone());
                }
                Err(_) => {}
            }
        }
        let texts = patterns.iter().map(|p| p.regex.as_str());
        let set = RegexSetBuilder::new(texts)
            .size_limit(MAX_COMPILED.saturating_mul(patterns.len().max(1)))
            .dfa_size_limit(MAX_TABLES * 2)
            .build()
            .ok();
        CompiledPreset { code: self.code.clone(), patterns, set, unusable }
    }
}

/// A preset, ready to run.
#[derive(Debug)]
pub struct CompiledPreset {
    code: String,
    patterns: Vec<Pattern>,
    /// Tells in one pass which patterns have a match at all.
    set: Option<RegexSet>,
    /// A pattern that protects and cannot be compiled any more.
    unusable: Option<String>,
}

#[derive(Debug)]
struct Pattern {
    name: String,
    regex: Regex,
    does: MatchAction,
    check: Option<Check>,
}

impl Pattern {
    fn matches<'t>(&'t self, text: &'t str) -> Matches<'t> {
        Matches { pattern: self, text, from: 0, tries: 0, gave_up: false }
    }
}

/// The matches of a pattern in their order, not overlapping, that pass its check.
struct Matches<'t> {
    pattern: &'t Pattern,
    text: &'t str,
    from: usize,
    tries: usize,
    /// There are more candidates than are looked at: the rest of the text is unread.
    gave_up: bool,
}

impl Iterator for Matches<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        while !self.gave_up {
            let found = self.pattern.regex.find_at(self.text, self.from)?;
            if self.tries == MAX_CANDIDATES {
                self.gave_up = true;
                break;
            }
            self.tries += 1;
            let length = match self.pattern.check {
                None => Some(found.len()),
                Some(check) => check.length(found.as_str()),
            };
            if let Some(length) = length.filter(|length| *length > 0) {
                self.from = found.start() + length;
                return Some(found.start()..self.from);
            }
            // Another candidate may start inside of this one.
            self.from = found.start() + found.as_str().chars().next().map_or(1, char::len_utf8);
        }
        None
    }
}

/// Ranges that exempt what one of them covers as a whole.
struct Exempt(Vec<Range<usize>>);

impl Exempt {
    /// Without those that another one covers, so that starts and ends both ascend.
    fn new(mut ranges: Vec<Range<usize>>) -> Self {
        ranges.sort_unstable_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
        let mut reached = 0;
        ranges.retain(|range| {
            let reaches = range.end > reached;
            reached = reached.max(range.end);
            reaches
        });
        Self(ranges)
    }

    fn covers(&self, at: &Range<usize>) -> bool {
        // Of those that start in time, the last one reaches farthest.
        let started = self.0.partition_point(|range| range.start <= at.start);
        self.0.get(..started).and_then(<[_]>::last).is_some_and(|range| at.end <= range.end)
    }
}

/// A text that the model reads as one, in parts as they stand in the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passage<'t> {
    /// The parts; what they say is read one after the other.
    pub parts: Vec<Cow<'t, str>>,
}

/// A replacement in a part of a passage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Which passage.
    pub passage: usize,
    /// Which of its parts.
    pub part: usize,
    /// Which bytes of the part.
    pub at: Range<usize>,
    /// What takes their place.
    pub text: String,
}

/// What screening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing.
    Clean,
    /// Something that is only noted.
    Detected {
        /// The preset's code.
        code: String,
    },
    /// Something that is to be replaced.
    Masked {
        /// The code of the first preset that masks.
        code: String,
        /// The replacements by their place, not overlapping.
        masks: Vec<Mask>,
    },
    /// Something that is refused.
    Blocked {
        /// The preset's code.
        code: String,
        /// The pattern's name.
        pattern: String,
    },
}

/// The presets that hold for a subject.
#[derive(Debug, Clone, Default)]
pub struct Guardrails {
    presets: Vec<Arc<CompiledPreset>>,
}

impl Guardrails {
    /// These presets, in the order in which they are asked.
    pub fn new(presets: Vec<Arc<CompiledPreset>>) -> Self {
        Self { presets }
    }

    /// Whether there is nothing to screen by.
    pub fn is_empty(&self) -> bool {
        self.presets.is_empty()
    }

    /// Screens the passages of a request.
    ///
    /// # Examples
    /// ```
    /// use alchemi::policy::guardrails::{Finding, Guardrails};
    ///
    /// assert_eq!(Guardrails::default().screen(&[]), Finding::Clean);
    /// ```
    pub fn screen(&self, passages: &[Passage<'_>]) -> Finding {
        let (mut masks, mut masked, mut detected) = (Vec::new(), None, None);
        for preset in &self.presets {
            if let Some(pattern) = &preset.unusable {
                return Finding::Blocked { code: preset.code.clone(), pattern: pattern.clone() };
            }
            for (number, passage) in passages.iter().enumerate() {
                let mut seen = Seen::default();
                if let Err(pattern) = preset.read(number, passage, &mut seen) {
                    return Finding::Blocked { code: preset.code.clone(), pattern };
                }
                if seen.detected {
                    detected.get_or_insert_with(|| preset.code.clone());
                }
                if !seen.masks.is_empty() {
                    masked.get_or_insert_with(|| preset.code.clone());
                    masks.append(&mut seen.masks);
                }
            }
        }
        found(masked, masks, detected)
    }

    /// Screens a text of which only the matches that `counts` names are still undecided.
    pub fn screen_text(&self, text: &str, counts: impl Fn(&Range<usize>) -> bool) -> Finding {
        let (mut masks, mut masked, mut detected) = (Vec::new(), None, None);
        for preset in &self.presets {
            let mut seen = Seen::default();
            let mut mask = |at: Range<usize>, text: String, masks: &mut Vec<Mask>| {
                masks.push(Mask { passage: 0, part: 0, at, text });
            };
            let refused = match &preset.unusable {
                Some(pattern) => Err(pattern.clone()),
                None => preset.read_text(text, &counts, &mut mask, &mut seen),
            };
            if let Err(pattern) = refused {
                return Finding::Blocked { code: preset.code.clone(), pattern };
            }
            if seen.detected {
                detected.get_or_insert_with(|| preset.code.clone());
            }
            if !seen.masks.is_empty() {
                masked.get_or_insert_with(|| preset.code.clone());
                masks.append(&mut seen.masks);
            }
        }
        found(masked, masks, detected)
    }
}

fn found(masked: Option<String>, masks: Vec<Mask>, detected: Option<String>) -> Finding {
    match (masked, detected) {
        (Some(code), _) => Finding::Masked { code, masks: merged(masks) },
        (None, Some(code)) => Finding::Detected { code },
        (None, None) => Finding::Clean,
    }
}

#[derive(Default)]
struct Seen {
    detected: bool,
    masks: Vec<Mask>,
}

impl CompiledPreset {
    /// Reads a passage, part by part and over the seams of its parts; the name of a
    /// pattern that refuses it.
    fn read(&self, number: usize, passage: &Passage<'_>, seen: &mut Seen) -> Result<(), String> {
        for (part, text) in passage.parts.iter().enumerate() {
            let mut mask = |at: Range<usize>, text: String, masks: &mut Vec<Mask>| {
                masks.push(Mask { passage: number, part, at, text });
            };
            self.read_text(text, |_| true, &mut mask, seen)?;
        }
        if passage.parts.len() < 2 {
            return Ok(());
        }
        let mut starts = Vec::with_capacity(passage.parts.len());
        let mut whole = String::new();
        for part in &passage.parts {
            starts.push(whole.len());
            whole.push_str(part);
        }
        let later = |at: usize| starts.partition_point(|start| *start <= at);
        let seams = |at: &Range<usize>| starts.get(later(at.start)).is_some_and(|start| *start < at.end);
        let mut mask = |at: Range<usize>, text: String, masks: &mut Vec<Mask>| {
            let mut text = text;
            let touched = starts.iter().zip(&passage.parts).enumerate().skip(later(at.start).saturating_sub(1));
            for (part, (start, own)) in touched.take_while(|(_, (start, _))| **start < at.end) {
                let (from, to) = (at.start.max(*start), at.end.min(start + own.len()));
                if from < to {
                    // The name stands where the match begins; the rest of it goes.
                    let text = std::mem::take(&mut text);
                    masks.push(Mask { passage: number, part, at: from - start..to - start, text });
                }
            }
        };
        self.read_text(&whole, seams, &mut mask, seen)
    }

    fn read_text(
        &self,
        text: &str,
        counts: impl Fn(&Range<usize>) -> bool,
        mask: &mut impl FnMut(Range<usize>, String, &mut Vec<Mask>),
        seen: &mut Seen,
    ) -> Result<(), String> {
        let hits: Vec<&Pattern> = match &self.set {
            Some(set) => {
                let matched = set.matches(text);
                if !matched.matched_any() {
                    return Ok(());
                }
                matched.iter().filter_map(|index| self.patterns.get(index)).collect()
            }
            None => self.patterns.iter().collect(),
        };
        let allowing = hits.iter().filter(|p| p.does == MatchAction::Allow);
        let exempt = Exempt::new(allowing.flat_map(|p| p.matches(text).take(MAX_MATCHES)).collect());
        let held = |at: &Range<usize>| counts(at) && !exempt.covers(at);
        for pattern in hits {
            let mut found = pattern.matches(text);
            match pattern.does {
                MatchAction::Allow => {}
                MatchAction::Block => {
                    if found.any(|at| held(&at)) || found.gave_up {
                        return Err(pattern.name.clone());
                    }
                }
                MatchAction::Detect => seen.detected = seen.detected || found.any(|at| held(&at)),
                MatchAction::Mask => {
                    for at in found.by_ref().filter(&held).take(MAX_MATCHES) {
                        mask(at, format!("[{}]", pattern.name), &mut seen.masks);
                    }
                    if found.any(|at| held(&at)) || found.gave_up {
                        return Err(pattern.name.clone());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The masks by their place; those that overlap become one, under the name of the first.
fn merged(mut masks: Vec<Mask>) -> Vec<Mask> {
    masks.sort_by_key(|m| (m.passage, m.part, m.at.start, std::cmp::Reverse(m.at.end)));
    let mut out: Vec<Mask> = Vec::with_capacity(masks.len());
    for mask in masks {
        match out.last_mut() {
            Some(last) if (last.passage, last.part) == (mask.passage, mask.part) && mask.at.start < last.at.end => {
                last.at.end = last.at.end.max(mask.at.end);
                if last.text.is_empty() {
                    last.text = mask.text;
                }
            }
            _ => out.push(mask),
        }
    }
    out
}

#[cfg(test)]
impl Guardrails {
    /// One preset, `own`, of patterns by their name.
    pub(crate) fn of(patterns: &[(&str, &str, MatchAction)]) -> Self {
        let source = |(name, regex, does): &(&str, &str, MatchAction)| PatternSource {
            name: (*name).to_owned(),
            regex: (*regex).to_owned(),
            does: *does,
            is_system: false,
        };
        let source = PresetSource { code: "own".to_owned(), patterns: patterns.iter().map(source).collect() };
        Self::new(vec![Arc::new(source.compile())])
    }
}

#[cfg(test)]
mod tests;
