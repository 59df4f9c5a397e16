//! What each code of a [`Problem`](super::Problem) means and what to do about it, as
//! `docs/problems.md` says it: the one list of codes.

use std::fmt::Write;
use std::sync::LazyLock;

const TEXT: &str = include_str!("../../docs/problems.md");

/// Where the pages are served; a problem's `type` is a path below it.
pub const PATH: &str = "/docs/problems";

/// What is told of a code.
///
/// ```
/// let page = alchemi::problem::pages::find("store_unavailable").expect("every code has a page");
/// assert_eq!(page.statuses().collect::<Vec<_>>(), [503]);
/// assert!(page.remedy.starts_with("Try again"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProblemPage {
    /// The code.
    pub code: &'static str,
    /// What is wrong, in a few words.
    pub title: &'static str,
    statuses: &'static str,
    /// What it means; code stands between backquotes.
    pub meaning: &'static str,
    /// What to do about it, likewise.
    pub remedy: &'static str,
}

static PAGES: LazyLock<Vec<ProblemPage>> = LazyLock::new(|| TEXT.split("\n## ").skip(1).filter_map(read).collect());

/// A heading of code and title, and two paragraphs, the first of which begins with the statuses.
fn read(section: &'static str) -> Option<ProblemPage> {
    let mut paragraphs = section.trim().splitn(3, "\n\n");
    let (code, title) = paragraphs.next()?.strip_prefix('`')?.split_once("`: ")?;
    let (statuses, meaning) = paragraphs.next()?.split_once(". ")?;
    Some(ProblemPage { code, title, statuses, meaning, remedy: paragraphs.next()? })
}

/// Every code's page, by code.
pub fn all() -> &'static [ProblemPage] {
    &PAGES
}

/// The page of a code.
pub fn find(code: &str) -> Option<&'static ProblemPage> {
    all().iter().find(|page| page.code == code)
}

/// All codes, as HTML that needs nothing else.
pub fn index() -> String {
    let mut rows = String::new();
    for ProblemPage { code, title, statuses, .. } in all() {
        let title = text(title);
        // Writing into a String cannot fail.
        let _ = writeln!(rows, "<tr><td><a href=\"{PATH}/{code}\"><code>{code}</code></a><td>{statuses}<td>{title}");
    }
    whole("Problems", &format!("<h1>Problems</h1>\n<table>\n<tr><th>code<th>status<th>what is wrong\n{rows}</table>"))
}

impl ProblemPage {
    /// The HTTP statuses that it comes with.
    pub fn statuses(&self) -> impl Iterator<Item = u16> {
        self.statuses.split(", ").filter_map(|status| status.parse().ok())
    }

    /// The page as HTML that needs nothing else.
    pub fn html(&self) -> String {
        let Self { code, statuses, .. } = self;
        let [title, meaning, remedy] = [self.title, self.meaning, self.remedy].map(text);
        let body = format!(
            "<h1>{title}</h1>\n<p><code>{code}</code>, status {statuses}</p>\n<h2>What it means</h2>\n<p>{meaning}</p>\n\
             <h2>What to do</h2>\n<p>{remedy}</p>\n<p><a href=\"{PATH}\">All problems</a></p>"
        );
        whole(code, &body)
    }
}

fn whole(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title} · alchemi</title>\n\
         <style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }} \
         td, th {{ text-align: left; vertical-align: top; padding-right: 1rem }}</style>\n{body}\n</html>\n"
    )
}

/// A paragraph as HTML: escaped, and with code where backquotes stand.
fn text(paragraph: &str) -> String {
    let mut html = String::new();
    for (n, part) in paragraph.split('`').enumerate() {
        let part = part.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = if n % 2 == 0 { write!(html, "{part}") } else { write!(html, "<code>{part}</code>") };
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_is_a_page_in_order() {
        let headings = TEXT.lines().filter(|line| line.starts_with("## ")).count();
        assert_eq!(all().len(), headings, "a section is `code`: Title, statuses and meaning, remedy");
        for pair in all().windows(2) {
            assert!(pair[0].code < pair[1].code, "{} stands before {}", pair[0].code, pair[1].code);
        }
        for page in all() {
            assert!(page.statuses().count() > 0 && page.statuses().all(|s| (400..600).contains(&s)), "{page:?}");
            assert!(page.code.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{page:?}");
            assert!(!page.remedy.contains("\n\n"), "{page:?}");
            for text in [page.meaning, page.remedy] {
                assert!(text.ends_with('.') && text.matches('`').count() % 2 == 0, "{page:?}");
            }
        }
    }

    #[test]
    fn a_page_is_escaped_html() {
        assert_eq!(text("a < `b & c`, d"), "a &lt; <code>b &amp; c</code>, d");
    }
}
