//! Comparisons on a machine whose speed changes by the minute: everybody is measured in turn, many times, within the same minutes.
//!
//! All contenders of a case run at once, each with connections of its own, and all rest but one. A repetition drives each for a moment,
//! in an order that turns from repetition to repetition, and its ratio is taken against the floor *of the same repetition*. What is
//! reported is the median of these ratios with the least and the most; the floor against a second copy of itself shows the noise.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Map, Value, json};

use crate::Common;
use crate::kernel::{Counted, Counter, Window, may_count, per_unit};
use crate::results::{self, Spread};
use crate::server::{Contender, Core, Probe, Server, on_core};
use crate::threads;

/// What every comparison is told.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The binary to measure; by default the one beside this program.
    #[arg(long)]
    pub gateway: Option<PathBuf>,
    /// Another build to compare with, measured in the same run.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Where data directories are made; removed after each run.
    #[arg(long, default_value = "target/bench-data")]
    pub data: PathBuf,
    /// Where results are kept.
    #[arg(long, default_value = "bench/results")]
    pub results: PathBuf,
    /// Repetitions of each case.
    #[arg(long, default_value_t = 7)]
    pub repetitions: usize,
    /// Seconds for which each contender is driven in a repetition; by default what the case needs.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Only cases whose name contains one of these. May be repeated.
    #[arg(long = "case", value_name = "PART")]
    pub cases: Vec<String>,
    /// Only these contenders, by name, beside the floor. May be repeated.
    #[arg(long = "only", value_name = "NAME")]
    pub only: Vec<String>,
    /// A setting of the gateway. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Print, and keep nothing.
    #[arg(long)]
    pub dry: bool,
    /// A word about this run, kept with the result.
    #[arg(long)]
    pub note: Option<String>,
}

impl Options {
    /// What a single gateway of this run is told.
    pub fn common(&self, label: &str) -> Common {
        Common {
            gateway: self.gateway.clone(),
            data: self.data.clone(),
            results: self.results.clone(),
            connections: 0,
            runs: self.repetitions,
            warm_up: 0.0,
            seconds: self.seconds.unwrap_or(SECONDS),
            payload: None,
            settings: self.settings.clone(),
            note: self.note.clone(),
            label: label.to_owned(),
        }
    }

    /// Whether a case is asked for.
    pub fn wants_case(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|part| name.contains(part.as_str()))
    }

    /// Those of `contenders` that are asked for and can be started here.
    pub fn choose(&self, contenders: &[Contender]) -> Vec<Contender> {
        let before = [Contender::EpollBefore, Contender::UringBefore];
        let before = before.iter().filter(|_| self.against.is_some());
        let asked = |contender: &&Contender| {
            matches!(**contender, Contender::Floor | Contender::Nats)
                || self.only.is_empty()
                || self.only.iter().any(|name| contender.name().starts_with(name.as_str()))
        };
        let all = contenders.iter().chain(before).filter(asked).copied();
        all.filter(|contender| contender.is_here() || say_absent(*contender)).collect()
    }
}

fn say_absent(contender: Contender) -> bool {
    eprintln!("{contender} is not here: bench/peers/setup installs it");
    false
}

/// Drives one server, on a thread of its own with a descriptor table of its own.
pub trait Generator {
    /// Drives it for a moment, measures `duration` after `warm_up`, and leaves nothing in flight.
    fn drive(&mut self, warm_up: Duration, duration: Duration, watch: &mut Watch) -> Result<Sample, String>;
}

/// Reads the clocks at both ends of a measurement.
pub struct Watch {
    probe: Probe,
    begun: Option<(Instant, f64, f64)>,
    counter: Option<Counter>,
}

impl Watch {
    /// Over one server.
    pub fn of(probe: Probe) -> Self {
        Self { probe, begun: None, counter: None }
    }

    /// Drives while the kernel counts what is asked for.
    fn drive(&mut self, generator: &mut impl Generator, order: &Order) -> Result<Sample, String> {
        self.counter = order.counted.map(|counted| self.probe.count(counted)).transpose()?;
        let mut sample = generator.drive(order.warm_up, order.duration, self)?;
        sample.counted = self.counter.take().map(Counter::total).transpose()?;
        Ok(sample)
    }

    /// From here on it counts.
    pub fn begin(&mut self) -> Result<(), String> {
        self.counter.as_mut().map_or(Ok(()), Counter::begin)?;
        self.begun = Some((Instant::now(), self.probe.cpu()?, threads::own()?.cpu_s));
        Ok(())
    }

    /// So many units were done since.
    pub fn end(&mut self, units: f64) -> Result<Sample, String> {
        let (at, cpu, own) = self.begun.take().ok_or("the end of what was not begun")?;
        let (cpu, own) = (self.probe.cpu()? - cpu, threads::own()?.cpu_s - own);
        let seconds = at.elapsed().as_secs_f64();
        self.counter.as_mut().map_or(Ok(()), Counter::end)?;
        Ok(Sample { units, seconds, cpu_s: cpu, own_cpu_s: own, counted: None, more: Vec::new() })
    }
}

