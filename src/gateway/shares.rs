//! What all reactors hold together: what each has from the start, and what each may fill, added up and told once.
//!
//! Every bound that exists once per reactor is a [`Share`] of a total in `limits.rs`. A reactor that is added takes from the others; it does
//! not make the node larger.

use crate::conn::carry::Stashes;
use crate::io::uring::Sizes;
use crate::limits::{self, Share};
use crate::mail::{Event, Peer};
use crate::mailbox;
use crate::observe::histogram::ReactorHistograms;

use super::Kernel;

/// Sums over all reactors, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shares {
    pub(super) reactors: usize,
    /// There before anybody connects, whether touched or not.
    pub(super) fixed_bytes: u64,
    /// What pools and queues that have a share of their own hold at most beyond that. What is queued for clients has
    /// `limits.queue_bytes_max`, and is not in it.
    pub(super) most_bytes: u64,
}

impl Shares {
    /// Those of so many reactors, whose longest message has so many bytes.
    pub(super) fn of(kernel: Kernel, reactors: usize, message_bytes_max: usize) -> Self {
        let sum = |lines: &[(&str, usize)]| lines.iter().map(|(_, bytes)| *bytes as u64).sum::<u64>() * reactors as u64;
        Self { reactors, fixed_bytes: sum(&fixed(kernel, reactors)), most_bytes: sum(&most(kernel, reactors, message_bytes_max)) }
    }

    /// Says the sums, and warns of reactors so many that they alone cost more than a node's should.
    pub(super) fn report(self) {
        let Self { reactors, fixed_bytes, most_bytes } = self;
        tracing::info!(reactors, fixed_bytes, most_bytes, "the shares of all reactors: fixed, and at most beyond");
        if fixed_bytes > limits::REACTORS_FIXED_BYTES_MAX {
            tracing::warn!(reactors, fixed_bytes, "reactors alone take much memory: set fewer, as many as there are cores");
        }
    }
}

