//! Each threat of `docs/threat-model.md` points to a test that exists.

use std::fs;
use std::path::Path;

/// Every row of every table names at least one test, and every test named stands where the name says, as a test.
#[test]
fn each_threat_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/threat-model.md")).expect("in the repository");
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat ")) {
        rows += 1;
        let proof = line.trim_end_matches(" |").rsplit(" | ").next().expect("a last cell");
        let names: Vec<_> = proof.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("no test: {line}"));
        }
        for name in names {
            let Some((place, test)) = name.split_once("::") else {
                wrong.push(format!("no test's name: {name}"));
                continue;
            };
            let path = if place.starts_with("src/") { format!("{place}.rs") } else { format!("tests/{place}.rs") };
            let text = fs::read_to_string(root.join(&path)).unwrap_or_default();
            let is_test = text.split("#[test]").skip(1).any(|after| {
                after.trim_start().lines().take(3).any(|line| line.trim_start().starts_with(&format!("fn {test}(")))
            });
            if !is_test {
                wrong.push(format!("{path} has no test {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows > 25, "the tables were not read: {rows}");
}
