//! A report as one HTML page: nothing is loaded from elsewhere, plots are SVG, and a second run can lie beside the first.

use std::fmt::Write;

use serde_json::Value;

/// The page of a report, given as JSON; with another run behind it in every plot and column.
#[must_use]
pub fn html(run: &Value, other: Option<&Value>) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, run, other);
    page
}

fn write(page: &mut String, run: &Value, other: Option<&Value>) -> std::fmt::Result {
    let runs: Vec<&Value> = std::iter::once(run).chain(other).collect();
    let title = format!("loadgen {}", text(&run["scenario"]));
    writeln!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}</title>\
         <style>{STYLE}</style><h1>{title}</h1>"
    )?;
    for (one, color) in runs.iter().zip(COLORS) {
        let findings = &one["findings"];
        let count = |kind: &str| findings[kind].as_u64().unwrap_or(0);
        let total = count("lost") + count("duplicate") + count("out_of_order") + count("corrupt");
        let verdict = if total == 0 { "clean" } else { "NOT CLEAN" };
        writeln!(
            page,
            "<p><b style='color:{color}'>&#9632;</b> <code>{}</code><br>ledger {verdict}: {} lost, {} duplicate, {} out of order, {} corrupt",
            text(&one["command"]),
            count("lost"),
            count("duplicate"),
            count("out_of_order"),
            count("corrupt")
        )?;
        for list in ["warnings", "broken"] {
            let lines = one[list].as_array().into_iter().flatten();
            lines.into_iter().try_for_each(|line| write!(page, "<br>{list}: {}", text(line)))?;
        }
        let facts = one["machine"].as_object().into_iter().flatten();
        let facts: Vec<String> = facts.map(|(name, value)| format!("{} {}", escape(name), text(value))).collect();
        writeln!(page, "<br><small>{}</small></p>", facts.join(", "))?;
    }
    if runs.iter().any(|one| one["stages"].as_array().is_some_and(|stages| !stages.is_empty())) {
        table(page, &runs)?;
        percentiles(page, &runs)?;
    }
    if runs.iter().any(|one| one["held"].is_object()) {
        held(page, &runs)?;
    }
    let samples = |name: &'static str, path: &'static [&'static str], scale: f64| (name, path, scale);
    for (name, path, scale) in [
        samples("acknowledged per second", &["acknowledged_per_s"], 1.0),
        samples("delivered per second", &["delivered_per_s"], 1.0),
        samples("connections welcomed", &["active"], 1.0),
        samples("welcomed per second", &["welcomed_per_s"], 1.0),
        samples("p99 of DELIVER since the stage began, ms", &["deliver_us_p99"], 1e-3),
        samples("gateway memory, MiB", &["gateway", "rss_bytes"], 1.0 / 1_048_576.0),
        samples("gateway descriptors", &["gateway", "descriptors"], 1.0),
        samples("gateway CPU so far, s", &["gateway", "cpu_s"], 1.0),
    ] {
        let lines: Vec<Vec<(f64, f64)>> = runs.iter().map(|one| series(one, path, scale)).collect();
        plot(page, name, "s", &lines)?;
    }
    writeln!(page, "</html>")
}

fn table(page: &mut String, runs: &[&Value]) -> std::fmt::Result {
    let head = [
        "stage",
        "s",
        "wanted/s",
        "acknowledged/s",
        "delivered/s",
        "p50",
        "p99",
        "p99.9",
        "p99.99",
        "pacing p99",
        "gateway %",
        "generator %",
    ];
    writeln!(page, "<h2>Stages, DELIVER and pacing in ms</h2><table><tr><th>{}</tr>", head.join("<th>"))?;
    for (one, color) in runs.iter().zip(COLORS) {
        let stages = one["stages"].as_array().into_iter().flatten().enumerate();
        let named = stages.map(|(index, stage)| ((index + 1).to_string(), stage));
        for (name, stage) in named.chain(one.get("whole").map(|whole| ("all".to_owned(), whole))) {
            let number = |path: &[&str], scale: f64| shown(stage, path, scale);
            let cells = [
                name,
                number(&["seconds"], 1.0),
                rates(stage),
                number(&["acknowledged_per_s"], 1.0),
                number(&["delivered_per_s"], 1.0),
                number(&["deliver_us", "p50"], 1e-3),
                number(&["deliver_us", "p99"], 1e-3),
                number(&["deliver_us", "p999"], 1e-3),
                number(&["deliver_us", "p9999"], 1e-3),
                number(&["pacing_us", "p99"], 1e-3),
                number(&["gateway_cpu_percent"], 1.0),
                number(&["generator_cpu_percent"], 1.0),
            ];
            writeln!(page, "<tr style='color:{color}'><td>{}</tr>", cells.join("<td>"))?;
        }
    }
    writeln!(page, "</table>")
}

