//! `tidegate ctl`: asks a running gateway over its admin listener, and shows the answer to a person or, with `--json`, to a program.
//!
//! One request per call, over plain HTTP/1.1: the admin listener speaks it on loopback, and nothing here needs more.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::config::Exit;

/// What `ctl` is asked.
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// Admin listener of the gateway.
    #[arg(long, value_name = "ADDR:PORT", env = "TIDEGATE_ADMIN_LISTEN", default_value = "127.0.0.1:8081", global = true)]
    admin: SocketAddr,
    /// Print the answer as the JSON it is.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Version, protocols and process of the gateway.
    Version,
    /// Whether clients may come, and if not, why. Exit 1 if not.
    Ready,
    /// Settings in force; secrets are masked.
    Config {
        /// Only this one, such as `store.level`.
        key: Option<String>,
        /// Only what is not the default.
        #[arg(long)]
        changed: bool,
    },
    /// The budget of memory, what is given up for it, and who was closed for want of it.
    Memory,
    /// Connected devices.
    Connections(Whom),
    /// Close connections with 4403: of a user, of one device, or of an address.
    Kick(Whom),
    /// Make tokens of a user pass no more, and close its connections with 4401. Whoever has another token comes back.
    Revoke {
        /// Whose.
        #[arg(long)]
        user: String,
        /// Only what this device shows.
        #[arg(long)]
        device: Option<String>,
        /// Only the token of this `jti`.
        #[arg(long, conflicts_with = "before")]
        jti: Option<String>,
        /// Only tokens issued before this Unix second; without it: up to now.
        #[arg(long, value_name = "SECONDS")]
        before: Option<u64>,
        /// Unix second at which the last of them has ended by itself, so that the revocation may be forgotten; without it: kept for good.
        #[arg(long, value_name = "SECONDS")]
        until: Option<u64>,
    },
    /// Devices of a user.
    User {
        /// The user.
        user: String,
    },
    /// Conversations of a user with what is unread.
    Unread {
        /// The user.
        user: String,
    },
    /// Head, floor and members of a conversation.
    Conversation {
        /// Its id, such as `g:team`.
        conv: String,
    },
    /// Send a message of the operator's side; done when it is durable.
    Send {
        /// Conversation.
        conv: String,
        /// What to say.
        text: String,
        /// Whom the members see as its sender.
        #[arg(long, default_value = "system")]
        from: String,
        /// 32 hex digits of your choice: the same message sent again counts once.
        #[arg(long)]
        cmid: Option<String>,
        /// Does not count as unread.
        #[arg(long)]
        quiet: bool,
    },
    /// Create a group, channel or system conversation, or change its members.
    Group {
        #[command(subcommand)]
        change: Change,
    },
    /// What concerns TLS.
    Tls {
        #[command(subcommand)]
        change: TlsChange,
    },
    /// Tell all clients to go and end, as SIGTERM does.
    Drain,
}

#[derive(Subcommand, Debug)]
enum TlsChange {
    /// Read certificates and keys again, as SIGHUP does. Connections stay; a bad file changes nothing.
    Reload,
}

