//! What a verb prints: a table for people, JSON or YAML with a schema's name for programs.

use serde_json::{Map, Value};
use std::fmt::Write as _;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Plain aligned columns with upper-case heads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    #[must_use]
    pub fn new(heads: &[&'static str]) -> Table {
        Table { heads: heads.to_vec(), rows: Vec::new() }
    }
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.heads.len(), "a cell per column");
        self.rows.push(cells);
    }
    #[must_use]
    pub fn text(&self) -> String {
        let width = |i: usize| {
            let cells = self.rows.iter().map(|r| r[i].chars().count());
            cells.chain([self.heads[i].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let mut out = String::new();
        let heads = self.heads.iter().map(|h| h.to_uppercase()).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

/// One verb's answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Output {
    /// Like `volume.list/1`.
    pub schema: &'static str,
    pub json: Map<String, Value>,
    pub text: String,
    /// 0, or what a check found.
    pub exit: u8,
}

impl Output {
    /// `json` must be an object.
    #[must_use]
    pub fn new(schema: &'static str, json: Value, text: impl Into<String>) -> Output {
        let Value::Object(json) = json else { panic!("{schema} is an object") };
        Output { schema, json, text: text.into(), exit: 0 }
    }

    /// Nothing at all: what was asked for is on the standard output already.
    #[must_use]
    pub fn silent() -> Output {
        Output { schema: "", json: Map::new(), text: String::new(), exit: 0 }
    }

    #[must_use]
    pub fn shown(&self, format: Format) -> String {
        if self.schema.is_empty() {
            return String::new();
        }
        let with_schema = || {
            let mut all = Map::new();
            all.insert("schema".into(), self.schema.into());
            all.extend(self.json.clone());
            Value::Object(all)
        };
        match format {
            Format::Table => self.text.clone(),
            Format::Json => format!("{:#}\n", with_schema()),
            Format::Yaml => {
                let mut out = String::new();
                yaml(&with_schema(), 0, &mut out);
                out.trim_start_matches('\n').to_owned()
            }
        }
    }
}

/// The block style, with JSON's scalars (which are YAML's).
fn yaml(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, v) in map {
                let _ = write!(out, "\n{indent}{key}:");
                yaml_under(v, depth, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for v in list {
                let _ = write!(out, "\n{indent}-");
                yaml_under(v, depth, out);
            }
        }
        scalar => {
            let _ = write!(out, " {scalar}");
        }
    }
    if depth == 0 {
        out.push('\n');
    }
}

fn yaml_under(value: &Value, depth: usize, out: &mut String) {
    yaml(value, depth + 1, out);
}

/// Bytes for people.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut value = n;
    let mut rest = 0;
    while value >= 1024 && unit + 1 < UNITS.len() {
        rest = value % 1024;
        value /= 1024;
        unit += 1;
    }
    if rest == 0 {
        format!("{value} {}", UNITS[unit])
    } else {
        format!("{value}.{} {}", rest * 10 / 1024, UNITS[unit])
    }
}

/// A length of time for people.
#[must_use]
pub fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How long ago a moment of the wall clock was.
#[must_use]
pub fn ago(ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let since = now.as_secs().saturating_sub(ms / 1000);
    format!("{} ago", seconds(since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_aligned() {
        let mut t = Table::new(&["name", "size"]);
        t.row(vec!["a".into(), "1 GiB".into()]);
        t.row(vec!["longer".into(), "2 GiB".into()]);
        assert_eq!(t.text(), "NAME    SIZE\na       1 GiB\nlonger  2 GiB\n");
    }

    #[test]
    fn json_carries_its_schema_and_yaml_is_the_same() {
        let o =
            Output::new("x.list/1", json!({"a": [{"b": 1, "c": "x: y"}, {"b": 2, "c": null}], "e": []}), "t");
        let back: Value = serde_json::from_str(&o.shown(Format::Json)).unwrap();
        assert_eq!(back["schema"], "x.list/1");
        assert_eq!(
            o.shown(Format::Yaml),
            "a:\n  -\n    b: 1\n    c: \"x: y\"\n  -\n    b: 2\n    c: null\ne: []\nschema: \"x.list/1\"\n"
        );
        assert_eq!(o.shown(Format::Table), "t");
    }

    #[test]
    fn bytes_and_times_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1 << 30), "1 GiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(seconds(59), "59 s");
        assert_eq!(seconds(3600 * 25), "1 d 1 h");
    }
}
