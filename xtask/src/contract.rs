//! `contract`: which test holds which row of docs/contract.md.
//!
//! ```text
//!  docs/contract.md ──rows──┐
//!                           ├──► a line a row ──► a row that is neither pending nor tested fails the task
//!  crates, tests ──tests────┘
//! ```
//! Owns: how a test names a row (`c13_…`, `m_01_…`, or `C-13` in its doc lines) and the marks of the document.
//! Never: runs a test. Called by `main`.

use crate::error::TaskError;
use crate::rules;
use crate::workspace::Workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The document, below the workspace.
const DOCUMENT: &str = "docs/contract.md";

/// Groups of rows, as they are listed.
const GROUPS: &str = "CMOKD";

/// Macros that make tests of the function in them, and what these need.
const TEST_MACROS: &[(&str, Tier)] = &[("on_both!", Tier::Vm)];

/// Id of a row: its group and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    group: char,
    number: u8,
}

impl Id {
    fn new(group: char, digits: &str) -> Option<Self> {
        let group = group.to_ascii_uppercase();
        if !GROUPS.contains(group) || digits.len() != 2 {
            return None;
        }
        let digit = |c: char| c.is_ascii_digit();
        let number = digits.chars().all(digit).then(|| digits.parse().ok())??;
        Some(Self { group, number })
    }

    /// This row to `last`; nothing between two groups.
    fn up_to(self, last: Self) -> impl Iterator<Item = Self> {
        let end = if self.group == last.group {
            last.number
        } else {
            self.number
        };
        (self.number..=end).map(move |number| Self { number, ..self })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.group, self.number)
    }
}

/// How much of a row is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Built {
    Whole,
    Partly,
    Pending,
}

/// What a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Unit,
    Root,
    Vm,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unit => "unit",
            Self::Root => "root",
            Self::Vm => "vm",
        })
    }
}

/// A test that names rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    rows: BTreeSet<Id>,
    /// `file:line name`.
    place: String,
    tier: Tier,
}

/// Lists every row with its tests.
pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    let path = workspace.root().join(DOCUMENT);
    let text = std::fs::read_to_string(&path).map_err(|e| TaskError::io(&path, e))?;
    let rows = rows(&text)?;
    let mut tests = Vec::new();
    for (name, text) in rules::sources(workspace, &["crates", "tests"])? {
        tests.extend(tests_of(&name, &text));
    }
    let report = Report::of(&rows, &tests);
    print!("{}", report.text);
    for line in &report.broken {
        eprintln!("{line}");
    }
    if report.broken.is_empty() {
        Ok(())
    } else {
        Err(TaskError::Contract(report.broken.len()))
    }
}

struct Report {
    text: String,
    broken: Vec<String>,
}

impl Report {
    fn of(rows: &BTreeMap<Id, Built>, tests: &[Test]) -> Self {
        let mut text = String::new();
        let mut broken = Vec::new();
        let (mut whole, mut partly, mut pending) = (0, 0, 0);
        let mut ids: Vec<_> = rows.iter().collect();
        ids.sort_by_key(|(id, _)| (GROUPS.find(id.group), id.number));
        for (id, built) in ids {
            let mark = match built {
                Built::Whole => "",
                Built::Partly => "partly built",
                Built::Pending => "pending",
            };
            text.push_str(format!("{id}  {mark}").trim_end());
            text.push('\n');
            let mut held = false;
            for test in tests.iter().filter(|test| test.rows.contains(id)) {
                held = true;
                text.push_str(&format!("      {:<4}  {}\n", test.tier, test.place));
            }
            match built {
                Built::Whole => whole += 1,
                Built::Partly => partly += 1,
                Built::Pending => pending += 1,
            }
            if !held && *built != Built::Pending {
                broken.push(format!("{id}: no test names it"));
            }
        }
        for test in tests {
            for id in test.rows.iter().filter(|id| !rows.contains_key(id)) {
                broken.push(format!(
                    "{}: names {id}, which {DOCUMENT} does not have",
                    test.place
                ));
            }
        }
        text.push_str(&format!(
            "\n{} rows: {whole} built, {partly} partly, {pending} pending; {} tests name rows\n",
            rows.len(),
            tests.len()
        ));
        Self { text, broken }
    }
}

/// The rows of the document: lines like `| C-13 | … |`.
fn rows(text: &str) -> Result<BTreeMap<Id, Built>, TaskError> {
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let mut cells = line.split(" | ");
        let Some(id) = cells.next().and_then(|cell| cell.strip_prefix("| ")) else {
            continue;
        };
        let Some(id) = id
            .split_once('-')
            .and_then(|(group, digits)| Id::new(single(group)?, digits))
        else {
            continue;
        };
        let promise = cells.next().unwrap_or_default();
        let built = if promise.starts_with("*pending*") {
            Built::Pending
        } else if promise.contains("*pending here:*") {
            Built::Partly
        } else {
            Built::Whole
        };
        if promise.is_empty() || rows.insert(id, built).is_some() {
            return Err(TaskError::ContractRow(id.to_string()));
        }
    }
    if rows.is_empty() {
        return Err(TaskError::ContractRow("C-01".to_owned()));
    }
    Ok(rows)
}

