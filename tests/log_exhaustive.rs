//! Every truncation and every flipped bit of a 64 KiB log: recovered without losing a valid earlier group, or refused by name. Never
//! a panic, never silence.
//!
//! What must happen is computed for each case from what was written, and held against what does happen, to the group and to the
//! offset. Everything is in memory, and the damaged byte is put right again after each case: some 590,000 cases take seconds.

use std::collections::BTreeMap;
use std::io;

use tidegate::store::disk_memory::MemoryDisk;
use tidegate::store::log::{Log, LogSettings, OpenError};

/// What opening a damaged log must come to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    /// Groups 1 to this one are there, as they were written.
    Recovered(u64),
    /// Refused: first and last group at stake, segment and offset where the valid ones end.
    Refused { first: u64, last: u64, segment: String, offset: usize },
}

/// One group as it stands in a segment.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    end: usize,
}

/// A log, and where everything is in it.
struct Written {
    disk: MemoryDisk,
    settings: LogSettings,
    watermark: u64,
    count: u64,
    bodies: Vec<Vec<u8>>,
    /// Segments in order, each with its first group and the places of its groups.
    segments: Vec<(String, u64, Vec<Place>)>,
    images: BTreeMap<String, Vec<u8>>,
}

impl Written {
    /// Groups of 20 to 169 bytes, each synced, until `segments_count` segments are nearly full.
    fn new(segment_bytes: usize, segments_count: usize, unwatched_count: u64) -> Self {
        let settings = LogSettings { segment_bytes: segment_bytes as u64, accept_loss: false, projected: 0 };
        let disk = MemoryDisk::default();
        let (mut log, _) = Log::open(disk.clone(), settings).unwrap();
        let mut segments: Vec<(String, u64, Vec<Place>)> = Vec::new();
        let mut bodies = Vec::new();
        let mut at = segment_bytes;
        for number in 1.. {
            let body = body(number);
            let whole = HEADER_BYTES + body.len();
            let is_new = at + whole > segment_bytes;
            if is_new && segments.len() == segments_count {
                break;
            }
            assert_eq!(log.write(1, &body).unwrap(), number);
            log.sync().unwrap();
            if is_new {
                let name = disk.files().into_keys().rfind(|name| name.ends_with(".log")).unwrap();
                segments.push((name, number, Vec::new()));
                at = 0;
            }
            segments.last_mut().unwrap().2.push(Place { start: at, end: at + whole });
            at += whole;
            // The rest of a block stays empty if it is at most half of what the sync wrote.
            let rest = at.next_multiple_of(BLOCK_BYTES) - at;
            at += if rest <= whole / 2 { rest } else { 0 };
            bodies.push(body);
        }
        let count = bodies.len() as u64;
        let watermark = count - unwatched_count;
        drop(log);
        // The file as the log writes it when group `watermark` has been synced.
        let watched = MemoryDisk::default();
        let (mut log, _) = Log::open(watched.clone(), settings).unwrap();
        for body in bodies.iter().take(usize::try_from(watermark).unwrap()) {
            log.write(1, body).unwrap();
        }
        log.sync().unwrap();
        log.save_watermark().unwrap();
        let contents = watched.files()["watermark"].clone();
        disk.edit("watermark", |bytes| bytes.clone_from(&contents));
        let images = disk.files();
        Self { disk, settings, watermark, count, bodies, segments, images }
    }

    /// What must happen when the groups of segment `index` are valid only before `offset`, and whether anything lies behind.
    fn expect(&self, index: usize, offset: usize, is_proven: bool) -> Outcome {
        let (name, first, places) = &self.segments[index];
        let intact = places.iter().take_while(|place| place.end <= offset).count();
        let end = intact.checked_sub(1).map_or(0, |last| places[last].end);
        let last = first - 1 + intact as u64;
        let promised = if is_proven { self.count - 1 } else { self.watermark };
        let promised = promised.max(self.watermark);
        if last >= promised {
            return Outcome::Recovered(last);
        }
        Outcome::Refused { first: last + 1, last: promised, segment: name.clone(), offset: end }
    }

    /// What does happen. Puts the files right again.
    fn open(&self, damaged: &str) -> Outcome {
        match Log::open(self.disk.clone(), self.settings) {
            Ok((mut log, recovered)) => {
                let mut next = 1;
                log.replay(0, |number, count, body| {
                    assert_eq!((number, count), (next, 1));
                    assert_eq!(body, self.bodies[usize::try_from(number).unwrap() - 1]);
                    next += 1;
                    Ok::<(), io::Error>(())
                })
                .unwrap();
                assert_eq!((recovered.first, recovered.last, log.last()), (1, next - 1, next - 1));
                assert_eq!(recovered.lost, None);
                // A torn tail was zeroed.
                for (name, ..) in &self.segments {
                    if recovered.torn.is_some() || name == damaged {
                        self.restore(name);
                    }
                }
                Outcome::Recovered(recovered.last)
            }
            Err(OpenError::Corrupt(corruption)) => {
                assert!(corruption.to_string().contains("--accept-loss"));
                Outcome::Refused {
                    first: corruption.first,
                    last: corruption.last,
                    segment: corruption.segment,
                    offset: usize::try_from(corruption.offset).unwrap(),
                }
            }
            Err(OpenError::Io(error)) => panic!("{error}"),
        }
    }

