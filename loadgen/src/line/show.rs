//! How it goes, on a terminal or line by line.                                                        [indicatif]

use std::io::IsTerminal;
use std::sync::LazyLock;

use indicatif::{ProgressBar, ProgressStyle};
use loadgen::report::Sample;
use loadgen::run::Progress;

/// The same as [`show`], for connections that are only held.
pub fn show_held(phase: &str, part: f64, sample: &Sample) {
    let gateway = sample.gateway.unwrap_or_default();
    let memory = gateway.rss_bytes as f64 / 1_048_576.0;
    let line = format!(
        "{phase}: {} welcomed, {:.0}/s echoed, gateway {memory:.0} MiB, {:.1} s of CPU",
        sample.active, sample.delivered_per_s, gateway.cpu_s
    );
    draw(part, sample.at_s, line);
}

/// One line on a terminal; elsewhere a line every five seconds.
pub fn show(progress: &Progress<'_>) {
    let Progress { phase, part, sample, findings } = progress;
    let line = format!(
        "{phase}: {} welcomed, {:.0}/s acknowledged, {:.0}/s delivered, {} waiting, p99 {:.1} ms, {findings} findings",
        sample.active,
        sample.acknowledged_per_s,
        sample.delivered_per_s,
        sample.unsent,
        sample.deliver_us_p99 / 1e3
    );
    draw(*part, sample.at_s, line);
}

pub fn draw(part: f64, at_s: f64, line: String) {
    if std::io::stderr().is_terminal() {
        #[expect(clippy::cast_possible_truncation, reason = "0 to 100")]
        BAR.set_position((part.clamp(0.0, 1.0) * 100.0) as u64);
        BAR.set_message(line);
    } else if at_s % 5.0 < 1.0 {
        eprintln!("{at_s:>5.0} s  {line}");
    }
}

pub static BAR: LazyLock<ProgressBar> = LazyLock::new(|| {
    let style = ProgressStyle::with_template("{elapsed:>5} {bar:20} {wide_msg}").expect("a good template");
    ProgressBar::new(100).with_style(style)
});
