//! Tests of [`super`].

use std::ops::RangeInclusive;

use super::*;
use crate::mail::{Bounds, Event, Kicked};
use crate::shard::alone_tests::{Core, TOKEN, al};

/// How late a session may end.
const LATE_MS: u64 = 5_000;

/// However long a token lasts, its session ends when it does: not before, and not five seconds later.
#[test]
fn a_session_ends_with_its_token() {
    for life_s in [1, 7, 59, 60, 61, 600, 8 * 3_600, 30 * 86_400, 40 * 86_400] {
        let mut core = Core::new();
        let ends_s = core.now.unix_ms / 1_000 + life_s;
        let (id, _) = core.active(ends_s);
        core.run_until(id, ends_s * 1_000 - 1, (life_s / 1_000).clamp(1, 20) * 1_000);
        assert_eq!(core.cause(id), None, "{life_s} s");
        let said = core.end_of(id, ends_s * 1_000 + LATE_MS);
        assert!(core.now.unix_ms >= ends_s * 1_000);
        assert_eq!(core.cause(id), Some(CloseCause::TokenExpired), "{life_s} s");
        assert!(said.contains(r#""code":2002"#), "{said}");
    }
}

/// A wall clock that is set back by less than what has everything filed anew takes no session's end away.
#[test]
fn a_small_step_back_loses_no_end() {
    for step_ms in [150, 500, 999] {
        let mut core = Core::new();
        let ends_s = core.now.unix_ms / 1_000 + 600;
        let (id, _) = core.active(ends_s);
        core.pass(1);
        core.now.unix_ms -= step_ms;
        core.run_until(id, ends_s * 1_000 - 1, 1_000);
        assert_eq!(core.cause(id), None, "{step_ms} ms");
        core.end_of(id, ends_s * 1_000 + LATE_MS);
        assert_eq!(core.cause(id), Some(CloseCause::TokenExpired), "{step_ms} ms");
    }
}

/// A session that AUTH has prolonged ends with the new token; a token that ends before the old one shortens nothing.
#[test]
fn a_session_ends_with_its_last_token() {
    let mut core = Core::new();
    let start_s = core.now.unix_ms / 1_000;
    let (id, session) = core.active(start_s + 100);
    for (rid, life_s) in [(1, 900), (2, 50)] {
        core.group(Event::Renewed { session, rid, expires_s: u32::try_from(start_s + life_s).unwrap() });
    }
    core.run_until(id, (start_s + 900) * 1_000 - 1, 1_000);
    assert_eq!(core.cause(id), None);
    core.end_of(id, (start_s + 900) * 1_000 + LATE_MS);
    assert_eq!(core.cause(id), Some(CloseCause::TokenExpired));
}

/// A session whose token is revoked ends in the call in which the store says so; others stay.
#[test]
fn a_session_ends_when_its_token_is_revoked() {
    let mut core = Core::new();
    let ends_s = core.now.unix_ms / 1_000 + 86_400;
    let [(id, session), (other, _)] = [core.active(ends_s), core.active(ends_s)];
    core.pass(10);
    core.group(Event::Kick { session, why: Kicked::Revoked });
    assert_eq!((core.cause(id), core.cause(other)), (Some(CloseCause::TokenRevoked), None));
    let said = core.said(id);
    assert!(said.contains(r#""code":2001"#), "{said}");
    // Nothing is left to come back to.
    core.pass_ms(0);
    let Some(Submit::Leave { session: left, .. }) = core.port.submitted.pop() else { panic!("the store hears of the end") };
    assert_eq!(left, session);
}

fn is_told_to_come_later(said: &str) -> bool {
    said.contains(r#""code":5002"#) && retry_ms(said).is_some_and(|retry_ms| (250..=312).contains(&retry_ms))
}

fn retry_ms(said: &str) -> Option<u32> {
    said.split_once(r#""retry_ms":"#)?.1.split(',').next()?.parse().ok()
}

/// Nobody can take the token, or nobody answers in time, or the answer is that nobody knows: 5002, and the end as overloaded.
#[test]
fn a_token_nobody_judges_is_no_bad_token() {
    let mut core = Core::new();
    core.port.is_full = true;
    let full = core.hello();
    let said = core.said(full);
    assert!(is_told_to_come_later(&said), "{said}");
    core.port.is_full = false;
    let [silent, unknown] = [core.hello(), core.hello()];
    assert_eq!((core.said(silent), core.said(unknown)), (String::new(), String::new()));
    core.judged(unknown, 0, Err(AuthError::Overloaded));
    let said = core.said(unknown);
    assert!(is_told_to_come_later(&said), "{said}");
    core.pass(6);
    let said = core.said(silent);
    assert!(is_told_to_come_later(&said), "{said}");
    assert_eq!((core.shard.counters.tokens_unjudged_count, core.shard.counters.tokens_asked_count), (3, 2));
    let causes = [full, silent, unknown].map(|id| core.shard.cold[id].cause);
    assert_eq!(causes, [Some(CloseCause::Overloaded); 3]);
    // The verdict comes after all: nobody waits for it any more.
    core.judged(silent, 0, Ok(al()));
    assert!(core.port.submitted.is_empty());
}

/// A good verdict leads to the roster with what HELLO asked for; a bad one is told as such; the one of a connection that was there
/// before in the same slot says nothing.
#[test]
fn a_verdict_is_for_the_connection_that_asked() {
    let mut core = Core::new();
    let id = core.hello();
    assert_eq!((core.port.asked.len(), &*core.port.asked[0].token), (1, TOKEN));
    let older = ConnectionId { generation: id.generation.wrapping_sub(1), ..id };
    core.judged(older, 0, Ok(al()));
    core.judged(id, 7, Ok(al()));
    assert!(core.port.submitted.is_empty());
    core.judged(id, 0, Ok(al()));
    assert!(matches!(&core.port.submitted[..], [Submit::Attach(attach)] if &*attach.user == "al" && &*attach.device == "1"));
    let bad = [AuthError::Invalid, AuthError::Expired].map(|error| {
        let id = core.hello();
        core.judged(id, 0, Err(error));
        core.said(id)
    });
    assert!(bad[0].contains(r#""code":2001"#) && bad[1].contains(r#""code":2002"#), "{bad:?}");
    let other = core.hello();
    core.judged(other, 0, Ok(Identity { device: Some("2".into()), ..al() }));
    assert!(core.said(other).contains(r#""code":2001"#));
}

/// What comes while a token is judged breaks the rule of HELLO, and the verdict changes nothing any more.
#[test]
fn nothing_is_read_while_a_token_is_judged() {
    let mut core = Core::new();
    let id = core.hello();
    core.text(id, r#"{"t":"ping"}"#);
    assert!(core.said(id).contains(r#""code":1004"#));
    core.judged(id, 0, Ok(al()));
    assert!(core.port.submitted.is_empty());
}

/// A drain that comes while a token is judged turns the connection away.
#[test]
fn a_drain_turns_away_who_is_judged() {
    let mut core = Core::new();
    let id = core.hello();
    core.shard.handle_drain(core.now, 1012, 1);
    core.pass(1);
    let said = core.said(id);
    assert!(is_told_to_come_later(&said), "{said}");
}

/// Twenty HELLOs refused in one instant are told different times to come back, each within its range: who cannot be judged and whom the
/// store does not take, by a node without a rate of newcomers; who was cut off; whose device tries too often.
#[test]
fn hellos_refused_in_one_instant_are_told_times_that_differ() {
    let refused = |code: u16, range: RangeInclusive<u32>, refuse: fn(&mut Core) -> ConnectionId| {
        let mut core = Core::new();
        core.shard.set_bounds(Bounds { accept_per_s: 0, accept_burst: 1, handshakes_max: 64, queued_bytes_max: 1 << 20 });
        let mut waits: Vec<u32> = (0..20)
            .map(|_| {
                let id = refuse(&mut core);
                let said = core.said(id);
                assert!(said.contains(&format!(r#""code":{code},"#)), "{said}");
                retry_ms(&said).expect("a time to wait")
            })
            .collect();
        waits.sort_unstable();
        assert!(waits[0] < waits[19] && range.contains(&waits[0]) && range.contains(&waits[19]), "{code}: {waits:?}");
    };
    refused(5002, 250..=312, |core| {
        core.port.is_full = true;
        core.hello()
    });
    refused(5002, 250..=312, |core| {
        core.port.takes_nothing = true;
        let id = core.hello();
        core.judged(id, 0, Ok(al()));
        id
    });
    refused(4001, 10_000..=12_500, |core| {
        if core.shard.sessions_count() == 0 {
            let (first, _) = core.active(1_764_100_000);
            core.shard.note_cut_off(first);
        }
        let id = core.hello();
        core.judged(id, 0, Ok(al()));
        id
    });
    refused(4001, 10_000..=12_500, |core| {
        let id = core.hello();
        core.judged(id, 0, Ok(al()));
        let Some(Submit::Attach(Attach { session, .. })) = core.port.submitted.pop() else { panic!("the store is asked") };
        core.group(Event::AttachRefused { session, code: ErrorCode::RateLimited });
        id
    });
}
