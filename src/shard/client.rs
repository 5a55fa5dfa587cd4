//! Who is at the other end: the peer of the socket, or the client a balancer speaks for.
//!
//! A balancer is whoever connects from `proxy.networks`. Its PROXY header is taken from the first bytes of the connection, before
//! anything else sees them; then what it wrote into the request head counts, as long as the address known so far is a balancer's.
//!
//! ```text
//!  peer of the socket ─ in networks? ─► PROXY header ─ still in networks? ─► X-Forwarded-For or Forwarded ─► the client
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Shard, State};
use crate::address::Networks;
use crate::ids::ConnectionId;
use crate::observe::counters::CloseCause;
use crate::wire::forwarded::{self, Header};
use crate::wire::proxy::{self, Source};

/// Whom to believe about whom they speak for.
#[derive(Clone, Default, Debug)]
pub struct Balancers {
    /// Where they connect from; none: nobody is one.
    pub networks: Networks,
    /// Whether each of their connections begins with a PROXY header.
    pub sends_proxy: bool,
    /// The header in which they name the client.
    pub header: Option<Header>,
}

/// An address and a port, packed: kept per connection only where balancers are configured. By default it is not known.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Client {
    ip: [u8; 16],
    port: [u8; 2],
}

/// What a connection costs more where balancers are configured, bytes.
pub const CLIENT_BYTES: usize = size_of::<Client>();

impl From<SocketAddr> for Client {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { ip: ip.octets(), port: address.port().to_be_bytes() }
    }
}

impl From<Client> for SocketAddr {
    fn from(client: Client) -> Self {
        Self::new(Ipv6Addr::from(client.ip).to_canonical(), u16::from_be_bytes(client.port))
    }
}

impl Shard {
    /// The address of the client as far as it is known here: after the request head, and only where balancers are configured.
    #[must_use]
    pub fn client(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.connections.get(id)?;
        self.clients.find(id).copied().map(SocketAddr::from)
    }

    /// A connection was accepted from `peer`.
    pub(super) fn meet(&mut self, id: ConnectionId, peer: Option<SocketAddr>) {
        let balancers = &self.rules.balancers;
        if balancers.networks.is_empty() {
            return;
        }
        self.clients.begin(id, peer.map(Client::from).unwrap_or_default());
        let is_balancer = peer.is_some_and(|peer| balancers.networks.contain(peer.ip()));
        if balancers.sends_proxy && is_balancer {
            self.connections.known_mut(id).state = State::Proxy;
        }
    }

    /// Takes the PROXY header from the front of a connection. Returns how many of `bytes` it used; `None`: more must come, or the
    /// connection ends.
    pub(super) fn take_proxy_header(&mut self, id: ConnectionId, bytes: &[u8]) -> Option<usize> {
        let extra = self.cold[id].extra.get_or_insert_default();
        let carried = extra.proxy.len();
        let decoded = if carried == 0 {
            proxy::decode(bytes)
        } else {
            // No more than a header may have is copied, and the bound ends the wait.
            extra.proxy.extend(bytes.iter().take(crate::limits::PROXY_HEADER_BYTES_MAX));
            proxy::decode(&extra.proxy)
        };
        let (source, length) = match decoded {
            Ok(Some(found)) => found,
            Ok(None) => {
                if carried == 0 {
                    extra.proxy = bytes.to_vec();
                }
                return None;
            }
            // Not a word: whoever does not speak PROXY may as well not speak HTTP.
            Err(proxy::Malformed) => {
                self.abort(id, CloseCause::ProxyHeader);
                return None;
            }
        };
        extra.proxy = Vec::new();
        self.drop_empty_extra(id);
        self.counters.proxy_headers_count += 1;
        self.connections.known_mut(id).state = State::Upgrade;
        if let Source::Client(client) = source {
            self.clients[id] = client.into();
            if !self.judge_address(id, client.ip()) {
                return None;
            }
        }
        Some(length - carried)
    }

    /// Reads from a whole request head whom the balancers before it speak for. Returns whether that client may go on.
    pub(super) fn take_forwarded(&mut self, id: ConnectionId, head: &[u8]) -> bool {
        let Some(header) = self.rules.balancers.header else { return true };
        let Some(known) = self.clients.find_mut(id) else { return true };
        let networks = &self.rules.balancers.networks;
        let peer = SocketAddr::from(*known);
        let client = forwarded::client(head, header, peer, |address| networks.contain(address));
        *known = client.into();
        client == peer || self.judge_address(id, client.ip())
    }
}
