//! What is put under load, and where the report goes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use loadgen::page;
use loadgen::phantom::Device;
use loadgen::report::Report;
use loadgen::secure::Trust;
use loadgen::subject::{Minter, Process, Started, Target};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BackEnd {
    /// Real sockets.
    Sockets,
    /// Clients that cost this machine a few bytes each.
    Phantom,
}

/// What is put under load, and where the report goes.
#[derive(Clone, Debug, Args)]
pub struct Aim {
    /// Where clients connect.
    #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
    pub url: String,
    /// With wss://: the certificates (PEM) that are trusted. The gateway's must be for the address.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// The gateway's admin side.
    #[arg(long, default_value = "127.0.0.1:8081")]
    pub admin: SocketAddr,
    /// Whose TCP carries the clients: the kernel's, or one of this program's own on a TUN device, which needs CAP_NET_ADMIN and reaches
    /// a gateway at 198.18.0.1.
    #[arg(long, value_enum, default_value_t = BackEnd::Sockets)]
    pub back_end: BackEnd,
    /// Allow a gateway on another machine.
    #[arg(long)]
    pub allow_remote: bool,
    /// File with the secret that signs tokens.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Data directory of the gateway, where its generated secret is.
    #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
    pub data_dir: PathBuf,
    /// Start the gateway by this command, and end it afterwards.
    #[arg(long, value_name = "CMD")]
    pub start: Option<String>,
    /// The gateway's process, whose CPU, memory and descriptors are then reported.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Decides every draw; the same seed brings the same schedule.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Add the report to a list of reports.
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
    /// A fact that belongs to the report, such as commit=1a2b3c; may be repeated.
    #[arg(long = "fact", value_name = "NAME=VALUE", value_parser = fact)]
    pub facts: Vec<(String, String)>,
    /// The command line the report names, where another program runs this one.
    #[arg(long, value_name = "COMMAND")]
    pub told: Option<String>,
    /// Write the report as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write latencies, and the lateness of sending, as a HdrHistogram log: by the second, of idle and echo in one interval.
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,
}

impl Aim {
    /// Starts the gateway if that was asked for.
    pub fn start(&self) -> Result<Option<Started>, String> {
        self.start.as_deref().map(|command| Started::run(command, self.admin)).transpose()
    }

    pub fn target(&self) -> Result<Target, String> {
        let target = Target::parse(&self.url)?;
        let is_local = target.is_loopback() || self.back_end == BackEnd::Phantom;
        let is_here = is_local && self.admin.ip().is_loopback();
        if !is_here && !self.allow_remote {
            return Err(format!("{} is not this machine; --allow-remote if that is meant", self.url));
        }
        Ok(target)
    }

    /// The devices of the threads, if clients are phantoms. To be made first: the gateway listens on their address.
    pub fn devices(&self, threads: usize) -> Result<Option<Vec<Device>>, String> {
        if self.back_end == BackEnd::Sockets {
            return Ok(None);
        }
        Device::all(self.target()?.address, threads).map(Some)
    }

    /// What clients trust, if they have TLS.
    pub fn trust(&self) -> Result<Option<Trust>, String> {
        match (self.target()?.is_secure, &self.authority) {
            (false, _) => Ok(None),
            (true, Some(authority)) => Trust::read(authority).map(Some),
            (true, None) => Err("wss:// needs --authority FILE with the certificates that are trusted".to_owned()),
        }
    }

    pub fn minter(&self) -> Result<Minter, String> {
        Minter::read(&self.secret_file.clone().unwrap_or_else(|| self.data_dir.join("secret")))
    }

    pub fn process(&self, started: Option<&Started>) -> Option<Process> {
        started.map(Started::process).or(self.pid.map(Process))
    }

    /// Writes the report to wherever it was asked for.
    pub fn keep(&self, report: &mut Report) -> Result<(), String> {
        report.command = self.told.clone().unwrap_or_else(command);
        report.machine.extend(self.facts.iter().cloned());
        let cannot = |path: &Path, error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
        let value = serde_json::to_value(&*report).map_err(|error| error.to_string())?;
        if let Some(path) = &self.html {
            fs::write(path, page::html(&value, None)).map_err(|error| cannot(path, &error))?;
        }
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&value).map_err(|error| error.to_string())?;
            fs::write(path, text + "\n").map_err(|error| cannot(path, &error))?;
        }
        if let Some(path) = &self.append {
            let mut list: Vec<serde_json::Value> = match fs::read_to_string(path) {
                Ok(text) => serde_json::from_str(&text).map_err(|error| format!("{} is no list: {error}", path.display()))?,
                Err(_) => Vec::new(),
            };
            list.push(value);
            let text = serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?;
            fs::write(path, text + "\n").map_err(|error| cannot(path, &error))?;
        }
        Ok(())
    }
}

/// Begins the names of this run.
pub fn tag() -> String {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", unix.as_millis())
}

/// `commit=1a2b3c`.
pub fn fact(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The command line; of the program only its name, since where it stood says nothing.
pub fn command() -> String {
    std::iter::once("loadgen".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
}