#[derive(Args, Debug)]
struct Whom {
    /// Of this user.
    #[arg(long)]
    user: Option<String>,
    /// With this device.
    #[arg(long)]
    device: Option<String>,
    /// From this IP address.
    #[arg(long)]
    address: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Change {
    /// Create it with these members.
    Create {
        /// Its id: g:NAME, c:NAME or s:NAME.
        conv: String,
        /// Members.
        users: Vec<String>,
    },
    /// Add members.
    Add {
        /// Its id.
        conv: String,
        /// Who joins.
        #[arg(required = true)]
        users: Vec<String>,
    },
    /// Remove members.
    Remove {
        /// Its id.
        conv: String,
        /// Who goes.
        #[arg(required = true)]
        users: Vec<String>,
    },
}

/// Carries out one command; what it prints is the result.
///
/// # Errors
/// The exit code and a line for standard error: [`Exit::Failed`] when the gateway refused, [`Exit::NoAnswer`] when it cannot be
/// reached or does not answer.
pub fn run(args: &CtlArgs) -> Result<String, (Exit, String)> {
    let gateway = Gateway(args.admin);
    let (answer, shown): (Value, fn(&Value) -> String) = match &args.command {
        Command::Version => (gateway.get("/v1/version")?, fields),
        Command::Ready => {
            let (status, answer) = gateway.call("GET", "/readyz", None)?;
            let text = if args.json { format!("{answer}\n") } else { fields(&answer) };
            return if status == 200 { Ok(text) } else { Err((Exit::Failed, text.trim_end().to_owned())) };
        }
        Command::Config { key, changed } => (config(gateway.get("/v1/config")?, key.as_deref(), *changed)?, settings),
        Command::Memory => (gateway.get("/v1/memory")?, memory),
        Command::Connections(whom) => (connections(gateway, whom)?, devices),
        Command::Kick(whom) => (gateway.post("/v1/kick", &whom.body())?, fields),
        Command::Revoke { user, device, jti, before, until } => {
            let body = json!({ "device": device, "jti": jti, "before_s": before, "until_s": until });
            (gateway.post(&format!("/v1/users/{}/revoke", path(user)), &body)?, fields)
        }
        Command::User { user } => (gateway.get(&format!("/v1/users/{}", path(user)))?, devices),
        Command::Unread { user } => (unread(gateway, user)?, conversations),
        Command::Conversation { conv } => (gateway.get(&format!("/v1/conversations/{}", path(conv)))?, fields),
        Command::Send { conv, text, from, cmid, quiet } => {
            let mut body = json!({ "text": text, "from": from, "quiet": quiet });
            if let Some(cmid) = cmid {
                body["cmid"] = cmid.as_str().into();
            }
            (gateway.post(&format!("/v1/conversations/{}/messages", path(conv)), &body)?, fields)
        }
        Command::Group { change } => {
            let answer = match change {
                Change::Create { conv, users } => gateway.post("/v1/groups", &json!({ "conv": conv, "members": users }))?,
                Change::Add { conv, users } => {
                    gateway.post(&format!("/v1/groups/{}/members", path(conv)), &json!({ "add": users }))?
                }
                Change::Remove { conv, users } => {
                    gateway.post(&format!("/v1/groups/{}/members", path(conv)), &json!({ "remove": users }))?
                }
            };
            (answer, fields)
        }
        Command::Tls { change: TlsChange::Reload } => (gateway.post("/v1/tls/reload", &json!({}))?, fields),
        Command::Drain => (gateway.post("/v1/drain", &json!({}))?, fields),
    };
    Ok(if args.json { format!("{answer}\n") } else { shown(&answer) })
}

impl Whom {
    fn body(&self) -> Value {
        let mut body = json!({});
        for (key, value) in [("user", &self.user), ("device", &self.device), ("address", &self.address)] {
            if let Some(value) = value {
                body[key] = value.as_str().into();
            }
        }
        body
    }
}

/// Every page of the list, put together.
fn connections(gateway: Gateway, whom: &Whom) -> Result<Value, (Exit, String)> {
    let given = [("user", &whom.user), ("device", &whom.device), ("address", &whom.address)];
    let given = given.iter().filter_map(|(key, value)| Some(format!("&{key}={}", path(value.as_ref()?))));
    let query: String = given.collect();
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let mut page = gateway.get(&format!("/v1/connections?from={from}{query}"))?;
        if let Value::Array(found) = page["connections"].take() {
            all.extend(found);
        }
        match page["next"].as_u64() {
            Some(next) if next > from => from = next,
            _ => return Ok(json!({ "connections": all })),
        }
    }
}

/// Every page of a user's conversations, put together.
fn unread(gateway: Gateway, user: &str) -> Result<Value, (Exit, String)> {
    let mut all = Vec::new();
    let mut total = 0;
    let mut cursor = String::new();
    loop {
        let mut page = gateway.get(&format!("/v1/users/{}/conversations?cursor={}", path(user), path(&cursor)))?;
        total += page["unread"].as_u64().unwrap_or(0);
        if let Value::Array(found) = page["conversations"].take() {
            all.extend(found);
        }
        match page["cursor"].as_str() {
            Some(next) if next != cursor => cursor = next.to_owned(),
            _ => return Ok(json!({ "user": user, "unread": total, "conversations": all })),
        }
    }
}

fn config(answer: Value, key: Option<&str>, changed: bool) -> Result<Value, (Exit, String)> {
    let Value::Object(mut all) = answer else { return Ok(answer) };
    if let Some(key) = key {
        let found = all.remove(key).ok_or_else(|| (Exit::Usage, format!("no setting `{key}`")))?;
        return Ok(json!({ key: found }));
    }
    all.retain(|_, entry| !changed || entry["changed"] == true);
    Ok(Value::Object(all))
}

