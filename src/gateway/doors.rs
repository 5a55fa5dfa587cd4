//! Who may come in and how much they may do: from settings to what one reactor keeps to.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::Settings;
use crate::config::relations::is_loopback;
use crate::config::value::ForwardedHeader;
use crate::origin::Origin;
use crate::session::rate::Rate;
use crate::shard::{Balancers, Quotas};
use crate::wire::forwarded::Header;

/// Pages that the operator lets connect.
pub(super) fn origins(settings: &Settings) -> Vec<Origin> {
    settings.origins.iter().filter_map(|text| Origin::read(text)).collect()
}

/// Where the gateway's own page comes from, as a browser of this machine writes it; nowhere if others can reach one of the listeners.
pub(super) fn own_origins(mut listen: impl Iterator<Item = SocketAddr>, admin: SocketAddr) -> Vec<Origin> {
    if !listen.all(is_loopback) || !is_loopback(admin) {
        return Vec::new();
    }
    let by_name = format!("http://localhost:{}", admin.port());
    [format!("http://{admin}"), by_name].iter().filter_map(|text| Origin::read(text)).collect()
}

/// Whom to believe about whom they speak for.
pub(super) fn balancers(settings: &Settings) -> Balancers {
    let header = match settings.proxy.header {
        ForwardedHeader::XForwardedFor => Some(Header::XForwardedFor),
        ForwardedHeader::Forwarded => Some(Header::Forwarded),
        ForwardedHeader::None => None,
    };
    Balancers { networks: settings.proxy.networks.clone(), sends_proxy: settings.proxy.protocol, header }
}

/// What connections share, where a reactor may hold so many.
pub(super) fn quotas(settings: &Settings, connections: usize) -> Quotas {
    let bounds = &settings.limits;
    let share = u32::try_from(connections / ADDRESS_SHARE).unwrap_or(u32::MAX).max(ADDRESS_CONNECTIONS_MIN);
    Quotas {
        user_connections: bounds.user_connections,
        address_rate: Rate { per_second: bounds.address_per_s, burst: bounds.address_burst },
        address_connections: bounds.address_connections.unwrap_or(share),
        exempt: bounds.address_exempt.clone(),
        tables: Arc::default(),
    }
}

/// An address may have one connection in so many of the gateway's, and at least so many.
const ADDRESS_SHARE: usize = 16;
const ADDRESS_CONNECTIONS_MIN: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// The page's own origin is exactly that, by number and by name, and only while this machine alone can reach both listeners.
    #[test]
    fn the_own_page_connects_on_loopback_alone() {
        let of =
            |listen: &str, admin: &str| own_origins(listen.split(' ').map(|one| one.parse().unwrap()), admin.parse().unwrap());
        let expected = |texts: [&str; 2]| texts.map(|text| Origin::read(text).unwrap()).to_vec();
        assert_eq!(of("127.0.0.1:8080", "127.0.0.1:8081"), expected(["http://127.0.0.1:8081", "http://localhost:8081"]));
        assert_eq!(of("[::1]:80", "[::1]:81"), expected(["http://[::1]:81", "http://localhost:81"]));
        for (listen, admin) in [
            ("0.0.0.0:8080", "127.0.0.1:8081"),
            ("127.0.0.1:8080", "10.0.0.1:8081"),
            ("127.0.0.1:8080 10.0.0.1:8443", "127.0.0.1:8081"),
        ] {
            assert_eq!(of(listen, admin), [], "{listen} {admin}");
        }
    }
}
