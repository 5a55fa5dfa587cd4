//! The program as an operator meets it: the real binary, its output, its exit codes, and the pages that describe them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tidegate::config::settings::DEFINITIONS;
use tidegate::config::{Exit, Secret};
use tidegate::session::auth::{AuthError, Verifier};

/// A directory of its own in which the program runs; removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tidegate-command-line-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDEGATE_") {
                command.env_remove(name);
            }
        }
        command.args(args).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// Starts `serve` on ports of the kernel's choice and on the driver of this run, and waits until it is ready.
    fn serve(&self, args: &[&str]) -> Running {
        let ready = self.0.join("ready.json");
        let _ = fs::remove_file(&ready);
        let ports = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--ready-file", "ready.json"];
        let mut command = self.command(&[&ports, args].concat());
        if let Ok(driver) = std::env::var("TIDEGATE_TEST_DRIVER") {
            command.args(["--driver", &driver]);
        }
        command.stdout(fs::File::create(self.0.join("stdout")).unwrap());
        command.stderr(fs::File::create(self.0.join("stderr")).unwrap());
        let mut running = Running { child: command.spawn().unwrap(), listen: String::new(), admin: String::new() };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            let stderr = || fs::read_to_string(self.0.join("stderr")).unwrap();
            assert!(running.child.try_wait().unwrap().is_none(), "it ended: {}", stderr());
            assert!(Instant::now() < deadline, "never ready: {}", stderr());
            sleep(Duration::from_millis(10));
        }
        let told: serde_json::Value = serde_json::from_str(&fs::read_to_string(ready).unwrap()).unwrap();
        assert_eq!(told["pid"], running.child.id());
        running.listen = told["listen"].as_str().unwrap().to_owned();
        running.admin = told["admin"].as_str().unwrap().to_owned();
        running
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A gateway that ends with the test.
struct Running {
    child: Child,
    listen: String,
    admin: String,
}

