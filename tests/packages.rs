//! What the gateway is built from: licences, sources, bans and the number of packages, as `deploy/deny.toml` says them, and the bill of
//! materials.
//!
//! Counted are the packages of the binary on Linux by normal dependencies: what runs, not what builds or tests it. `cargo metadata` is
//! asked without the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use toml_edit::{Document, Item};

/// Every licence is one that is allowed, every package comes from the one registry, none is banned.
#[test]
fn licences_sources_and_bans_are_kept() {
    let rules = Rules::read();
    let mut wrong = Vec::new();
    for package in packages().values() {
        let name = package["name"].as_str().expect("a name");
        match package["license"].as_str() {
            Some(licence) if rules.allows(licence) => {}
            licence => wrong.push(format!("{name}: licence {licence:?}")),
        }
        match package["source"].as_str() {
            Some(source) if rules.sources.iter().any(|allowed| source == format!("registry+{allowed}")) => {}
            None if is_ours(package) => {}
            source => wrong.push(format!("{name}: source {source:?}")),
        }
        if rules.banned.contains(name) {
            wrong.push(format!("{name}: banned"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// At most 200 packages, as many as the page about them says; and since there are more than 160, it says of every direct dependency how
/// many would go with it, and argues for it.
#[test]
fn packages_are_counted_and_argued_for() {
    let tree = Tree::read();
    let count = tree.reached(None).len();
    println!("{count} packages by normal dependencies, of {COUNT_MAX} allowed");
    assert!(count <= COUNT_MAX, "{count} packages");
    assert!(count > 100, "the packages were not found: {count}");
    let page = fs::read_to_string(root().join("docs/decisions/0007-packages.md")).expect("in the repository");
    for said in [format!("**Choice.** {count} packages,"), format!("{} are beyond", count.saturating_sub(OBVIOUS_COUNT))] {
        assert!(page.contains(&said), "docs/decisions/0007-packages.md does not say \"{said}\"");
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("in the repository");
    let manifest: Document<String> = manifest.parse().expect("TOML");
    let direct = manifest["dependencies"].as_table().expect("a table");
    let rows: BTreeMap<_, _> = page.lines().flat_map(row).collect();
    let alone = |name: &str, item: &Item| {
        let name = item.get("package").and_then(Item::as_str).unwrap_or(name);
        count - tree.reached(Some(name)).len()
    };
    let is: BTreeMap<_, _> = direct.iter().map(|(name, item)| (name.to_owned(), alone(name, item))).collect();
    assert_eq!(rows, is, "the table of docs/decisions/0007-packages.md, left, and the tree, right");
}

/// What a row of the page's table says: each package and how many would go with it. "N each" stands for all of a row.
fn row(line: &str) -> Vec<(String, usize)> {
    let mut cells = line.split('|').map(str::trim).skip(1);
    let (Some(names), Some(counts)) = (cells.next(), cells.next()) else { return Vec::new() };
    let names: Vec<_> = names.split(", ").filter_map(|name| name.strip_prefix('`')?.strip_suffix('`')).collect();
    let counts = match counts.strip_suffix(" each") {
        Some(count) => vec![count; names.len()],
        None => counts.split(", ").collect(),
    };
    assert!(names.is_empty() || names.len() == counts.len(), "one number for each package: {line}");
    names.into_iter().zip(counts).map(|(name, count)| (name.to_owned(), count.parse().expect("a number"))).collect()
}

/// The rules do refuse: a licence outside the list, also behind AND; and take any alternative of an OR.
#[test]
fn the_rules_refuse_what_they_should() {
    let rules = Rules::read();
    for allowed in ["MIT", "MIT OR GPL-3.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0", "GPL-2.0 OR Apache-2.0"] {
        assert!(rules.allows(allowed), "{allowed}");
    }
    for refused in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND AGPL-3.0", "", "Proprietary"] {
        assert!(!rules.allows(refused), "{refused}");
    }
    assert!(rules.banned.contains("openssl-sys"));
}

/// Writes `target/tidegate.cdx.json`, a bill of materials in CycloneDX: every package with version, licence and the checksum of its source.
#[test]
fn a_bill_of_materials_is_written() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("in the repository");
    let lock: Document<String> = lock.parse().expect("TOML");
    let locked: BTreeMap<(String, String), String> = lock["package"]
        .as_array_of_tables()
        .expect("packages")
        .iter()
        .filter_map(|package| {
            let text = |key: &str| package.get(key).and_then(Item::as_str).map(str::to_owned);
            Some(((text("name")?, text("version")?), text("checksum")?))
        })
        .collect();
    let packages = packages();
    let mut components = Vec::new();
    let mut ours = json!(null);
    for package in packages.values() {
        let (name, version) = (package["name"].as_str().expect("a name"), package["version"].as_str().expect("a version"));
        let purl = format!("pkg:cargo/{name}@{version}");
        let mut component = json!({
            "type": "library", "name": name, "version": version, "bom-ref": purl, "purl": purl,
            "licenses": [{ "expression": package["license"].as_str().unwrap_or_default().replace('/', " OR ") }],
        });
        if is_ours(package) {
            component["type"] = json!("application");
            ours = component;
            continue;
        }
        let checksum = locked.get(&(name.to_owned(), version.to_owned())).expect("every foreign package has a checksum");
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        components.push(component);
    }
    let count = components.len();
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": { "component": ours }, "components": components,
    });
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("tidegate.cdx.json");
    fs::write(&path, serde_json::to_string_pretty(&bill).expect("JSON")).expect("the target directory is ours");
    println!("{count} components in {}", path.display());
    assert!(count > 100 && bill["metadata"]["component"]["name"] == "tidegate");
}

/// What `deploy/deny.toml` says.
struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
    sources: Vec<String>,
}

impl Rules {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("deploy/deny.toml")).expect("in the repository");
        let rules: Document<String> = text.parse().expect("TOML");
        let list = |section: &str, key: &str| -> Vec<String> {
            let items = rules[section][key].as_array().expect("a list");
            items.iter().map(|item| item.as_str().expect("a string").to_owned()).collect()
        };
        let banned = rules["bans"]["deny"].as_array().expect("a list").iter();
        let name =
            |item: &toml_edit::Value| item.as_inline_table().and_then(|table| table.get("crate")?.as_str().map(str::to_owned));
        Self {
            licences: list("licenses", "allow").into_iter().collect(),
            banned: banned.map(|item| name(item).expect("a table with a crate")).collect(),
            sources: list("sources", "allow-registry"),
        }
    }

    /// Whether an SPDX expression can be satisfied: every part of an AND, one part of an OR. `/` is an old OR.
    fn allows(&self, expression: &str) -> bool {
        let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut at = 0;
        let allowed = self.either(&words, &mut at);
        allowed && at == words.len()
    }

    fn either(&self, words: &[&str], at: &mut usize) -> bool {
        let mut allowed = self.both(words, at);
        while words.get(*at) == Some(&"OR") {
            *at += 1;
            allowed |= self.both(words, at);
        }
        allowed
    }

    fn both(&self, words: &[&str], at: &mut usize) -> bool {
        let mut allowed = self.one(words, at);
        while words.get(*at) == Some(&"AND") {
            *at += 1;
            allowed &= self.one(words, at);
        }
        allowed
    }

    fn one(&self, words: &[&str], at: &mut usize) -> bool {
        let Some(&word) = words.get(*at) else { return false };
        *at += 1;
        if word == "(" {
            let allowed = self.either(words, at);
            *at += 1;
            return allowed;
        }
        let mut name = word.to_owned();
        if words.get(*at) == Some(&"WITH") {
            name = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
            *at += 2;
        }
        self.licences.contains(&name)
    }
}