/// The admin listener of one gateway.
#[derive(Clone, Copy)]
struct Gateway(SocketAddr);

impl Gateway {
    fn get(self, path: &str) -> Result<Value, (Exit, String)> {
        self.good("GET", path, None)
    }

    fn post(self, path: &str, body: &Value) -> Result<Value, (Exit, String)> {
        self.good("POST", path, Some(body))
    }

    fn good(self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, (Exit, String)> {
        let (status, answer) = self.call(method, path, body)?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let text = |key: &str| answer[key].as_str().unwrap_or("?").to_owned();
        Err((Exit::Failed, format!("{}: {}; {}", text("error"), text("detail"), text("remedy"))))
    }

    fn call(self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), (Exit, String)> {
        let away = |error: &dyn std::fmt::Display| {
            (Exit::NoAnswer, format!("no gateway answers at {}: {error}; name its admin.listen with --admin", self.0))
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.0,
            body.len()
        );
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.0, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| away(&error))?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let value = answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
        status.zip(value).ok_or_else(|| away(&"what answers is no admin listener"))
    }
}

/// One path segment or query value: what is not plain is percent-encoded.
fn path(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'@') {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").expect("a string takes all");
        }
        path
    })
}

/// `key  value`, one per line; lists on one line.
fn fields(answer: &Value) -> String {
    let Value::Object(all) = answer else { return format!("{answer}\n") };
    let rows: Vec<Vec<String>> = all.iter().map(|(key, value)| vec![key.clone(), plain(value)]).collect();
    table(&[], &rows)
}

fn settings(answer: &Value) -> String {
    let Value::Object(all) = answer else { return format!("{answer}\n") };
    let row = |(key, entry): (&String, &Value)| {
        let mark = if entry["changed"] == true { "*" } else { "" };
        let from = entry["from"].as_str().unwrap_or(mark);
        vec![key.clone(), plain(&entry["value"]), from.to_owned()]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&["setting", "value", "changed"], &rows)
}

fn memory(answer: &Value) -> String {
    let closed = columns(&answer["closed"], &["unix_ms", "user", "device", "address", "reactor", "queued_bytes", "held_bytes"]);
    let mut rest = answer.clone();
    rest["closed"] = answer["closed"].as_array().map_or(0, Vec::len).into();
    format!("{}{closed}", fields(&rest))
}

fn devices(answer: &Value) -> String {
    let list = if answer["connections"].is_array() { &answer["connections"] } else { &answer["devices"] };
    columns(list, &["user", "device", "platform", "address", "encoding", "reactor", "pos", "unacknowledged", "queued_bytes"])
}

fn conversations(answer: &Value) -> String {
    columns(&answer["conversations"], &["conv", "head", "floor", "read", "unread"])
}

fn columns(list: &Value, keys: &[&str]) -> String {
    let rows = list.as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = rows.iter().map(|row| keys.iter().map(|key| plain(&row[*key])).collect()).collect();
    table(keys, &rows)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        // A member of a conversation.
        Value::Object(all) if all.get("joined") == Some(&json!(1)) => plain(&all["user"]),
        Value::Object(all) if all.contains_key("joined") => format!("{} from {}", plain(&value["user"]), plain(&value["joined"])),
        other => other.to_string(),
    }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0).max(head.len());
    let head: Vec<String> = head.iter().map(|text| text.to_uppercase()).collect();
    let lines = || std::iter::once(&head).filter(|head| !head.is_empty()).chain(rows);
    let widths: Vec<usize> = (0..count)
        .map(|column| lines().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max().unwrap_or(0))
        .collect();
    lines().fold(String::new(), |mut text, row| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        text
    })
}

/// Longer than a few threads behind the listener may take, one after the other.
const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns are as wide as their widest cell, and no line ends in blanks.
    #[test]
    fn a_table_is_aligned() {
        let list = json!([{ "conv": "g:team", "head": 7 }, { "conv": "d:al:bo", "head": 12, "unread": 3 }]);
        let wanted = "CONV     HEAD  UNREAD\ng:team   7     -\nd:al:bo  12    3\n";
        assert_eq!(columns(&list, &["conv", "head", "unread"]), wanted);
    }

    /// Nothing of an id can leave its segment.
    #[test]
    fn ids_are_one_segment() {
        assert_eq!(path("g:team"), "g:team");
        assert_eq!(path("a/b?c d"), "a%2Fb%3Fc%20d");
    }
}