/// The tests of a file that name rows.
fn tests_of(name: &Path, text: &str) -> Vec<Test> {
    let mut found = Vec::new();
    let mut docs = String::new();
    let mut tier = None;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            docs.push_str(doc);
        } else if line == "#[test]" || line.starts_with("#[tokio::test") {
            tier = tier.or(Some(Tier::Unit));
        } else if let Some(reason) = line.strip_prefix("#[ignore") {
            tier = Some(if reason.contains("root") {
                Tier::Root
            } else {
                Tier::Vm
            });
        } else if let Some((_, needs)) = TEST_MACROS.iter().find(|(name, _)| line.starts_with(name)) {
            tier = Some(*needs);
        } else if line.starts_with("//") || line.starts_with("#[") {
            // Stands between a test's doc lines and its name.
        } else {
            if let (Some(tier), Some(function)) = (tier, function(line)) {
                let rows: BTreeSet<Id> = in_name(function).into_iter().chain(in_text(&docs)).collect();
                if !rows.is_empty() {
                    let place = format!("{}:{} {function}", name.display(), at + 1);
                    found.push(Test { rows, place, tier });
                }
            }
            docs.clear();
            tier = None;
        }
    }
    found
}

/// The name of the function a line begins, if it does.
fn function(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").unwrap_or(line);
    let rest = rest.strip_prefix("async ").unwrap_or(rest);
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// Rows in a name: `c13_…`, `m_01_…`, `c10_to_c15_…`.
fn in_name(name: &str) -> BTreeSet<Id> {
    let words: Vec<&str> = name.split('_').collect();
    let mut spots = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        let id = word
            .chars()
            .next()
            .and_then(|group| Id::new(group, &word[group.len_utf8()..]));
        let apart = single(word).and_then(|group| Id::new(group, words.get(at + 1)?));
        at += 1 + usize::from(id.is_none() && apart.is_some());
        match id.or(apart) {
            Some(id) => spots.push(Spot::Row(id)),
            None if word == "to" => spots.push(Spot::To),
            None => spots.push(Spot::Other),
        }
    }
    spread(&spots)
}

/// Rows in doc lines: `C-13`, `C-10 to C-15`.
fn in_text(text: &str) -> BTreeSet<Id> {
    let spots: Vec<Spot> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| !word.is_empty())
        .map(|word| {
            let id = word
                .split_once('-')
                .and_then(|(group, digits)| Id::new(single(group).filter(char::is_ascii_uppercase)?, digits));
            match id {
                Some(id) => Spot::Row(id),
                None if word == "to" => Spot::To,
                None => Spot::Other,
            }
        })
        .collect();
    spread(&spots)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    Row(Id),
    To,
    Other,
}

/// The rows among the words, those between `A to B` included.
fn spread(spots: &[Spot]) -> BTreeSet<Id> {
    let mut rows = BTreeSet::new();
    for (at, spot) in spots.iter().enumerate() {
        let Spot::Row(first) = spot else { continue };
        let last = match spots.get(at + 1..at + 3) {
            Some([Spot::To, Spot::Row(last)]) => *last,
            _ => *first,
        };
        rows.extend(first.up_to(last));
    }
    rows
}

fn single(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ids: BTreeSet<Id>) -> String {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_and_doc_lines() {
        assert_eq!(named(in_name("c13_order")), "C-13");
        assert_eq!(named(in_name("m_01_k05_x")), "K-05 M-01");
        assert_eq!(named(in_name("o08_to_o10_and_c08_all")), "C-08 O-08 O-09 O-10");
        assert_eq!(named(in_name("the_c_of_x86_d1_c013_é12")), "");
        assert_eq!(
            named(in_text(" C-10, C-12 to C-14: x. (M-11)")),
            "C-10 C-12 C-13 C-14 M-11"
        );
        assert_eq!(named(in_text(" X-01 C-1 c-02 SHA-25 to UTC-08")), "");
    }

    #[test]
    fn tests_and_what_they_need() {
        let text = "/// C-01.\nfn helper() {}\n/// C-02: x\n/// y.\n#[test]\nfn a() {}\n\
            #[tokio::test]\n#[ignore = \"needs root\"]\nasync fn k05_b() {\n    fn c01() {}\n}\n\
            on_both! {\n    /// O-03\n    fn c(lab) {\n}\n#[test]\nfn nothing() {}\n";
        let tests = tests_of(Path::new("f.rs"), text);
        let shown: Vec<_> = tests
            .iter()
            .map(|t| format!("{} {} {}", named(t.rows.clone()), t.tier, t.place))
            .collect();
        assert_eq!(
            shown,
            [
                "C-02 unit f.rs:6 a",
                "K-05 root f.rs:9 k05_b",
                "O-03 vm f.rs:14 c"
            ]
        );
    }

    #[test]
    fn what_fails() {
        let document = "| id | promise |\n| --- | --- |\n| C-01 | a |\n| C-02 | *pending* b |\n\
            | D-01 | c. *pending here:* d |\n";
        let rows = rows(document).unwrap();
        assert_eq!(
            rows.values().copied().collect::<Vec<_>>(),
            [Built::Whole, Built::Pending, Built::Partly]
        );
        let test = |name: &str| tests_of(Path::new("f.rs"), &format!("#[test]\nfn {name}() {{}}\n"));
        assert_eq!(Report::of(&rows, &test("c01_d01")).broken, Vec::<String>::new());
        assert_eq!(Report::of(&rows, &test("c01")).broken.len(), 1);
        let unknown = Report::of(&rows, &test("c01_d01_k09")).broken;
        assert!(unknown[0].contains("K-09"), "{unknown:?}");
    }

    #[test]
    fn a_document_with_a_row_twice_or_without_rows_is_refused() {
        assert!(rows("| C-01 | a |\n| C-01 | b |\n").is_err());
        assert!(rows("# Nothing\n").is_err());
    }
}
