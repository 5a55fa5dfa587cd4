//! Parse the command line, load the configuration, call one subcommand, map the result to an exit code.   [clap, mimalloc]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};
use tidegate::config::load::{self, Layers, Loaded};
use tidegate::config::secret::{self, Missing, Source};
use tidegate::config::settings::DEFINITIONS;
use tidegate::config::value::{Kind, LogFormat};
use tidegate::config::{Exit, Secret, Settings, render};
use tidegate::ctl::{self, CtlArgs};
use tidegate::gateway::{self, Fatal, Files, Options, Ready};
use tidegate::keep::{self, BackupArgs, ExportArgs, RestoreArgs, VerifyArgs};
use tidegate::observe::log::{Log, Shape};
use tidegate::session::auth;

/// Named here for the whole process; the reasons are in `docs/decisions/0002-one-static-binary.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // No command means `serve`, which then reads its variables too.
    let line = CommandLine::parse();
    let action = line.command.or_else(|| CommandLine::parse_from(["tidegate", "serve"]).command);
    let done = match action.expect("the line above has a command") {
        Action::Serve(args) => serve(args),
        Action::CheckConfig { file } => check_config(&file),
        Action::DefaultConfig => {
            say(&render::default_file());
            Ok(())
        }
        Action::Token(args) => token(args),
        Action::Ctl(args) => ctl::run(&args).map(|text| say(&text)).map_err(|(exit, text)| Failure { exit, text }),
        Action::Backup { copy, of } => of.settings().and_then(|settings| said(keep::backup(&copy, &settings))),
        Action::Restore { copy, of } => of.settings().and_then(|settings| said(keep::restore(&copy, &settings))),
        Action::Export { copy, of } => of.settings().and_then(|settings| said(keep::export(&copy, &settings))),
        Action::Verify { copy, of } => of.settings().and_then(|settings| said(keep::verify(&copy, &settings))),
        Action::Version => {
            say(&format!("tidegate {}\nprotocol tidegate.v1, tidegate.v1.json\ndrivers  epoll, uring\n", version()));
            Ok(())
        }
    };
    let exit = match done {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{}", failure.text);
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

/// Edge gateway of an instant-messaging system. Without a command: `serve` with defaults, on this machine only.
#[derive(Parser)]
#[command(name = "tidegate", version = version(), after_help = exit_codes())]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Run the gateway until SIGTERM or SIGINT.
    #[command(after_help = exit_codes())]
    Serve(ServeArgs),
    /// Tell all mistakes of a configuration file at once, as `serve` would see it in this environment.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Print a configuration file with every setting, its meaning, range and default.
    DefaultConfig,
    /// Print a token with which a user can connect.
    Token(TokenArgs),
    /// Ask a running gateway: connections, conversations, configuration; send, kick, drain.
    #[command(after_help = exit_codes())]
    Ctl(CtlArgs),
    /// Write a backup of a gateway's data to a directory, whether the gateway runs or not.
    #[command(after_help = exit_codes())]
    Backup {
        #[command(flatten)]
        copy: BackupArgs,
        #[command(flatten)]
        of: StoreArgs,
    },
    /// Make a data directory from a backup, under a new epoch.
    #[command(after_help = exit_codes())]
    Restore {
        #[command(flatten)]
        copy: RestoreArgs,
        #[command(flatten)]
        of: StoreArgs,
    },
    /// Print conversations, members and messages as JSON, one object per line, whether the gateway runs or not.
    #[command(after_help = exit_codes())]
    Export {
        #[command(flatten)]
        copy: ExportArgs,
        #[command(flatten)]
        of: StoreArgs,
    },
    /// Join ledgers of clients with what the gateway holds: what is lost, duplicate, reordered or late. Exit 10 if anything is.
    #[command(after_help = exit_codes())]
    Verify {
        #[command(flatten)]
        copy: VerifyArgs,
        #[command(flatten)]
        of: StoreArgs,
    },
    /// Print version, protocols and drivers.
    Version,
}

#[derive(Args)]
struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// Echo every WebSocket message instead of speaking the protocol; for conformance tests.
    #[arg(long)]
    echo: bool,
    /// Go on with a log that is damaged in the middle. What is lost is told, and all clients start over.
    #[arg(long)]
    accept_loss: bool,
    /// Once ready, write {"listen":"ADDR:PORT","admin":"ADDR:PORT","pid":N} (and "tls" if there is such a listener) to this file, whole or not at all.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Args)]