/// The rate of a stage, or where it began and ended.
fn rates(stage: &Value) -> String {
    let (from, to) = (find(stage, &["rate_from_per_s"]).unwrap_or(0.0), find(stage, &["rate_to_per_s"]).unwrap_or(0.0));
    if (from - to).abs() < 0.5 { shown(stage, &["rate_wanted_per_s"], 1.0) } else { format!("{from:.0} to {to:.0}") }
}

/// Latency of DELIVER by percentile: the last stage of each run, the tail stretched.
fn percentiles(page: &mut String, runs: &[&Value]) -> std::fmt::Result {
    let of = |one: &&Value| {
        let last = one["stages"].as_array().and_then(|stages| stages.last());
        nines(&one.get("whole").or(last).cloned().unwrap_or_default()["deliver_us"])
    };
    let lines: Vec<Vec<(f64, f64)>> = runs.iter().map(of).collect();
    plot(
        page,
        "DELIVER of the last stage, or of all that follow each other, ms, by nines of the percentile (1: 90 %, 2: 99 %, 3: 99.9 %)",
        "",
        &lines,
    )
}

/// Percentiles in milliseconds, by their nines.
fn nines(percentiles_us: &Value) -> Vec<(f64, f64)> {
    let at = |(nines, key): (f64, &str)| Some((nines, find(percentiles_us, &[key])? * 1e-3));
    [(0.3, "p50"), (1.0, "p90"), (2.0, "p99"), (3.0, "p999"), (4.0, "p9999")].into_iter().filter_map(at).collect()
}

/// What very many connections cost, and how long their echoes took.
fn held(page: &mut String, runs: &[&Value]) -> std::fmt::Result {
    writeln!(page, "<h2>Connections that were held</h2><table>")?;
    for (name, path, scale) in HELD {
        write!(page, "<tr><th>{name}")?;
        for (one, color) in runs.iter().zip(COLORS) {
            write!(page, "<td style='color:{color}'>{}", shown(&one["held"], path, *scale))?;
        }
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</table>")?;
    echo_stages(page, runs)?;
    let lines: Vec<Vec<(f64, f64)>> = runs.iter().map(|one| nines(&one["held"]["echo"]["round_trip_us"])).collect();
    plot(page, "round trip, ms, by nines of the percentile (1: 90 %, 2: 99 %, 3: 99.9 %)", "", &lines)
}

/// Echoes by stage, where there are several.
fn echo_stages(page: &mut String, runs: &[&Value]) -> std::fmt::Result {
    if !runs.iter().any(|one| one["held"]["echo"]["stages"].is_array()) {
        return Ok(());
    }
    let head = ["stage", "s", "wanted/s", "back/s", "p50", "p99", "p99.9", "pacing p99"];
    writeln!(page, "<h2>Stages, round trip and pacing in ms</h2><table><tr><th>{}</tr>", head.join("<th>"))?;
    for (one, color) in runs.iter().zip(COLORS) {
        for (index, stage) in one["held"]["echo"]["stages"].as_array().into_iter().flatten().enumerate() {
            let number = |path: &[&str], scale: f64| shown(stage, path, scale);
            let cells = [
                (index + 1).to_string(),
                number(&["seconds"], 1.0),
                rates(stage),
                number(&["rate_per_s"], 1.0),
                number(&["round_trip_us", "p50"], 1e-3),
                number(&["round_trip_us", "p99"], 1e-3),
                number(&["round_trip_us", "p999"], 1e-3),
                number(&["pacing_us", "p99"], 1e-3),
            ];
            writeln!(page, "<tr style='color:{color}'><td>{}</tr>", cells.join("<td>"))?;
        }
    }
    writeln!(page, "</table>")
}

/// Rows of [`held`]: name, place in the report, factor.
const HELD: &[(&str, &[&str], f64)] = &[
    ("connections wanted", &["wanted"], 1.0),
    ("held to the end", &["held"], 1.0),
    ("opening, s", &["open_s"], 1.0),
    ("gateway CPU to open one, us", &["open_cpu_us", "gateway"], 1.0),
    ("generator CPU to open one, us", &["open_cpu_us", "generator"], 1.0),
    ("machine CPU to open one, us", &["open_cpu_us", "machine"], 1.0),
    ("gateway CPU while holding, % of a core", &["hold_cpu_percent", "gateway"], 1.0),
    ("gateway user memory of one, bytes", &["gateway_user_bytes"], 1.0),
    ("kernel memory of one, gateway's end, bytes", &["kernel_bytes"], 1.0),
    ("generator user memory of one, bytes", &["own_user_bytes"], 1.0),
    ("echoes back per second", &["echo", "rate_per_s"], 1.0),
    ("round trip p50, ms", &["echo", "round_trip_us", "p50"], 1e-3),
    ("round trip p99, ms", &["echo", "round_trip_us", "p99"], 1e-3),
    ("pacing p99, ms", &["echo", "pacing_us", "p99"], 1e-3),
];

fn series(run: &Value, path: &[&str], scale: f64) -> Vec<(f64, f64)> {
    let samples = run["samples"].as_array().into_iter().flatten();
    samples.filter_map(|sample| Some((sample["at_s"].as_f64()?, find(sample, path)? * scale))).collect()
}

fn plot(page: &mut String, name: &str, unit: &str, lines: &[Vec<(f64, f64)>]) -> std::fmt::Result {
    let most = |pick: fn(&(f64, f64)) -> f64| lines.iter().flatten().map(pick).fold(0.0, f64::max);
    let (right, top) = (most(|point| point.0), most(|point| point.1));
    if right <= 0.0 || top <= 0.0 {
        return Ok(());
    }
    writeln!(page, "<h2>{name}</h2><svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{name}'>")?;
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        let (x, y) = (LEFT + part * (WIDTH - LEFT), BOTTOM - part * BOTTOM + 10.0);
        let (across, up) = (right * part, top * part);
        writeln!(page, "<path d='M{LEFT} {y:.0}H{WIDTH}' stroke=#8884 /><text x=0 y={:.0}>{up:.4}</text>", y + 4.0)?;
        writeln!(page, "<text x={:.0} y={HEIGHT}>{across:.1}{unit}</text>", (x - 30.0).max(LEFT))?;
    }
    for (line, color) in lines.iter().zip(COLORS) {
        let points: Vec<String> = line
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", LEFT + x / right * (WIDTH - LEFT), BOTTOM - y / top * BOTTOM + 10.0))
            .collect();
        writeln!(page, "<polyline points='{}' fill=none stroke={color} stroke-width=1.5 />", points.join(" "))?;
    }
    writeln!(page, "</svg>")
}