    fn restore(&self, name: &str) {
        self.disk.edit(name, |bytes| bytes.clone_from(&self.images[name]));
    }

    /// Cuts a segment at every offset. `tally` counts the outcomes.
    fn truncate_everywhere(&self, index: usize, tally: &mut Tally) {
        let (name, ..) = &self.segments[index];
        let is_last = index + 1 == self.segments.len();
        for offset in 0..self.images[name].len() {
            self.disk.edit(name, |bytes| bytes.truncate(offset));
            let expected = self.after_cut(index, offset, is_last);
            tally.count(&self.open(name), &expected, || format!("{name} cut at {offset}"));
            self.restore(name);
        }
    }

    /// Only a later segment proves that something is missing; at the end of the log the watermark decides alone.
    fn after_cut(&self, index: usize, offset: usize, is_last: bool) -> Outcome {
        let used = self.segments[index].2.last().map_or(0, |place| place.end);
        if offset >= used {
            return Outcome::Recovered(self.count);
        }
        self.expect(index, offset, !is_last)
    }

    /// Flips every `stride`th bit of a segment.
    fn flip_everywhere(&self, index: usize, stride: usize, tally: &mut Tally) {
        let (name, first, places) = &self.segments[index];
        for bit in (0..self.images[name].len() * 8).step_by(stride) {
            let flip = |bytes: &mut Vec<u8>| bytes[bit / 8] ^= 1 << (bit % 8);
            self.disk.edit(name, flip);
            let expected = match places.iter().position(|place| (place.start..place.end).contains(&(bit / 8))) {
                None => Outcome::Recovered(self.count),
                // Every later group proves this one; the last one has nobody but the watermark.
                Some(at) => self.expect(index, places[at].start, first + (at as u64) < self.count),
            };
            let outcome = self.open(name);
            tally.count(&outcome, &expected, || format!("{name} bit {bit}"));
            match outcome {
                Outcome::Refused { .. } => self.disk.edit(name, flip),
                Outcome::Recovered(_) => self.restore(name),
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    recovered: u64,
    refused: u64,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome, expected: &Outcome, case: impl Fn() -> String) {
        assert_eq!(outcome, expected, "{}", case());
        match outcome {
            Outcome::Recovered(_) => self.recovered += 1,
            Outcome::Refused { .. } => self.refused += 1,
        }
    }

    fn report(&self, what: &str) {
        println!(
            "{what}: {} cases, {} recovered, {} refused by name",
            self.recovered + self.refused,
            self.recovered,
            self.refused
        );
        assert!(self.recovered > 0 && self.refused > 0);
    }
}

fn body(number: u64) -> Vec<u8> {
    let len = 20 + usize::try_from(number * 37 % 150).unwrap();
    (0..len).map(|at| u8::try_from((at as u64 * 31 + number) % 256).unwrap()).collect()
}

const HEADER_BYTES: usize = 44;

const BLOCK_BYTES: usize = 4096;

/// One segment of 64 KiB: every truncation, every bit.
#[test]
fn every_truncation_and_every_flipped_bit_of_a_segment() {
    let written = Written::new(64 * 1024, 1, 60);
    assert!(written.count > 300);
    let mut tally = Tally::default();
    written.truncate_everywhere(0, &mut tally);
    written.flip_everywhere(0, 1, &mut tally);
    assert_eq!(tally.recovered + tally.refused, 64 * 1024 * 9);
    tally.report("one segment of 64 KiB");
}

/// A log of sixteen segments of 4 KiB: every truncation of each, and every 13th bit.
#[test]
fn every_truncation_over_many_segments() {
    let written = Written::new(4 * 1024, 16, 20);
    let mut tally = Tally::default();
    for index in 0..written.segments.len() {
        written.truncate_everywhere(index, &mut tally);
        written.flip_everywhere(index, 13, &mut tally);
    }
    tally.report("sixteen segments of 4 KiB");
}

/// The last group is watched as well: then even damage to it is refused, and no flip within any group is recovered.
#[test]
fn a_watched_last_group_is_never_torn() {
    let written = Written::new(4 * 1024, 1, 0);
    let mut tally = Tally::default();
    written.truncate_everywhere(0, &mut tally);
    written.flip_everywhere(0, 1, &mut tally);
    let used = written.segments[0].2.last().unwrap().end as u64;
    assert_eq!(tally.refused, used * 9);
    tally.report("one segment of 4 KiB, all of it watched");
}
