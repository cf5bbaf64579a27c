//! `explain`: the page of an error's code, from docs/errors.md.

use super::error::{CliError, exit};
use super::output::Output;
use serde_json::json;

const PAGES: &str = include_str!("../../../../docs/errors.md");

/// The text under `## E1203 ...`.
fn page(code: u32) -> Option<(String, String)> {
    let head = format!("## E{code} ");
    let start = PAGES.find(&head)?;
    let rest = &PAGES[start + 3..];
    let end = rest.find("\n## ").unwrap_or(rest.len());
    let (title, text) = rest[..end].split_once('\n')?;
    Some((title.to_owned(), text.trim().to_owned()))
}

pub fn run(code: &str) -> Result<Output, CliError> {
    let digits = code.trim_start_matches(['E', 'e']);
    let unknown = || {
        let fix = "blockctl explain E1203";
        CliError::new(
            1922,
            exit::NOT_FOUND,
            format!("no error has the code \"{code}\""),
            "codes look like E1203",
            fix,
        )
    };
    let number: u32 = digits.parse().map_err(|_| unknown())?;
    let (title, text) = page(number).ok_or_else(unknown)?;
    let json = json!({"code": format!("E{number}"), "title": title, "text": text});
    Ok(Output::new("explain/1", json, format!("{title}\n\n{text}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that blockctl, the dev cluster and metad's edge use.
    const OURS: &[u32] = &[
        1211, 1212, 1213, 1214, 1900, 1901, 1902, 1903, 1904, 1905, 1906, 1907, 1908, 1909, 1910, 1911, 1912,
        1913, 1914, 1920, 1921, 1922, 1923, 1924, 1930, 1931, 1940, 1941, 1942, 1943, 1944, 1945, 1950, 1951,
        1952, 1953, 1954, 1955, 1956, 1957, 1958, 1959, 1960, 1961, 1962, 1963, 1964, 1215, 1217,
    ];
    /// Codes of `meta::AdminRefusal`.
    const METAS: &[u32] = &[
        1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1101, 1102, 1103, 1104, 1105, 1106, 1107, 1108,
        1201, 1202, 1203, 1204, 1205, 1206, 1207, 1208, 1209, 1210, 1501, 1502, 1503, 1504, 1505, 1506, 1507,
    ];

    #[test]
    fn every_code_has_a_page() {
        for code in OURS.iter().chain(METAS) {
            let (title, text) = page(*code).unwrap_or_else(|| panic!("E{code} has no page"));
            assert!(title.len() > 8 && text.len() > 20, "E{code}");
        }
    }

    #[test]
    fn codes_are_typed_in_any_way() {
        for code in ["E1203", "e1203", "1203"] {
            assert!(run(code).unwrap().text.starts_with("E1203 "));
        }
        assert_eq!(run("E9").unwrap_err().exit, exit::NOT_FOUND);
    }
}
