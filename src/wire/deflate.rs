//! Agreeing to compressed messages: permessage-deflate (RFC 7692), without context takeover.
//!
//! A peer offers the extension in its upgrade, and each offer has parameters; the first offer we can keep is agreed to:
//!
//! ```text
//!  offer:   Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, permessage-deflate
//!  answer:  Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover
//! ```
//!
//! Without context takeover every message is a stream of its own, so that an idle connection holds nothing for it.

/// What one peer and we have agreed to: the peer may compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// Whether we may compress as well. Not if the peer asked for a window smaller than ours.
    pub may_deflate: bool,
    /// The window the peer asked of us, as a power of two.
    window_bits: Option<u8>,
}

/// The first offer in the values of `Sec-WebSocket-Extensions` that can be kept (RFC 7692 5 and 7.1); `None`: no offer, or none that can.
pub fn negotiate<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Agreement> {
    values.filter_map(|value| std::str::from_utf8(value).ok()).flat_map(|value| value.split(',')).find_map(agree)
}

/// Holds one offer against the parameters that are defined. Whatever is unknown, twice there or out of range makes it none of ours.
fn agree(offer: &str) -> Option<Agreement> {
    let mut parameters = offer.split(';').map(str::trim);
    if !parameters.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen = [false; 4];
    let mut window_bits = None;
    for parameter in parameters {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(bits(value)?)),
            None => (parameter, None),
        };
        let index = match (name, value) {
            ("server_no_context_takeover", None) => 0,
            ("client_no_context_takeover", None) => 1,
            ("server_max_window_bits", Some(bits)) => {
                window_bits = Some(bits);
                2
            }
            ("client_max_window_bits", _) => 3,
            _ => return None,
        };
        if std::mem::replace(seen.get_mut(index)?, true) {
            return None;
        }
    }
    Some(Agreement { may_deflate: window_bits.is_none_or(|bits| bits == WINDOW_BITS), window_bits })
}

/// 8 to 15, without leading zeros; it may stand in quotes (RFC 6455 9.1).
fn bits(value: &str) -> Option<u8> {
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (8..=WINDOW_BITS).find(|bits| bits.to_string() == value)
}

impl Agreement {
    /// Appends the header line of the answer, with its CR LF before it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        );
        if let Some(bits) = self.window_bits {
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
    }
}

/// 32 KiB, the largest window of DEFLATE, and the one we use.
const WINDOW_BITS: u8 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(offer: &str) -> Option<bool> {
        negotiate([offer.as_bytes()].into_iter()).map(|agreement| agreement.may_deflate)
    }

    /// The offers of RFC 7692 7.1 and of browsers, and what makes an offer none of ours.
    #[test]
    fn offers_are_judged() {
        for (offer, expected) in [
            ("permessage-deflate", Some(true)),
            ("permessage-deflate; client_max_window_bits", Some(true)),
            ("permessage-deflate; client_max_window_bits=9; server_no_context_takeover", Some(true)),
            ("permessage-deflate;server_max_window_bits=15", Some(true)),
            ("permessage-deflate; server_max_window_bits=\"10\"", Some(false)),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", Some(false)),
            ("x-webkit-deflate-frame, permessage-deflate", Some(true)),
            ("permessage-deflate; server_max_window_bits=7, permessage-deflate", Some(true)),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=08", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; client_max_window_bits=99999999999999999999", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate;", None),
            ("permessage-bzip2", None),
            ("", None),
        ] {
            assert_eq!(agreed(offer), expected, "{offer}");
        }
        let mut out = Vec::new();
        negotiate([&b"permessage-deflate; server_max_window_bits=12"[..]].into_iter()).expect("ours").write(&mut out);
        assert!(out.ends_with(b"; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12"));
    }
}
