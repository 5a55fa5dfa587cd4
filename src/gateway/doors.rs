//! Who may come in and how much they may do: from settings to what one reactor keeps to.

use crate::config::Settings;
use crate::config::settings::ProxySettings;
use crate::config::value::ForwardedHeader;
use crate::shard::Balancers;
use crate::wire::forwarded::Header;

/// Whom to believe about whom they speak for.
pub(super) fn balancers(settings: &Settings) -> Balancers {
    let ProxySettings { networks, protocol, header } = settings.proxy.clone();
    let header = match header {
        ForwardedHeader::XForwardedFor => Some(Header::XForwardedFor),
        ForwardedHeader::Forwarded => Some(Header::Forwarded),
        ForwardedHeader::None => None,
    };
    Balancers { networks, sends_proxy: protocol, header }
}