/// One contender in one repetition.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Messages, deliveries, connections.
    pub units: f64,
    pub seconds: f64,
    /// CPU of the server, all threads.
    pub cpu_s: f64,
    /// CPU of the generator.
    pub own_cpu_s: f64,
    /// What the kernel was asked to count meanwhile.
    pub counted: Option<f64>,
    /// Figures of the subject's own.
    pub more: Vec<(&'static str, f64)>,
}

impl Sample {
    fn speed(&self, per: Per) -> f64 {
        match per {
            Per::CpuSecond => self.units / self.cpu_s,
            Per::Second => self.units / self.seconds,
        }
    }

    fn window(&self) -> Option<Window> {
        self.counted.map(|counted| Window { units: self.units, seconds: self.seconds, counted })
    }
}

/// One case: what is measured of whom.
pub struct Case {
    /// Its name, and the part of the name of a result by which it is found again.
    pub name: String,
    /// What a unit is, in the singular.
    pub unit: &'static str,
    /// What it depends on.
    pub facts: Vec<(&'static str, f64)>,
    /// Against whom the ratios are taken.
    pub reference: Contender,
    /// What is compared.
    pub per: Per,
    /// For how long each is driven in a repetition, if nobody says.
    pub seconds: f64,
    /// What the kernel counts: calls in windows of their own, syncs while time is measured.
    pub counted: Counted,
}

impl Case {
    /// What it costs, against the bare server.
    pub fn against_floor(name: String, unit: &'static str, facts: Vec<(&'static str, f64)>) -> Self {
        let (reference, per, counted) = (Contender::Floor, Per::CpuSecond, Counted::Calls);
        Self { name, unit, facts, reference, per, seconds: SECONDS, counted }
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Per {
    /// Work per CPU-second of the server: what it costs.
    CpuSecond,
    /// Work per second: how much goes through, whatever waits.
    Second,
}

/// What a generator is told.
struct Order {
    warm_up: Duration,
    duration: Duration,
    counted: Option<Counted>,
}

/// One server with the thread that drives it.
pub struct Team {
    contender: Contender,
    /// Ends with the team.
    _server: Server,
    orders: Option<Sender<Order>>,
    answers: Receiver<Result<Sample, String>>,
    thread: Option<JoinHandle<()>>,
    samples: Vec<Sample>,
    /// What was counted per unit.
    counted: Option<Spread>,
}

impl Team {
    /// Joins a server to the generator that `open` makes, on the generator's own thread.
    pub fn new<G: Generator>(
        contender: Contender,
        server: Server,
        open: impl FnOnce() -> Result<G, String> + Send + 'static,
    ) -> Result<Self, String> {
        let (orders, to_do) = channel::<Order>();
        let (done, answers) = channel();
        let probe = server.probe();
        let work = move || {
            // Ten thousand connections of each of several contenders do not fit one table.
            let ready = unshare(CloneFlags::CLONE_FILES).map_err(|error| format!("a descriptor table: {error}"));
            let opened = ready.and_then(|()| on_core(Core::Generator)).and_then(|()| open());
            let mut generator = match opened {
                Ok(generator) => generator,
                Err(error) => return drop(done.send(Err(error))),
            };
            let mut watch = Watch::of(probe);
            let ready = Sample { units: 0.0, seconds: 0.0, cpu_s: 0.0, own_cpu_s: 0.0, counted: None, more: Vec::new() };
            let mut answer = Ok(ready);
            while done.send(answer).is_ok() {
                let Ok(order) = to_do.recv() else { return };
                answer = watch.drive(&mut generator, &order);
            }
        };
        let thread =
            std::thread::Builder::new().name(contender.name().to_owned()).spawn(work).map_err(|error| error.to_string())?;
        let team = Self {
            contender,
            _server: server,
            orders: Some(orders),
            answers,
            thread: Some(thread),
            samples: Vec::new(),
            counted: None,
        };
        team.wait()?;
        Ok(team)
    }

    fn wait(&self) -> Result<Sample, String> {
        let answer = self.answers.recv().map_err(|_| "the generator ended".to_owned()).and_then(|answer| answer);
        answer.map_err(|error| format!("{}: {error}", self.contender))
    }

    fn drive(&self, duration: Duration, counted: Option<Counted>) -> Result<Sample, String> {
        let orders = self.orders.as_ref().expect("taken when dropped");
        let order = Order { warm_up: WARM_UP, duration, counted };
        orders.send(order).map_err(|_| format!("{}: the generator ended", self.contender))?;
        self.wait()
    }

    /// System calls per unit, in windows of their own: until enough of them say something.
    fn count_calls(&mut self) -> Result<(), String> {
        let usual_per_s = results::spread(self.samples.iter().map(|sample| sample.speed(Per::Second)).collect()).median;
        let mut windows = Vec::new();
        while self.counted.is_none() && windows.len() < CALLS_WINDOWS_MAX {
            let sample = self.drive(CALLS_WINDOW, Some(Counted::Calls))?;
            windows.extend(sample.window());
            self.counted = per_unit(&windows, usual_per_s);
        }
        Ok(())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Measures a case with these teams, the floor first among them; prints and keeps what came out.
pub fn measure(subject: &str, case: &Case, mut teams: Vec<Team>, options: &Options) -> Result<(), String> {
    let seconds = options.seconds.unwrap_or(case.seconds);
    let duration = Duration::from_secs_f64(seconds);
    // Syncs are rare: to count them costs nothing.
    let counted = Some(case.counted).filter(|&counted| counted == Counted::Syncs);
    for repetition in 0..options.repetitions {
        for turn in 0..teams.len() {
            let at = (repetition + turn) % teams.len();
            let team = &mut teams[at];
            let sample = team.drive(duration, counted)?;
            team.samples.push(sample);
        }
    }
    for team in &mut teams {
        match case.counted {
            Counted::Calls if may_count() => team.count_calls()?,
            Counted::Calls => {}
            Counted::Syncs => {
                let windows: Vec<Window> = team.samples.iter().filter_map(Sample::window).collect();
                team.counted = per_unit(&windows, 0.0);
            }
        }
    }
    report(subject, case, &teams, seconds, options)
}

fn report(subject: &str, case: &Case, teams: &[Team], seconds: f64, options: &Options) -> Result<(), String> {
    let reference = teams.iter().find(|team| team.contender == case.reference);
    let reference: Option<Vec<f64>> = reference.map(|team| team.samples.iter().map(|sample| sample.speed(case.per)).collect());
    println!(
        "{subject}: {}\n{:<20} {:>8} {:>17} {:>9} {:>9} {:>7} {:>7}",
        case.name,
        "",
        "ratio",
        "least..most",
        "us/unit",
        "units/s",
        case.counted.word(),
        "gen %"
    );
    let mut contenders = Map::new();
    for team in teams {
        let samples = &team.samples;
        let of = |figure: fn(&Sample) -> f64| samples.iter().map(figure).collect::<Vec<f64>>();
        let mut figures = Map::new();
        let ratio = reference.as_ref().map(|reference| {
            let pairs = samples.iter().zip(reference);
            results::spread(pairs.map(|(sample, reference)| sample.speed(case.per) / reference).collect())
        });
        let cpu_us = results::spread(of(|sample| sample.cpu_s * 1e6 / sample.units));
        let rate = results::spread(of(|sample| sample.units / sample.seconds));
        let generator = results::spread(of(|sample| sample.own_cpu_s * 100.0 / sample.seconds));
        println!(
            "{:<20} {:>8} {:>17} {:>9.3} {:>9.0} {:>7} {:>7.0}",
            team.contender.name(),
            ratio.as_ref().map_or_else(|| "-".to_owned(), |ratio| format!("{:.3}", ratio.median)),
            ratio.as_ref().map_or_else(String::new, |ratio| format!("{:.3}..{:.3}", ratio.least, ratio.most)),
            cpu_us.median,
            rate.median,
            team.counted.as_ref().map_or_else(|| "-".to_owned(), |counted| format!("{:.3}", counted.median)),
            generator.median,
        );
        if let Some(ratio) = ratio {
            figures.insert("ratio".to_owned(), ratio.json());
        }
        figures.insert(format!("cpu_us_per_{}", case.unit), cpu_us.json());
        figures.insert(format!("{}s_per_s", case.unit), rate.json());
        figures.insert("generator_cpu_percent".to_owned(), generator.json());
        let counted = team.counted.as_ref();
        figures.extend(counted.map(|counted| (format!("{}_per_{}", case.counted.name(), case.unit), counted.json())));
        for (at, &(name, _)) in samples[0].more.iter().enumerate() {
            let values = samples.iter().map(|sample| sample.more[at].1).collect();
            let spread = results::spread(values);
            println!("    {name:<32} {:>12.2} {:>12.2} {:>12.2}", spread.median, spread.least, spread.most);
            figures.insert(name.to_owned(), spread.json());
        }
        contenders.insert(team.contender.name().to_owned(), Value::Object(figures));
    }
    if options.dry {
        return Ok(());
    }
    let facts: Map<String, Value> = case.facts.iter().map(|&(name, value)| (name.to_owned(), json!(value))).collect();
    let record = json!({
        "case": case.name,
        "facts": facts,
        "repetitions": options.repetitions,
        "seconds": seconds,
        "contenders": contenders,
    });
    results::keep(subject, &options.common(""), record)
}

/// Driven before it is measured, in every repetition.
const WARM_UP: Duration = Duration::from_millis(150);
/// How long most cases are driven in a repetition.
const SECONDS: f64 = 1.0;
/// How long system calls are counted each time, and how often at most.
const CALLS_WINDOW: Duration = Duration::from_millis(400);
const CALLS_WINDOWS_MAX: usize = 6;
