//! The figures, by fault.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::books::Tally;
use crate::faults::Fault;

/// A stretch of a run in which the same faults were on.
#[derive(Debug, Default)]
pub(crate) struct Episode {
    pub(crate) faults: Vec<Fault>,
    /// From the end of the faults until each gateway answered.
    pub(crate) recovery: Duration,
    pub(crate) tally: Tally,
}

impl Episode {
    pub(crate) fn title(&self) -> String {
        match &*self.faults {
            [] => "no fault".to_owned(),
            [fault] => fault.to_string(),
            _ => "two at once".to_owned(),
        }
    }
}

/// Sums over all runs, as a table in Markdown.
#[derive(Debug, Default)]
pub(crate) struct Table(BTreeMap<String, (Vec<Duration>, Tally)>);

impl Table {
    pub(crate) fn add(&mut self, episodes: &[Episode]) {
        for episode in episodes {
            let (recoveries, sum) = self.0.entry(episode.title()).or_default();
            recoveries.push(episode.recovery);
            let Tally { asked, exact, marked, lost, double } = episode.tally;
            sum.asked += asked;
            sum.exact += exact;
            sum.marked += marked;
            sum.lost += lost;
            sum.double += double;
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | times | upstream calls | charged exactly | charged and marked | lost | sent twice | recovery, median | longest |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for (title, (recoveries, tally)) in &self.0 {
            let mut recoveries = recoveries.clone();
            recoveries.sort();
            let [median, longest] = [recoveries.len() / 2, recoveries.len() - 1].map(|at| recoveries[at].as_secs_f64());
            let Tally { asked, exact, marked, lost, double } = tally;
            writeln!(
                f,
                "| {title} | {} | {asked} | {exact} | {marked} | {lost} | {double} | {median:.2} s | {longest:.2} s |",
                recoveries.len()
            )?;
        }
        Ok(())
    }
}
