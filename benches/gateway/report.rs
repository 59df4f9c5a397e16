//! The report: medians over the rounds, and ratios to the bare proxy, as Markdown.

use std::fmt;

use crate::load::Measured;
use crate::{Mode, Target};

/// All measurements of a comparison.
#[derive(Default)]
pub(crate) struct Report(Vec<(Mode, Target, Measured)>);

impl Report {
    pub(crate) fn add(&mut self, mode: Mode, target: Target, measured: Measured) {
        self.0.push((mode, target, measured));
    }

    fn values(&self, mode: Mode, target: Target, value: impl Fn(&Measured) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self
            .0
            .iter()
            .filter(|(m, t, _)| (*m, *t) == (mode, target))
            .map(|(_, _, measured)| value(measured))
            .collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// Each of them once, in the order of the first round.
    fn distinct<T: PartialEq>(&self, key: impl Fn(&(Mode, Target, Measured)) -> T) -> Vec<T> {
        let mut seen = Vec::new();
        for entry in &self.0 {
            let key = key(entry);
            if !seen.contains(&key) {
                seen.push(key);
            }
        }
        seen
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mode in self.distinct(|entry| entry.0) {
            writeln!(
                f,
                "\n| {mode} | CPU µs/request (min–max) | × bare | without books | × bare | requests/s | p50 µs | p90 | p99 | p99.9 | RSS MB |"
            )?;
            writeln!(f, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
            let bare = median(&self.values(mode, Target::Bare, |m| m.cpu_per_request));
            for target in self.distinct(|entry| entry.1) {
                let cpu = self.values(mode, target, |m| m.cpu_per_request);
                let (least, most) = (cpu.first().copied().unwrap_or(f64::NAN), cpu.last().copied().unwrap_or(f64::NAN));
                write!(f, "| {target} | {:.1} ({least:.1}–{most:.1}) | {:.2} ", median(&cpu), median(&cpu) / bare)?;
                let own = median(&self.values(mode, target, |m| m.cpu_per_request - m.books_per_request));
                write!(f, "| {own:.1} | {:.2} ", own / bare)?;
                write!(f, "| {:.0} ", median(&self.values(mode, target, |m| m.per_second)))?;
                for at in 0..4 {
                    let percentile = |m: &Measured| m.percentiles.get(at).copied().unwrap_or_default() as f64;
                    write!(f, "| {:.0} ", median(&self.values(mode, target, percentile)))?;
                }
                writeln!(f, "| {:.1} |", median(&self.values(mode, target, |m| m.rss_mb)))?;
            }
        }
        Ok(())
    }
}

/// Of sorted values; not a number when there are none.
fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