/// What one reactor has from the start, line by line.
fn fixed(kernel: Kernel, reactors: usize) -> [(&'static str, usize); 4] {
    [
        ("driver: rings, buffers, events", kernel.fixed_bytes()),
        ("lanes to it", mailbox::reactor_lanes_bytes(reactors)),
        // A sending end of its own to each other.
        ("lanes from it", reactors * size_of::<mailbox::LaneSender<Peer>>()),
        ("histograms", ReactorHistograms::bytes()),
    ]
}

/// What one reactor may fill, line by line.
fn most(kernel: Kernel, reactors: usize, message_bytes_max: usize) -> [(&'static str, usize); 7] {
    let part = |share: Share| share.part(reactors);
    [
        // What is kept empty gives way to what is in use.
        ("unfinished messages", Stashes::share(reactors, message_bytes_max).bytes_max()),
        ("groups that it has not taken", part(limits::OUTBOX_BYTES)),
        ("emptied groups", part(limits::SPARE_GROUPS) * limits::SPARE_EVENTS_MAX * size_of::<Event>()),
        ("mails kept for others", part(limits::PEERS_KEPT) * size_of::<Peer>()),
        ("sessions on their way to others", part(limits::MOVED_BYTES)),
        // A name is within a chunk that it shares; the entry and a hash are its own.
        ("cursors gathered", part(limits::CURSORS_GATHERED) * CURSOR_BYTES),
        ("driver", kernel.most_bytes()),
    ]
}

impl Kernel {
    /// What one driver has from the start, bytes.
    fn fixed_bytes(self) -> usize {
        match self {
            Self::Epoll => crate::io::epoll::Epoll::FIXED_BYTES,
            Self::Uring(sizes) => sizes.fixed_bytes(),
        }
    }

    /// What one driver may fill beyond that, bytes.
    fn most_bytes(self) -> usize {
        match self {
            Self::Epoll => 0,
            Self::Uring(Sizes { buffers_max, sends_bytes, stash_bytes, .. }) => {
                usize::from(buffers_max) * limits::RING_BUFFER_BYTES + sends_bytes + stash_bytes
            }
        }
    }
}

/// A cursor that waits for the store, about.
const CURSOR_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: usize = limits::MESSAGE_BYTES_MAX as usize;

    /// Every share of `limits.rs`, by the name it has there.
    const ALL: [(&str, Share); 20] = [
        ("STASH_BYTES", limits::STASH_BYTES),
        ("STASH_FREE_BYTES", limits::STASH_FREE_BYTES),
        ("GROUP_LANE", limits::GROUP_LANE),
        ("PEER_LANE", limits::PEER_LANE),
        ("PEERS_KEPT", limits::PEERS_KEPT),
        ("MOVED_BYTES", limits::MOVED_BYTES),
        ("PAGE_LANE", limits::PAGE_LANE),
        ("JUDGED_LANE", limits::JUDGED_LANE),
        ("CONTROL_LANE", limits::CONTROL_LANE),
        ("SPARE_GROUPS", limits::SPARE_GROUPS),
        ("SPARE_BACKLOGS", limits::SPARE_BACKLOGS),
        ("CURSORS_GATHERED", limits::CURSORS_GATHERED),
        ("OUTBOX_BYTES", limits::OUTBOX_BYTES),
        ("RING_SUBMISSIONS", limits::RING_SUBMISSIONS),
        ("RING_COMPLETIONS", limits::RING_COMPLETIONS),
        ("RING_BUFFERS_FIRST", limits::RING_BUFFERS_FIRST),
        ("RING_BUFFERS", limits::RING_BUFFERS),
        ("RING_SENDS_BYTES", limits::RING_SENDS_BYTES),
        ("RING_SPARE_BYTES", limits::RING_SPARE_BYTES),
        ("RING_STASH_BYTES", limits::RING_STASH_BYTES),
    ];

    fn kernels(reactors: usize) -> [Kernel; 2] {
        [Kernel::Epoll, Kernel::Uring(Sizes::share(1_000, reactors, None))]
    }

    /// From one reactor to as many as are shared out, all of them together have no more than the node, and each enough to work.
    #[test]
    fn all_reactors_together_have_what_one_node_has() {
        let named: Vec<&str> = include_str!("../limits.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": Share = ").map(|(name, _)| name))
            .collect();
        assert!(named.iter().eq(ALL.iter().map(|(name, _)| name)), "{named:?}");
        let most = usize::try_from(limits::REACTORS_MAX).expect("a small number");
        for (name, share) in ALL {
            assert!(share.least <= share.most, "{name}");
            for reactors in [1, 2, 8, 52, limits::SHARED_REACTORS] {
                let part = share.part(reactors);
                assert!((share.least..=share.most).contains(&part), "{name}: {part} for each of {reactors}");
                assert!(part * reactors <= share.node, "{name}: {part} for each of {reactors}, of {}", share.node);
                let rounded = share.part_power_of_two(reactors);
                assert!(rounded.is_power_of_two() && rounded <= part && 2 * rounded > part, "{name}: {rounded}");
            }
            assert_eq!(share.part(most), share.least, "{name}");
        }
    }

    /// The fixed costs of all reactors stay within 64 MiB, on either driver, and what they may fill within the totals.
    #[test]
    fn fixed_costs_of_all_reactors_fit_the_node() {
        let totals = [limits::STASH_BYTES, limits::OUTBOX_BYTES, limits::MOVED_BYTES];
        let of_ring = [limits::RING_SENDS_BYTES, limits::RING_STASH_BYTES];
        for reactors in [1, 2, 8, 52, limits::SHARED_REACTORS] {
            for kernel in kernels(reactors) {
                let shares = Shares::of(kernel, reactors, MESSAGE);
                println!("{}: {shares:?}", kernel.name());
                assert!(shares.fixed_bytes <= limits::REACTORS_FIXED_BYTES_MAX, "{}: {shares:?}", kernel.name());
                let ring = if matches!(kernel, Kernel::Epoll) { &of_ring[..0] } else { &of_ring };
                let node: usize = totals.iter().chain(ring).map(|share| share.node).sum();
                let others = limits::SPARE_GROUPS.node * limits::SPARE_EVENTS_MAX * size_of::<Event>()
                    + limits::PEERS_KEPT.node * size_of::<Peer>()
                    + limits::CURSORS_GATHERED.node * CURSOR_BYTES
                    + limits::RING_BUFFERS.node * limits::RING_BUFFER_BYTES;
                assert!(shares.most_bytes <= (node + others) as u64, "{}: {shares:?}", kernel.name());
            }
        }
    }

    /// A gateway on two cores, and one with as many reactors as fit its files, have the full size where it helps.
    #[test]
    fn few_reactors_have_the_full_size() {
        let sizes = Sizes::share(1_000, 2, None);
        assert_eq!((sizes.submissions, sizes.completions), (1_024, 16_384));
        assert_eq!((sizes.buffers_first, sizes.buffers_max), (256, 4_096));
        assert_eq!(Stashes::share(2, MESSAGE).bytes_max(), limits::STASH_BYTES.most);
    }
}