impl Running {
    /// Sends the signal and waits for the exit code.
    fn end(&mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end on SIG{signal}");
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A page of the repository.
fn page(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// All mistakes of a file arrive on standard error, one line each, and the code is 2.
#[test]
fn check_config_tells_all_mistakes() {
    let place = Place::new("check");
    place.file("bad.toml", "lsten = \"127.0.0.1:1\"\n[store]\nlevel = 9\nlinger = \"5 s\"\n[drain]\nwindow_ms = \"30s\"\n");
    let ran = place.run(&["check-config", "bad.toml"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines[0], "bad.toml:1:1: unknown key lsten; did you mean listen?");
    assert_eq!(lines[1], "bad.toml:3:9: store.level is 9; allowed: 0 to 2; try 2");
    assert!(lines[2].starts_with("bad.toml:4:1: unknown key store.linger"), "{}", lines[2]);
    assert_eq!(lines[3], "bad.toml:6:13: drain.window_ms is \"30s\"; allowed: 0 to 3600000; try 30000");
    assert_eq!(lines[4], "4 mistakes in the configuration; nothing was started");
    assert_eq!(lines.len(), 5);

    place.file("good.toml", "[store]\nlevel = 1\n");
    let ran = place.run(&["check-config", "good.toml"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.starts_with("warning: store.level is below 2"), "{}", ran.out);
    assert!(ran.out.ends_with("good.toml: no mistakes\n"), "{}", ran.out);

    let ran = place.run(&["check-config", "absent.toml"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.starts_with("absent.toml: cannot read the configuration"), "{}", ran.err);
    fs::write(place.0.join("latin.toml"), b"node = \"a\"\npath = \"/\xe4\"\n").unwrap();
    let ran = place.run(&["check-config", "latin.toml"]);
    assert_eq!((ran.code, ran.err.starts_with("latin.toml:2: not UTF-8")), (Some(2), true), "{}", ran.err);
}

/// The environment is a layer: it counts in a check, and a mistake in it is told under its name.
#[test]
fn the_environment_counts() {
    let place = Place::new("environment");
    place.file("t.toml", "listen = \"0.0.0.0:80\"\n");
    assert_eq!(place.run(&["check-config", "t.toml"]).code, Some(2));
    let with =
        |name: &str, text: &str| -> Ran { place.command(&["check-config", "t.toml"]).env(name, text).output().unwrap().into() };
    assert_eq!(with("TIDEGATE_AUTH_SECRET_FILE", "/etc/tidegate/secret").code, Some(0));
    let ran = with("TIDEGATE_STORE_LEVEL", "much");
    assert!(ran.err.contains("environment TIDEGATE_STORE_LEVEL: store.level is \"much\"; allowed: 0 to 2"), "{}", ran.err);
}

/// The default file passes its own check, and the copy in the documentation is the one this program prints.
#[test]
fn default_config_is_accepted_and_documented() {
    let place = Place::new("default");
    let ran = place.run(&["default-config"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    place.file("default.toml", &ran.out);
    let checked = place.run(&["check-config", "default.toml"]);
    assert_eq!((checked.code, checked.out.as_str()), (Some(0), "default.toml: no mistakes\n"));
    assert!(ran.out == page("docs/configuration.toml"), "run `tidegate default-config > docs/configuration.toml`");
}

/// A token is made from the secret of a file or of the data directory, for as long as asked, and is what the gateway accepts.
#[test]
fn tokens_are_made_for_a_user() {
    let place = Place::new("token");
    let ran = place.run(&["token", "--user", "ann"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("no secret in ./tidegate-data/secret; start the gateway there once"), "{}", ran.err);
    assert!(!place.0.join("tidegate-data").exists());

    let key = "0123456789abcdef0123456789abcdef";
    place.file("key", &format!("{key}\n"));
    let ran = place.run(&["token", "--user", "ann", "--device", "phone", "--ttl", "2h", "--secret-file", "key"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let verifier = Verifier::new(&Secret::new(key.as_bytes().to_vec()).unwrap(), 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now_ms = u64::try_from(now.as_millis()).unwrap();
    let verify = |device: &str, after_s: u64| verifier.verify(ran.out.trim_end(), device, now_ms + after_s * 1000).map(|_| ());
    assert_eq!(verify("phone", 7_100), Ok(()));
    assert_eq!(verify("laptop", 0), Err(AuthError::Invalid));
    assert_eq!(verify("phone", 7_300), Err(AuthError::Expired));

    for wrong in [["--user", "a:b"], ["--user", ""]] {
        assert_eq!(place.run(&[&["token", "--secret-file", "key"], &wrong[..]].concat()).code, Some(2), "{wrong:?}");
    }
    for wrong in ["24", "h", "", "-1h", "1w", "9999999999999999d"] {
        assert_eq!(place.run(&["token", "--user", "ann", "--secret-file", "key", "--ttl", wrong]).code, Some(2), "{wrong}");
    }
    assert_eq!(place.run(&["token"]).code, Some(2));
}

/// Help and version are no mistakes; everything unknown is.
#[test]
fn usage_has_its_codes() {
    let place = Place::new("usage");
    for args in [&["--version"][..], &["version"], &["--help"], &["serve", "--help"], &["help", "token"]] {
        assert_eq!(place.run(args).code, Some(0), "{args:?}");
    }
    for args in
        [&["--lisen", "x"][..], &["serve", "--lisen", "x"], &["start"], &["check-config"], &["serve", "--auth-secret", "x"]]
    {
        assert_eq!(place.run(args).code, Some(2), "{args:?}");
    }
    let version = place.run(&["--version"]).out;
    assert!(version.starts_with(concat!("tidegate ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(place.run(&["version"]).out.contains("epoll"));
}

/// What is dangerous refuses to start and names the remedy.
#[test]
fn open_doors_are_refused() {
    let place = Place::new("doors");
    let told = [
        (&["serve", "--listen", "0.0.0.0:0"][..], "set auth.secret_file"),
        (&["serve", "--admin-listen", "0.0.0.0:0"], "admin.allow_remote = true"),
        (&["serve", "--driver", "kqueue"], "\"auto\""),
        (&["serve", "--auth-secret-file", "absent"], "cannot read the secret in absent"),
        (&["serve", "--config", "absent.toml"], "absent.toml: cannot read the configuration"),
    ];
    for (args, remedy) in told {
        let ran = place.run(args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.err.contains(remedy), "{}", ran.err);
    }
    assert!(!place.0.join("tidegate-data").exists());
}

/// A first start: it says where it is, to people and to programs, greets with tokens that its own secret signs, and ends with 0.
#[test]
fn a_first_start_greets_and_drains() {
    let place = Place::new("start");
    let mut running = place.serve(&[]);
    let greeting = fs::read_to_string(place.0.join("stdout")).unwrap();
    assert!(greeting.contains(&format!("ws://{}/ws", running.listen)), "{greeting}");
    assert!(greeting.contains(&format!("http://{}/readyz", running.admin)), "{greeting}");
    let key = fs::read_to_string(place.0.join("tidegate-data/secret")).unwrap();
    let verifier = Verifier::new(&Secret::new(key.trim_end().into()).unwrap(), 0);
    for user in ["ann", "bo"] {
        let line = greeting.lines().find(|line| line.trim_start().starts_with(&format!("{user} "))).unwrap();
        let identity = verifier.verify(line.split_whitespace().last().unwrap(), "any", 1_000).unwrap();
        assert_eq!(identity.user.as_str(), user);
    }
    assert_eq!(place.run(&["token", "--user", "ann"]).code, Some(0));
    assert_eq!(running.end("TERM"), Some(0));
    let log = fs::read_to_string(place.0.join("stderr")).unwrap();
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "every line is JSON: {log}");
    assert!(!log.contains("eyJ"), "no token in the log: {log}");
}

/// With a secret of one's own nobody is greeted: a service prints no tokens.
#[test]
fn a_service_prints_no_tokens() {
    let place = Place::new("service");
    place.file("key", &"k".repeat(32));
    let mut running = place.serve(&["--auth-secret-file", "key", "--log-format", "text"]);
    assert_eq!(fs::read_to_string(place.0.join("stdout")).unwrap(), "");
    assert!(!place.0.join("tidegate-data/secret").exists());
    assert_eq!(running.end("INT"), Some(0));
}

/// A second gateway in the same directory, or on the same port, ends at once with its own code and leaves the first alone.
#[test]
fn a_second_gateway_is_told_apart() {
    let place = Place::new("second");
    let mut running = place.serve(&[]);
    let ran = place.run(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(ran.code, Some(i32::from(Exit::DataDirLocked.code())), "{}", ran.err);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for doors in [["--listen", &taken, "--admin-listen", "127.0.0.1:0"], ["--listen", "127.0.0.1:0", "--admin-listen", &taken]] {
        let listener = TcpListener::bind(&taken);
        let ran = place.run(&[&["serve", "--data-dir", "other"], &doors[..]].concat());
        assert_eq!(ran.code, Some(i32::from(Exit::AddressInUse.code())), "{doors:?}: {}", ran.err);
        drop(listener);
    }
    assert_eq!(running.end("TERM"), Some(0));
}

/// The page for operators has every exit code with the program's own words.
#[test]
fn exit_codes_are_documented() {
    let operations = page("docs/operations.md");
    let help = Place::new("codes").run(&["serve", "--help"]).out;
    let help: String = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (exit, text) in Exit::ALL {
        assert!(operations.contains(&format!("| {} | {text}", exit.code())), "docs/operations.md lacks {}: {text}", exit.code());
        assert!(help.contains(&format!("{} {text}", exit.code())), "{}", exit.code());
    }
}

/// No setting is there for show: each is read by some room beside the one that parses it.
#[test]
fn every_setting_is_read_somewhere() {
    // Answered while the settings are checked, or by the search for the secret.
    let within = ["admin.allow_remote", "auth.secret", "auth.secret_file", "driver"];
    let mut rooms = String::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("config") {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                rooms += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for definition in DEFINITIONS {
        let section = definition.key.rsplit_once('.').map_or("settings", |(section, _)| section);
        let field = definition.key.rsplit('.').next().unwrap();
        // `limits` is also a module, so it goes by another name where it is read.
        let read = [section, "bounds"].iter().any(|owner| rooms.contains(&format!("{owner}.{field}")));
        assert!(read || within.contains(&definition.key), "{} has no effect", definition.key);
    }
}