struct TokenArgs {
    /// Whom the token speaks for.
    #[arg(long)]
    user: String,
    /// The one device that may use it; without this, any.
    #[arg(long)]
    device: Option<String>,
    /// How long it is good: a number and s, m, h or d.
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// Configuration file (TOML) of the gateway.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// File with the secret that signs tokens.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<String>,
    /// Data directory of the gateway, where its generated secret is.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

#[derive(Args)]
struct StoreArgs {
    /// Configuration file (TOML) of the gateway.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory of the gateway.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl StoreArgs {
    fn settings(&self) -> Result<Settings, Failure> {
        let flags: Vec<_> = self.data_dir.iter().map(|dir| ("data_dir", dir.clone())).collect();
        settings(self.config.as_deref(), &flags).map(|loaded| loaded.settings)
    }
}

fn said(done: Result<String, Fatal>) -> Result<(), Failure> {
    done.map(|text| say(&text)).map_err(|fatal| Failure { exit: fatal.exit, text: format!("tidegate: {}", fatal.reason) })
}

/// One flag per setting, made from the table.
#[derive(Default)]
struct Flags(Vec<(&'static str, String)>);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let flags = DEFINITIONS.iter().filter_map(|definition| load::flag(definition).map(|flag| (definition, flag)));
        command.next_help_heading("Settings").args(flags.map(|(definition, flag)| {
            let value = match definition.kind {
                Kind::Bool => "BOOL",
                Kind::Integer => "N",
                Kind::Path => "PATH",
                Kind::Address => "ADDR:PORT",
                Kind::List => "LIST",
                Kind::Text | Kind::Secret | Kind::Word(_) => "TEXT",
            };
            // Judged with the other layers, so that all mistakes come at once.
            Arg::new(definition.key).long(flag).value_name(value).help(render::help(definition)).allow_negative_numbers(true)
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let keys = DEFINITIONS.iter().filter(|definition| load::flag(definition).is_some()).map(|definition| definition.key);
        self.0 = keys.filter_map(|key| matches.get_one::<String>(key).map(|text| (key, text.clone()))).collect();
        Ok(())
    }
}

/// What ends the program with another code than 0.
struct Failure {
    exit: Exit,
    text: String,
}

fn usage(text: impl Into<String>) -> Failure {
    Failure { exit: Exit::Usage, text: text.into() }
}

fn serve(args: ServeArgs) -> Result<(), Failure> {
    let Loaded { settings, warnings } = settings(args.config.as_deref(), &args.flags.0)?;
    let found = secret::needed(&settings).then(|| secret::find(&settings, Missing::Create)).transpose().map_err(usage)?;
    // Before the first thread, which is the log's.
    let confined = gateway::confine(&settings, Files { config: args.config.as_deref(), ready_file: args.ready_file.as_deref() });
    let shape = match settings.log.format {
        LogFormat::Json => Shape::Json,
        LogFormat::Text => Shape::Text,
    };
    let log = Log::start(settings.log.level.word(), shape)
        .map_err(|error| Failure { exit: Exit::Failed, text: format!("cannot start the log: {error}") })?;
    tracing::info!(version = version(), changed = render::changes(&settings), "starting");
    for text in warnings.iter().chain(found.iter().filter_map(|found| found.warning.as_ref())) {
        tracing::warn!("{text}");
    }
    // Tokens are printed only if their key is a generated one: then this is somebody's first look, not a service.
    let secret_is_ours = found.as_ref().is_some_and(|found| matches!(found.source, Source::DataDir(_)));
    let secret = found.map(|found| found.secret);
    let greeted = secret.clone().filter(|_| secret_is_ours).map(|secret| (settings.clone(), secret));
    let ready_file = args.ready_file;
    let on_ready = move |ready: &Ready| {
        if let Some((settings, secret)) = &greeted {
            say(&greeting(settings, secret, ready));
        }
        if let Some(Err(error)) = ready_file.as_deref().map(|path| tell_ready(path, ready)) {
            tracing::error!(%error, "cannot write the ready file");
        }
    };
    let (echo, accept_loss) = (args.echo, args.accept_loss);
    let (config, flags) = (args.config, args.flags.0);
    let reread = move || self::settings(config.as_deref(), &flags).map(|loaded| loaded.settings).map_err(|failure| failure.text);
    let (on_ready, reread) = (Box::new(on_ready), Box::new(reread));
    let options = Options { secret, secret_is_ours, echo, accept_loss, confined, on_ready, reread };
    let done = gateway::serve(settings, options);
    if let Err(fatal) = &done {
        tracing::error!(exit = fatal.exit.code(), reason = fatal.reason, "stopped");
    }
    drop(log);
    done.map_err(|fatal| Failure { exit: fatal.exit, text: format!("tidegate: {}", fatal.reason) })
}

fn check_config(file: &Path) -> Result<(), Failure> {
    let loaded = settings(Some(file), &[])?;
    let warnings: String = loaded.warnings.iter().map(|text| format!("warning: {text}\n")).collect();
    say(&format!("{warnings}{}: no mistakes\n", file.display()));
    Ok(())
}

fn token(args: TokenArgs) -> Result<(), Failure> {
    let flags = [("auth.secret_file", args.secret_file), ("data_dir", args.data_dir)];
    let flags: Vec<_> = flags.into_iter().filter_map(|(key, text)| text.map(|text| (key, text))).collect();
    let Loaded { settings, .. } = settings(args.config.as_deref(), &flags)?;
    if !secret::needed(&settings) {
        return Err(usage("tokens come from those whom [auth] names; with auth.secret_file beside them this makes some too"));
    }
    let found = secret::find(&settings, Missing::Refuse).map_err(usage)?;
    let token = mint(&found.secret, &args.user, args.device.as_deref(), args.ttl).ok_or_else(|| {
        usage("a user has 1 to 64 bytes of A-Z a-z 0-9 _ . @ -, a device may have : too, and a token ends before the year 10000")
    })?;
    say(&format!("{token}\n"));
    Ok(())
}

/// The settings of all layers; every mistake is one line of the failure.
fn settings(file: Option<&Path>, flags: &[(&'static str, String)]) -> Result<Loaded, Failure> {
    let text = file.map(read).transpose()?;
    let environment: Vec<(String, String)> = std::env::vars_os().filter_map(ours).collect();
    let name = file.map(|file| file.display().to_string());
    let file = name.as_deref().zip(text.as_deref());
    load::load(Layers { file, environment: &environment, flags }).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let count = lines.len();
        let mistakes = if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") };
        usage(format!("{}\n{mistakes} in the configuration; nothing was started", lines.join("\n")))
    })
}

/// A variable that may be a setting. One that is not UTF-8 keeps a replacement character, which its check then shows.
fn ours((name, text): (OsString, OsString)) -> Option<(String, String)> {
    let name = name.into_string().ok()?;
    name.starts_with("TIDEGATE_").then(|| (name, text.to_string_lossy().into_owned()))
}

fn read(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let bytes = fs::read(file).map_err(|error| usage(format!("{name}: cannot read the configuration: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        usage(format!("{name}:{line}: not UTF-8, which TOML must be"))
    })
}

/// A number and its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let refused = || "allowed: a number and s, m, h or d, such as 24h".to_owned();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refused)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(refused()),
    };
    let count: u64 = digits.parse().map_err(|_| refused())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(refused)
}

fn mint(secret: &Secret, user: &str, device: Option<&str>, ttl: Duration) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    auth::mint(secret, user, device, now.as_secs()..now.checked_add(ttl)?.as_secs())
}

/// Replaces the file as a whole, so that whoever waits for it never reads half of it.
fn tell_ready(path: &Path, ready: &Ready) -> io::Result<()> {
    let Ready { listen, admin, tls } = ready;
    let tls = tls.map_or_else(String::new, |tls| format!("\"tls\":\"{tls}\","));
    let draft = path.with_added_extension(format!("{}.draft", std::process::id()));
    fs::write(&draft, format!("{{\"listen\":\"{listen}\",{tls}\"admin\":\"{admin}\",\"pid\":{}}}\n", std::process::id()))?;
    fs::rename(&draft, path)
}

/// What a newcomer needs: the page to try it, where to connect, as whom, and two lines to paste.
fn greeting(settings: &Settings, secret: &Secret, ready: &Ready) -> String {
    let token = |user| mint(secret, user, None, Duration::from_hours(24)).unwrap_or_default();
    let (ann, bo) = (token("ann"), token("bo"));
    let url = format!("ws://{}{}", ready.listen, settings.path);
    let admin = ready.admin;
    let data = settings.data_dir.display();
    format!(
        r#"tidegate {version} is ready.

  try it     http://{admin}/demo/  in two tabs, as two people
  clients    {url}  (subprotocol tidegate.v1.json or tidegate.v1)
  operators  http://{admin}/readyz  http://{admin}/metrics
  data       {data}  (with the secret that signs tokens)

Two tokens, good for 24 hours; `tidegate token --user NAME` makes more:
  ann  {ann}
  bo   {bo}

Or in two terminals. With websocat:
  (echo '{{"t":"hello","device":"cli","token":"{bo}"}}'; cat) | websocat --protocol tidegate.v1.json {url}
  (echo '{{"t":"hello","device":"cli","token":"{ann}"}}'; cat) | websocat --protocol tidegate.v1.json {url}
and then, as ann:
  {{"t":"send","rid":1,"cmid":"00112233445566778899aabbccddeeff","kind":1,"conv":"d:ann:bo","text":"hi bo"}}

Or with Python (pip install websockets), bo and then ann:
  python3 -c 'import json; from websockets.sync.client import connect
with connect("{url}", subprotocols=["tidegate.v1.json"]) as ws:
    ws.send(json.dumps({{"t": "hello", "device": "py", "token": "{bo}"}}))
    for line in ws: print(line)'
  python3 -c 'import json, uuid; from websockets.sync.client import connect
with connect("{url}", subprotocols=["tidegate.v1.json"]) as ws:
    ws.send(json.dumps({{"t": "hello", "device": "py", "token": "{ann}"}})); print(ws.recv())
    ws.send(json.dumps({{"t": "send", "rid": 1, "cmid": uuid.uuid4().hex, "kind": 1, "conv": "d:ann:bo", "text": "hi bo"}})); print(ws.recv())'

"#,
        version = version()
    )
}

/// Version, with the commit if the build was told.
fn version() -> &'static str {
    static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let commit = option_env!("TIDEGATE_COMMIT").map_or_else(String::new, |commit| format!(" ({commit})"));
        format!("{}{commit}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}

fn exit_codes() -> String {
    let codes: String = Exit::ALL.iter().map(|(exit, text)| format!("\n  {}  {text}", exit.code())).collect();
    format!("Exit codes:{codes}")
}

/// To standard output. A reader that has left, such as `head`, is no failure of ours.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
