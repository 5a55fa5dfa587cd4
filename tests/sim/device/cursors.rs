//! The cursors of a device: what it names by ACK, and what SYNC and the rows say of it. Some devices name an older one after it, as a
//! program does that was put back from an older copy: nothing may come of that.

use std::collections::BTreeMap;

use tidegate::wire::envelope::{ClientFrame, Cursor, Cursors as List};

use crate::MS;
use crate::ledger::{Conv, Finding};
use crate::random::Random;

/// See the module.
#[derive(Debug)]
pub struct Cursors {
    random: Random,
    /// Of a million ACKs so many are followed by an older one.
    pub older_ppm: u64,
    /// The older one, and when it goes.
    older: Option<(u64, Vec<Cursor<'static>>)>,
    places: BTreeMap<Conv, Place>,
}

/// The cursor of one conversation. Its epoch never changes here: a device that hears of another is a finding.
#[derive(Debug, Default)]
struct Place {
    /// The highest it ever named, and the highest on this connection.
    named: u64,
    named_here: u64,
    /// The highest that SYNC told. What a page shows is on disk before it is read, so no crash takes it back.
    told: u64,
}

impl Cursors {
    pub fn new(random: Random) -> Self {
        Self { random, older_ppm: 0, older: None, places: BTreeMap::new() }
    }

    pub fn connection_begins(&mut self) {
        self.older = None;
        self.places.values_mut().for_each(|place| place.named_here = 0);
    }

    /// An ACK was written.
    pub fn written(&mut self, now: u64, cursors: &List<'_>) {
        let mut older = Vec::new();
        for cursor in cursors {
            let place = self.places.entry((*cursor.conv).into()).or_default();
            place.named = place.named.max(cursor.seq);
            place.named_here = place.named_here.max(cursor.seq);
            if cursor.seq > 1 {
                older.push(Cursor { conv: cursor.conv.to_string().into(), seq: cursor.seq / 2 });
            }
        }
        if self.older_ppm > 0 && !older.is_empty() && self.random.chance(self.older_ppm) {
            self.older = Some((now + self.random.spread(300 * MS), older));
        }
    }

    /// When an older one is due.
    pub fn wake_at(&self) -> Option<u64> {
        self.older.as_ref().map(|(at, _)| *at)
    }

    /// The ACK that names older cursors, once it is due.
    pub fn older(&mut self, now: u64) -> Option<ClientFrame<'static>> {
        let (_, cursors) = self.older.take_if(|(at, _)| *at <= now)?;
        Some(ClientFrame::Ack { pos: 0, cursors: List::List(cursors) })
    }

    /// SYNC tells a cursor.
    ///
    /// # Errors
    /// It went back, or nobody named it.
    pub fn told(&mut self, conv: &Conv, mine: u64) -> Result<(), Finding> {
        let place = self.places.entry(conv.clone()).or_default();
        if mine < place.told || mine > place.named {
            let Place { named, told, .. } = place;
            return Err(format!("the cursor of {conv} is {mine} by SYNC, and was {told}; {named} is the highest that was named"));
        }
        place.told = mine;
        Ok(())
    }

    /// What was named on this connection, by conversation. While a connection stands nothing of it is lost.
    pub fn named_here(&self) -> impl Iterator<Item = (&Conv, u64)> {
        self.places.iter().map(|(conv, place)| (conv, place.named_here))
    }
}
