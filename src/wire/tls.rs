//! TLS between the bytes a driver lends and the codec: records in, plaintext out, and back. RFC 8446 and RFC 5246.     [rustls]
//!
//! ```text
//!  lent:  [ record | record | rec      next call:  ord | ...
//!             └ plain  └ plain  └ Session::incoming
//!
//!  handshake:  ClientHello ─► hold ─► step: keys, signature, everything we say in one go ─► client's Finished ─► step ─► done
//! ```
//!
//! The one file that knows the unbuffered interface of rustls: no socket and no buffer of its own stands behind it. A connection that
//! rests keeps the keys of both directions and nothing else; what is cut by the end of a call is copied and freed with its rest.
//! Nothing is computed, nor any state made, before a whole first record is here: until then a connection costs what it sent.
//!
//! As the rest of `wire` it opens nothing and logs nothing. It does draw random bytes and ask for the time of day, inside rustls:
//! handshakes and tickets need both, and a test that replays them would prove nothing about TLS.

mod keys;

use std::mem;

use rustls::HandshakeKind;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};

use crate::limits::{TLS_HANDSHAKE_BYTES_MAX, TLS_RECORD_BYTES_MAX};
pub use keys::{Clients, Keys, KeysError, Pair, Policy, Version};

/// One connection's TLS.
#[derive(Default)]
pub struct Session {
    /// None before the first record, and when it was no good.
    connection: Option<Box<UnbufferedServerConnection>>,
    /// Bytes that are not a whole record yet, or belong to a handshake that waits for its turn.
    incoming: Vec<u8>,
    is_open: bool,
    has_said_goodbye: bool,
}

/// What bytes led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The handshake is over, with this call.
    pub opened: Option<Opened>,
    /// The peer said close_notify: nothing more comes.
    pub has_ended: bool,
}

/// How a handshake went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opened {
    /// With certificates and signatures.
    Full,
    /// From a ticket.
    Resumed,
}

/// Why a connection cannot go on. What the peer is to be told has been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The first byte is no handshake: HTTP in the clear, or noise. Nothing was written.
    NotTls,
    /// More handshake than any honest peer has.
    TooLong,
    /// A rule of TLS was broken, or nothing in common was found; the alert is written.
    Broken,
    /// So much was sent with one key that no more may be.
    Exhausted,
}

