//! Asking one address that was configured, over HTTP/1.1 on a connection that is kept.  [hyper, hyper-util, http-body-util, tokio, tokio-rustls]
//!
//! The address is fixed: nothing of a token or an answer becomes part of it, and a redirect is an answer like any other that is not 200.
//! A name is looked up on the client's own runtime, at each new connection; that and all else counts against the patience.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::trust::{self, Trust};
use crate::config::url::Url;

/// One connection to one address, for one thread.
pub struct Client {
    url: Url,
    trust: Option<Trust>,
    patience: Duration,
    answer_bytes_max: usize,
    runtime: Runtime,
    kept: Option<SendRequest<Full<Bytes>>>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Nobody is there, nobody who is trusted, or nobody who answers in time.
    Silent(String),
    /// Somebody answered at more length than any answer has.
    TooLong,
}

impl Client {
    /// Connects at the first question. A question with its answer may take `patience`; a longer answer than the bound is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(url: Url, trust: Option<Trust>, patience: Duration, answer_bytes_max: usize) -> io::Result<Self> {
        // The one thread beside this one is that of the resolver.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
        Ok(Self { url, trust, patience, answer_bytes_max, runtime, kept: None })
    }

    /// GET. Returns the status and the body.
    ///
    /// # Errors
    /// [`Failure`]; the connection is made anew for the next question.
    pub fn get(&mut self) -> Result<(u16, Vec<u8>), Failure> {
        self.ask(Method::GET, String::new())
    }

    /// POST of a JSON text. Returns the status and the body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&mut self, json: String) -> Result<(u16, Vec<u8>), Failure> {
        self.ask(Method::POST, json)
    }

    fn ask(&mut self, method: Method, body: String) -> Result<(u16, Vec<u8>), Failure> {
        let Self { url, trust, patience, answer_bytes_max, runtime, kept } = self;
        let request = || {
            Request::builder()
                .method(&method)
                .uri(url.path.as_str())
                .header("host", url.authority.as_str())
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body.clone())))
                .map_err(silent)
        };
        let asking = async {
            // One that was kept may have been closed meanwhile; then it is asked again on a new one.
            if let Some(mut sender) = kept.take()
                && sender.ready().await.is_ok()
            {
                match exchange(&mut sender, request()?, *answer_bytes_max).await {
                    Err(Failure::Silent(_)) => {}
                    Err(Failure::TooLong) => return Err(Failure::TooLong),
                    Ok(answer) => {
                        *kept = Some(sender);
                        return Ok(answer);
                    }
                }
            }
            let mut sender = connect(url, trust.as_ref()).await?;
            let answer = exchange(&mut sender, request()?, *answer_bytes_max).await?;
            *kept = Some(sender);
            Ok(answer)
        };
        within(runtime, *patience, asking)
    }
}

fn within<T>(runtime: &Runtime, patience: Duration, asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let timed = async { timeout(patience, asking).await };
    let late = || Failure::Silent(format!("no answer within {} ms", patience.as_millis()));
    runtime.block_on(timed).unwrap_or_else(|_| Err(late()))
}

/// A connection to the first address of the host that takes one.
async fn connect(url: &Url, trust: Option<&Trust>) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let addresses = lookup_host((url.host.as_str(), url.port)).await.map_err(silent)?;
    let mut connected = Err(Failure::Silent(format!("{} has no address", url.host)));
    for address in addresses {
        connected = TcpStream::connect(address).await.map_err(silent);
        if connected.is_ok() {
            break;
        }
    }
    let stream = connected?;
    let Some(trust) = trust else { return speak(stream).await };
    let name = trust::name(&url.host).map_err(Failure::Silent)?;
    let stream = TlsConnector::from(trust.0.clone()).connect(name, stream).await.map_err(silent)?;
    speak(stream).await
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(silent)?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    answer_bytes_max: usize,
) -> Result<(u16, Vec<u8>), Failure> {
    let answer = sender.send_request(request).await.map_err(silent)?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), answer_bytes_max).collect().await;
    let body = body.map_err(|error| if error.is::<LengthLimitError>() { Failure::TooLong } else { silent(error) })?;
    Ok((status, body.to_bytes().to_vec()))
}

fn silent(error: impl fmt::Display) -> Failure {
    Failure::Silent(error.to_string())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(why) => f.write_str(why),
            Self::TooLong => f.write_str("the answer is too long"),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &self.url).finish_non_exhaustive()
    }
}
