//! A scenario as a TOML file.                                                                         [toml_edit]

use std::fs;
use std::path::Path;

/// The command line that a file stands for.
pub fn arguments(file: &Path) -> Result<Vec<String>, String> {
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {name}: {error}"))?;
    let table: toml_edit::DocumentMut = text.parse().map_err(|error| format!("{name}: {error}"))?;
    let scenario = table
        .get("scenario")
        .and_then(|item| item.as_str())
        .ok_or_else(|| format!("{name}: scenario = \"chat\" or so is missing"))?;
    let mut line = vec!["loadgen".to_owned(), scenario.to_owned()];
    let stages = table.get("stage").and_then(toml_edit::Item::as_array_of_tables);
    for stage in stages.into_iter().flatten() {
        line.push(
            one_stage(stage).ok_or_else(|| format!("{name}: a [[stage]] has seconds and rate, two numbers, and nothing else"))?,
        );
    }
    for (key, item) in table.iter().filter(|(key, _)| *key != "scenario" && (*key != "stage" || stages.is_none())) {
        let flag = format!("--{}", key.replace('_', "-"));
        match item.as_value() {
            Some(toml_edit::Value::Boolean(on)) => line.extend(on.value().then_some(flag)),
            Some(toml_edit::Value::String(text)) => line.push(format!("{flag}={}", text.value())),
            Some(toml_edit::Value::Integer(number)) => line.push(format!("{flag}={}", number.value())),
            Some(toml_edit::Value::Float(number)) => line.push(format!("{flag}={}", number.value())),
            _ => return Err(format!("{name}: {key} is neither text, number, true nor false")),
        }
    }
    Ok(line)
}

/// The flag that a `[[stage]]` stands for.
fn one_stage(stage: &toml_edit::Table) -> Option<String> {
    let number = |key: &str| {
        let value = stage.get(key)?.as_value()?;
        value.as_float().or(value.as_integer().map(|number| number as f64))
    };
    let (seconds, rate) = (number("seconds")?, number("rate")?);
    (stage.len() == 2).then(|| format!("--stage={seconds}s:{rate}"))
}