impl Session {
    /// Whether keys are not agreed on yet: bytes go to [`Session::hold`], and [`Session::step`] is called when it is this connection's turn.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        !self.is_open
    }

    /// Bytes that are kept because what they belong to is not whole, or waits for its turn.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.incoming.len()
    }

    /// Bytes of memory that these take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.incoming.capacity()
    }

    /// Keeps bytes of a handshake; `true` when a step has something to do: there is a whole record, or, behind the first, one that will never
    /// be good.
    ///
    /// # Errors
    /// [`Fault::NotTls`] and [`Fault::TooLong`], before anything was computed.
    pub fn hold(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        if self.incoming.len().saturating_add(bytes.len()) > TLS_HANDSHAKE_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        self.incoming.extend_from_slice(bytes);
        if self.connection.is_none() && self.incoming.first().is_some_and(|&kind| kind != HANDSHAKE_RECORD) {
            return Err(Fault::NotTls);
        }
        Ok(has_record(&self.incoming) || self.connection.is_some() && is_hopeless(&self.incoming))
    }

    /// Goes on with the handshake: the expensive part of a connection. What must be sent is appended to `out`; what came behind the
    /// handshake, to `plain`.
    ///
    /// # Errors
    /// [`Fault::Broken`]; `out` has the alert.
    pub fn step(&mut self, keys: &Keys, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Progress, Fault> {
        if self.connection.is_none() {
            let connection = UnbufferedServerConnection::new(keys.config()).map_err(|_| Fault::Broken)?;
            self.connection = Some(Box::new(connection));
        }
        self.advance_held(plain, out)
    }

    /// Opens the records in `bytes`, which are overwritten. Plaintext is appended to `plain`, at most as much as came in; what must be
    /// said at once, such as an alert, to `out`.
    ///
    /// # Errors
    /// [`Fault::Broken`]; `plain` has what came before, `out` the alert.
    pub fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Progress, Fault> {
        if self.incoming.is_empty() {
            let (progress, used) = self.advance(bytes, plain, out)?;
            self.incoming = bytes.get(used..).unwrap_or_default().to_vec();
            return Ok(progress);
        }
        self.incoming.extend_from_slice(bytes);
        // A record is looked at once it is whole, not at each byte of it.
        if !has_record(&self.incoming) && !is_hopeless(&self.incoming) {
            return Ok(Progress::default());
        }
        self.advance_held(plain, out)
    }

    /// Seals `plain` into records appended to `out`.
    ///
    /// # Errors
    /// [`Fault::Broken`] before the handshake is over or after the peer was told goodbye; [`Fault::Exhausted`].
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let records = (plain.len() / RECORD_PLAIN_BYTES).saturating_add(1);
        let room = records.saturating_mul(RECORD_OVERHEAD_BYTES).saturating_add(plain.len());
        self.write(room, out, |traffic, room| traffic.encrypt(plain, room))
    }

    /// Appends close_notify to `out`, once; nothing is sealed after it. Nothing is said where no keys were agreed on.
    pub fn say_goodbye(&mut self, out: &mut Vec<u8>) {
        if self.is_open && !mem::replace(&mut self.has_said_goodbye, true) {
            // A connection that cannot say it ends without.
            let _ = self.write(RECORD_OVERHEAD_BYTES, out, |traffic, room| traffic.queue_close_notify(room));
        }
    }

    /// Runs the state machine over what is kept, and goes on keeping what is not used up. That is not copied while all of it must wait, or each
    /// small record of a long message would cost what all before it cost.
    fn advance_held(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Progress, Fault> {
        let mut held = mem::take(&mut self.incoming);
        let (progress, used) = self.advance(&mut held, plain, out)?;
        self.incoming = if used == 0 { held } else { held.get(used..).unwrap_or_default().to_vec() };
        Ok(progress)
    }

    /// Runs the state machine over `bytes`. Returns how many of them are used up; the others are to be kept.
    fn advance(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(Progress, usize), Fault> {
        let mut progress = Progress::default();
        let Some(connection) = &mut self.connection else { return Err(Fault::Broken) };
        let mut used = 0;
        let result = loop {
            let Some(rest) = bytes.get_mut(used..) else { break Err(Fault::Broken) };
            let UnbufferedStatus { discard, state } = connection.process_tls_records(rest);
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => progress.has_ended = true,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => {
                    used = used.saturating_add(discard);
                    break Ok(());
                }
                // Early data is not offered, and there are no other states.
                Ok(_) | Err(_) => break Err(Fault::Broken),
            }
            used = used.saturating_add(discard);
        };
        if let Err(fault) = result {
            let rest = bytes.get_mut(used..).unwrap_or_default();
            // An alert, and what had been said before it.
            while connection.wants_write()
                && let Ok(ConnectionState::EncodeTlsData(data)) = connection.process_tls_records(rest).state
            {
                encode(data, out)?;
            }
            self.connection = None;
            return Err(fault);
        }
        if !self.is_open && !connection.is_handshaking() {
            self.is_open = true;
            let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
            progress.opened = Some(if is_resumed { Opened::Resumed } else { Opened::Full });
        }
        let kept_max = if self.is_open { TLS_RECORD_BYTES_MAX } else { TLS_HANDSHAKE_BYTES_MAX };
        if bytes.len().saturating_sub(used) > kept_max {
            return Err(Fault::TooLong);
        }
        Ok((progress, used))
    }

    /// Writes what is queued inside, then calls `put` with at least `room` bytes.
    fn write(
        &mut self,
        room: usize,
        out: &mut Vec<u8>,
        mut put: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Fault> {
        let Some(connection) = &mut self.connection else { return Err(Fault::Broken) };
        loop {
            // What is kept is part of a record, or of a handshake message, of which the state machine may hold a place.
            match connection.process_tls_records(&mut self.incoming).state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, out)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => {}
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return append(out, room, |room| match put(&mut traffic, room) {
                        Ok(count) => Ok(count),
                        Err(EncryptError::InsufficientSize(more)) => Err(Some(more.required_size)),
                        Err(EncryptError::EncryptExhausted) => Err(None),
                    })
                    .map_err(|_| Fault::Exhausted);
                }
                _ => return Err(Fault::Broken),
            }
        }
    }
}

/// Whether `bytes` begin with a whole record.
fn has_record(bytes: &[u8]) -> bool {
    let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk() else { return false };
    rest.len() >= usize::from(u16::from_be_bytes([high, low]))
}

/// Whether `bytes` begin with the header of a record that there is not, or of one that is too long: to wait for the rest is no use.
fn is_hopeless(bytes: &[u8]) -> bool {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk() else { return false };
    !RECORDS.contains(&kind) || RECORD_HEAD_BYTES + usize::from(u16::from_be_bytes([high, low])) > TLS_RECORD_BYTES_MAX
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), Fault> {
    append(out, 0, |room| match data.encode(room) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(more)) => Err(Some(more.required_size)),
        Err(EncodeError::AlreadyEncoded) => Err(None),
    })
}