/// A package: its name and version.
type Package = (String, String);

/// Which packages use which, by normal dependencies on Linux.
struct Tree {
    uses: BTreeMap<Package, BTreeSet<Package>>,
    gateway: Package,
}

impl Tree {
    fn read() -> Self {
        let arguments = ["--edges", "normal", "--target", LINUX, "--prefix", "depth", "--locked", "--offline"];
        let tree = cargo(&[&["tree", "--package", "tidegate"], &arguments[..]].concat());
        let mut uses: BTreeMap<Package, BTreeSet<Package>> = BTreeMap::new();
        let mut above: Vec<Package> = Vec::new();
        for line in tree.lines() {
            let name = line.trim_start_matches(|byte: char| byte.is_ascii_digit());
            let depth: usize = line[..line.len() - name.len()].parse().expect("a depth");
            let mut words = name.split_whitespace();
            let mut word = || words.next().expect("a name and a version");
            let package = (word().to_owned(), word().trim_start_matches('v').to_owned());
            above.truncate(depth);
            if let Some(user) = above.last() {
                uses.get_mut(user).expect("it came before").insert(package.clone());
            }
            uses.entry(package.clone()).or_default();
            above.push(package);
        }
        Self { uses, gateway: above.swap_remove(0) }
    }

    /// What the gateway reaches, beside itself; without one of its own dependencies, if one is named.
    fn reached(&self, without: Option<&str>) -> BTreeSet<&Package> {
        let mut found = BTreeSet::new();
        let mut left: Vec<_> = self.uses[&self.gateway].iter().filter(|(name, _)| without != Some(name)).collect();
        while let Some(package) = left.pop() {
            if found.insert(package) {
                left.extend(&self.uses[package]);
            }
        }
        found
    }
}

/// The gateway and the packages it reaches, by name and version.
fn packages() -> BTreeMap<Package, Value> {
    let tree = Tree::read();
    let reached: BTreeSet<_> = tree.uses.keys().collect();
    let metadata = cargo(&["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", LINUX]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let all = metadata["packages"].as_array().expect("a list").iter().map(|package| {
        let text = |key: &str| package[key].as_str().expect("a string").to_owned();
        ((text("name"), text("version")), package.clone())
    });
    let found: BTreeMap<_, _> = all.filter(|(key, _)| reached.contains(key)).collect();
    assert_eq!(found.len(), reached.len(), "a package of the tree is not in the metadata");
    found
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn is_ours(package: &Value) -> bool {
    package["name"] == "tidegate"
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

const LINUX: &str = "x86_64-unknown-linux-gnu";
/// Packages the gateway may consist of, beside itself.
const COUNT_MAX: usize = 200;
/// What the obvious set has by itself: TLS, tokens, HTTP, the engine and flags, with default features.
const OBVIOUS_COUNT: usize = 160;
