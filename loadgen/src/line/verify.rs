//! Ledgers joined with what the gateway holds.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tidegate::verify::Verdict;

use super::messages::Common;
use super::show::BAR;

#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub common: Common,
    /// Ledgers to judge.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub ledger: Vec<PathBuf>,
    /// First put a gateway that runs under a small load for so many seconds, and judge its ledger, which is written to --ledger-out.
    #[arg(long, value_name = "SECONDS", requires = "ledger_out")]
    pub canary: Option<f64>,
    /// Messages per second of the canary.
    #[arg(long, default_value_t = 20.0)]
    pub rate: f64,
    /// Compare with this export instead of what the gateway on --data-dir holds.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Milliseconds from which on an acknowledgement or a delivery counts as late.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub late_ms: u64,
}

impl VerifyArgs {
    /// The verdict, and whether the canary itself saw nothing wrong on the wire.
    pub fn run(&self) -> Result<(Verdict, bool), String> {
        let mut ledgers = self.ledger.clone();
        let mut is_clean = true;
        if let Some(seconds) = self.canary {
            let seconds = Duration::from_secs_f64(seconds);
            let report = self
                .common
                .bench(None, self.common.aim.devices(self.common.threads)?, self.common.aim.trust()?, false, false)?
                .run("canary", self.common.load(0.0), |run| {
                    run.stage(self.rate, Duration::ZERO, seconds, Duration::from_secs_f64(self.common.drain)).map(drop)
                })?;
            BAR.finish_and_clear();
            is_clean = report.findings.is_empty();
            if !is_clean {
                print!("{}", report.text());
            }
            ledgers.extend(self.common.ledger_out.clone());
        }
        if ledgers.is_empty() {
            return Err("nothing to judge: name ledgers with --ledger, or make one with --canary".to_owned());
        }
        let settings = tidegate::config::Settings { data_dir: self.common.aim.data_dir.clone(), ..Default::default() };
        let verdict = tidegate::keep::audit(&ledgers, self.export.as_deref(), self.late_ms, &settings);
        verdict.map(|verdict| (verdict, is_clean)).map_err(|error| error.reason)
    }
}