fn find(value: &Value, path: &[&str]) -> Option<f64> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_f64()
}

fn shown(value: &Value, path: &[&str], scale: f64) -> String {
    find(value, path).map_or("-".to_owned(), |number| format!("{:.2}", number * scale))
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

const COLORS: [&str; 2] = ["#0a7", "#c50"];
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 200.0;
const STYLE: &str = "body{font:15px system-ui;max-width:960px;margin:2em auto;padding:0 1em;color-scheme:light dark}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2em .6em;text-align:right}svg{width:100%}\
    svg text{font-size:11px;fill:currentColor}h2{font-size:1em;margin:1.5em 0 .3em}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, Sample, Stage};

    /// The page stands by itself, escapes what it shows, and has both runs in its plots.
    #[test]
    fn a_page_needs_nothing_else() {
        let sample = |at_s: f64| Sample { at_s, acknowledged_per_s: 10.0, ..Sample::default() };
        let report = Report {
            scenario: "chat".to_owned(),
            command: "loadgen <chat>".to_owned(),
            stages: vec![Stage::default()],
            samples: vec![sample(1.0), sample(2.0)],
            ..Report::default()
        };
        let mut run = serde_json::to_value(&report).unwrap();
        run["held"] = serde_json::json!({ "held": 7, "echo": { "round_trip_us": { "p50": 2000.0, "p99": 5000.0 } } });
        let page = html(&run, Some(&run));
        assert!(page.contains("<th>held to the end<td style='color:#0a7'>7.00<td style='color:#c50'>7.00</tr>"), "{page}");
        assert!(page.contains("<th>round trip p99, ms<td style='color:#0a7'>5.00"));
        assert!(page.contains("loadgen &lt;chat&gt;") && !page.contains("<chat>"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));
        let plotted = page.split("acknowledged per second</h2>").nth(1).unwrap().split("</svg>").next().unwrap();
        assert_eq!(plotted.matches("<polyline").count(), 2);
    }
}
