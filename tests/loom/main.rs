//! The mailbox and the wake-up, the very sources of the product, in every order in which two or three threads can run and see what the
//! others wrote. The atomics, the threads and the queue under the lanes are those of loom; parking has no time-out here, so a lost
//! wake-up is a deadlock, which loom finds.
//!
//! The queue (`io/queue.rs`) orders less than crossbeam's does: whoever asks whether it is empty learns nothing else. The fences of
//! `wake.rs` must make up for it.

#![allow(missing_docs, reason = "a model is read with its source")]

use tidegate::{limits, mail, mutant};

#[allow(dead_code, unused_imports, unsafe_code, reason = "the model uses a part of it, and not its tests")]
mod io {
    pub mod atomic {
        pub use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

        /// Threads of loom, which know no time.
        pub mod thread {
            pub use loom::thread::{Thread, current};

            pub fn park_timeout(_: std::time::Duration) {
                loom::thread::park();
            }
        }
    }
    pub mod queue;
    #[path = "../../../src/io/wake.rs"]
    pub mod wake;
}

#[allow(dead_code, unused_imports, reason = "the model uses a part of it, and not its tests")]
#[path = "../../src/mailbox.rs"]
mod mailbox;

use std::time::Duration;

use io::wake::Waker;
use loom::thread;
use mailbox::{Credit, LaneReceiver, lane};

/// Takes values as the owner of a lane does, until it has `count`.
fn take(waker: &Waker, lane: &LaneReceiver<u32>, count: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.len() < count {
        match lane.try_recv() {
            Some(value) => taken.push(value),
            None => waker.park(Duration::MAX, || lane.is_empty()),
        }
    }
    taken
}

/// One gives, one takes: every value arrives, in order, and the taker never sleeps on one.
fn no_wake_up_is_lost() {
    let waker = Waker::for_thread();
    let (sender, receiver) = lane(2, &waker);
    let giver = thread::spawn(move || {
        for value in 0..2 {
            sender.try_send(value).expect("there is room");
        }
    });
    assert_eq!(take(&waker, &receiver, 2), [0, 1]);
    giver.join().expect("gives");
}

/// Two give at once: whoever of them wins the exchange rings for both.
fn of_two_givers_one_rings() {
    let waker = Waker::for_thread();
    let (sender, receiver) = lane(2, &waker);
    let givers = [10, 20].map(|value| {
        let sender = sender.clone();
        thread::spawn(move || sender.try_send(value).expect("there is room"))
    });
    let mut taken = take(&waker, &receiver, 2);
    taken.sort_unstable();
    assert_eq!(taken, [10, 20]);
    givers.into_iter().for_each(|giver| giver.join().expect("gives"));
}

/// A value on either of two lanes ends the one sleep of their owner.
fn one_waker_serves_two_lanes() {
    let waker = Waker::for_thread();
    let (first, firsts) = lane(1, &waker);
    let (second, seconds) = lane(1, &waker);
    let giver = thread::spawn(move || first.try_send(1_u32).expect("there is room"));
    let other = thread::spawn(move || second.try_send(2_u32).expect("there is room"));
    let mut sum = 0;
    while sum < 3 {
        let before = sum;
        sum += firsts.try_recv().unwrap_or(0) + seconds.try_recv().unwrap_or(0);
        if sum == before {
            waker.park(Duration::MAX, || firsts.is_empty() && seconds.is_empty());
        }
    }
    giver.join().expect("gives");
    other.join().expect("gives");
}

/// A full lane gives back and still wakes: the owner comes and makes room.
fn a_full_lane_wakes_its_owner() {
    let waker = Waker::for_thread();
    let (sender, receiver) = lane(1, &waker);
    let giver = thread::spawn(move || {
        sender.try_send(1).expect("there is room");
        let mut value = 2;
        while let Err(back) = sender.try_send(value) {
            value = back;
            thread::yield_now();
        }
    });
    assert_eq!(take(&waker, &receiver, 2), [1, 2]);
    giver.join().expect("gives");
}

/// Two take from a credit that is enough for one: exactly one gets it, and what is given back is whole.
fn credit_is_taken_once() {
    let credit = Credit::new(10);
    let takers = [(); 2].map(|()| {
        let credit = credit.clone();
        thread::spawn(move || {
            let took = credit.take(6);
            if took {
                credit.give(6);
            }
            took
        })
    });
    let took = takers.into_iter().filter(|_| true).map(|taker| taker.join().expect("takes")).filter(|took| *took).count();
    assert!(took >= 1);
    assert_eq!(credit.left(), 10);
}

fn main() {
    let models: [(&str, fn()); 5] = [
        ("no_wake_up_is_lost", no_wake_up_is_lost),
        ("of_two_givers_one_rings", of_two_givers_one_rings),
        ("one_waker_serves_two_lanes", one_waker_serves_two_lanes),
        ("a_full_lane_wakes_its_owner", a_full_lane_wakes_its_owner),
        ("credit_is_taken_once", credit_is_taken_once),
    ];
    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, model) in models {
        if chosen.is_empty() || chosen.iter().any(|word| name.contains(word.as_str())) {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(3);
            builder.check(model);
            println!("test {name} ... ok");
        }
    }
}