/// Lets `put` write behind the end of `out`, into `room` bytes, or a second time into as many as it then asks for.
fn append(out: &mut Vec<u8>, room: usize, mut put: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> Result<(), Fault> {
    let start = out.len();
    let mut end = start.saturating_add(room);
    for _ in 0..2 {
        out.resize(end, 0);
        match put(out.get_mut(start..).unwrap_or_default()) {
            Ok(count) => {
                out.truncate(start.saturating_add(count));
                return Ok(());
            }
            Err(Some(required)) => end = start.saturating_add(required),
            Err(None) => break,
        }
    }
    out.truncate(start);
    Err(Fault::Broken)
}

/// Content type of a record with a handshake message (RFC 8446 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Content types of all records: of change_cipher_spec, alerts, handshakes and data.
const RECORDS: std::ops::RangeInclusive<u8> = 20..=23;
/// Content type, version and length.
const RECORD_HEAD_BYTES: usize = 5;
/// Plaintext of one record (RFC 8446 5.1).
const RECORD_PLAIN_BYTES: usize = 16_384;
/// Header, inner type and tag of a record; the explicit nonce of TLS 1.2.
const RECORD_OVERHEAD_BYTES: usize = 64;

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use proptest::prelude::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::client::Resumption;
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// Keys for `localhost`, and a client that trusts them and speaks one version.
    fn both(version: Version) -> (Keys, Arc<ClientConfig>) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let pair = Pair { name: "test".to_owned(), chain: cert.pem().into(), key: signing_key.serialize_pem().into() };
        let keys = Keys::new(&[pair], Policy::default(), 3_600).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let versions = if version == Version::Tls13 { [&TLS13] } else { [&TLS12] };
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        (keys, Arc::new(config))
    }

    fn client(config: &Arc<ClientConfig>) -> ClientConnection {
        ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap()
    }

    /// What a client wants to send.
    fn sent(client: &mut ClientConnection) -> Vec<u8> {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        out
    }

    fn take(client: &mut ClientConnection, bytes: &[u8]) -> Vec<u8> {
        let (mut rest, mut plain) = (bytes, Vec::new());
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
            let mut chunk = vec![0; 65_536];
            while let Ok(count @ 1..) = client.reader().read(&mut chunk) {
                plain.extend_from_slice(&chunk[..count]);
            }
        }
        plain
    }

    /// Gives bytes to a session in pieces of the sizes `chunks`, over and over; what it found and what it said.
    fn give(session: &mut Session, keys: &Keys, bytes: &[u8], chunks: &[usize]) -> (Vec<u8>, Vec<u8>, Option<Opened>) {
        let (mut plain, mut out, mut opened) = (Vec::new(), Vec::new(), None);
        let mut sizes = chunks.iter().cycle();
        let mut at = 0;
        while at < bytes.len() {
            let size = (*sizes.next().unwrap()).clamp(1, bytes.len() - at);
            let mut lent = bytes[at..at + size].to_vec();
            at += size;
            let progress = if session.is_handshaking() {
                if session.hold(&lent).unwrap() { session.step(keys, &mut plain, &mut out).unwrap() } else { Progress::default() }
            } else {
                session.receive(&mut lent, &mut plain, &mut out).unwrap()
            };
            opened = opened.or(progress.opened);
            assert!(!progress.has_ended);
        }
        (plain, out, opened)
    }

    /// A handshake in pieces, to its end on both sides.
    fn shake(session: &mut Session, keys: &Keys, client: &mut ClientConnection, chunks: &[usize]) -> Option<Opened> {
        let mut opened = None;
        for _ in 0..8 {
            let (plain, out, done) = give(session, keys, &sent(client), chunks);
            assert!(plain.is_empty());
            opened = opened.or(done);
            take(client, &out);
        }
        assert!(!client.is_handshaking() && !session.is_handshaking());
        opened
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the cut, the same bytes come out on both sides, and between two messages a session keeps no bytes.
        #[test]
        fn any_chunking_gives_the_same_bytes(
            chunks in prop::collection::vec(prop_oneof![1..8_usize, 1..70_000_usize], 1..8),
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 1..4),
            new in any::<bool>(),
        ) {
            let (keys, config) = both(if new { Version::Tls13 } else { Version::Tls12 });
            let (mut session, mut client) = (Session::default(), client(&config));
            prop_assert_eq!(shake(&mut session, &keys, &mut client, &chunks), Some(Opened::Full));
            for message in &messages {
                client.writer().write_all(message).unwrap();
                let (plain, out, _) = give(&mut session, &keys, &sent(&mut client), &chunks);
                prop_assert!(plain == *message && out.is_empty());
                prop_assert_eq!(session.incoming.capacity(), 0);
                let mut sealed = Vec::new();
                session.seal(message, &mut sealed).unwrap();
                prop_assert!(take(&mut client, &sealed) == *message);
            }
        }
    }

    /// The second connection of a client resumes, also under keys that were renewed meanwhile; not when clients are asked for more.
    #[test]
    fn tickets_outlive_certificates_but_not_the_policy() {
        for version in [Version::Tls12, Version::Tls13] {
            let (keys, config) = both(version);
            let connect = |keys: &Keys| {
                let (mut session, mut client) = (Session::default(), client(&config));
                shake(&mut session, keys, &mut client, &[100_000])
            };
            assert_eq!([connect(&keys), connect(&keys)], [Some(Opened::Full), Some(Opened::Resumed)]);
            let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let pair = Pair { name: "new".to_owned(), chain: cert.pem().into(), key: signing_key.serialize_pem().into() };
            let renewed = keys.renewed(std::slice::from_ref(&pair), Policy::default(), 3_600).unwrap();
            assert_eq!(connect(&renewed), Some(Opened::Resumed));
            let policy = Policy { clients: Clients::Optional(cert.pem().into()), ..Policy::default() };
            let other = renewed.renewed(&[pair], policy, 3_600).unwrap();
            let (mut session, mut client) = (Session::default(), client(&config));
            let (_, out, opened) = give(&mut session, &other, &sent(&mut client), &[100_000]);
            assert!(opened.is_none() && !out.is_empty(), "it would have resumed, or asked nothing");
        }
    }

    /// close_notify is read as the end, said once, and nothing is sealed behind it.
    #[test]
    fn goodbye_is_said_once() {
        let (keys, config) = both(Version::Tls13);
        let (mut session, mut client) = (Session::default(), client(&config));
        shake(&mut session, &keys, &mut client, &[100_000]);
        client.send_close_notify();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let progress = session.receive(&mut sent(&mut client), &mut plain, &mut out).unwrap();
        assert!(progress.has_ended && plain.is_empty());
        session.say_goodbye(&mut out);
        let said = out.len();
        session.say_goodbye(&mut out);
        assert!(said > 0 && out.len() == said);
        let mut rest = out.as_slice();
        client.read_tls(&mut rest).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed());
    }

    /// What is no TLS is known by its first byte; a record that breaks a rule is answered by an alert; a handshake without end is cut.
    #[test]
    fn what_is_no_good_is_refused() {
        let (keys, _) = both(Version::Tls13);
        assert_eq!(Session::default().hold(b"GET / HTTP/1.1\r\n"), Err(Fault::NotTls));
        let mut session = Session::default();
        assert_eq!(session.hold(&[22, 3, 1]), Ok(false));
        assert_eq!(session.hold(&[0, 4, 1, 0, 0, 0]), Ok(true));
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        assert_eq!(session.step(&keys, &mut plain, &mut out), Err(Fault::Broken));
        assert_eq!(out.first(), Some(&21), "an alert");
        let mut session = Session::default();
        session.hold(&[22, 3, 1, 0x40, 0]).unwrap();
        session.hold(&[0; 16_000]).unwrap();
        session.hold(&[0; 16_000]).unwrap();
        assert_eq!(session.hold(&[0; 1_000]), Err(Fault::TooLong));
    }

    /// Behind the first record the header of one that will never be good is enough, in a handshake and after it; one that may be is waited for.
    #[test]
    fn a_hopeless_record_is_not_waited_for() {
        for version in [Version::Tls12, Version::Tls13] {
            let (keys, config) = both(version);
            for (header, is_hopeless) in [
                ([23, 3, 3, 0x40, 0], false),
                ([23, 3, 3, 0x48, 0], false),
                ([23, 3, 3, 0x48, 1], true),
                ([22, 3, 3, 0xff, 0xff], true),
                ([0xff, 3, 3, 0, 16], true),
                (*b"GET /", true),
            ] {
                let (mut session, mut begins) = (Session::default(), client(&config));
                give(&mut session, &keys, &sent(&mut begins), &[100_000]);
                let (mut plain, mut out) = (Vec::new(), Vec::new());
                assert_eq!(session.hold(&header[..4]), Ok(false));
                assert_eq!(session.hold(&header[4..]), Ok(is_hopeless), "{header:?}");
                if is_hopeless {
                    assert_eq!(session.step(&keys, &mut plain, &mut out), Err(Fault::Broken), "{header:?}");
                    assert!(!out.is_empty(), "an alert");
                }
                let (mut session, mut rests) = (Session::default(), client(&config));
                shake(&mut session, &keys, &mut rests, &[100_000]);
                out.clear();
                // The library may know it by the first byte.
                let mut found = session.receive(&mut header[..4].to_vec(), &mut plain, &mut out);
                if found.is_ok() {
                    found = session.receive(&mut header[4..].to_vec(), &mut plain, &mut out);
                }
                assert_eq!(found.is_err(), is_hopeless, "{header:?}");
                assert_eq!(out.is_empty(), !is_hopeless, "{header:?}");
            }
        }
    }
}
