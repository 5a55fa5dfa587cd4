//! Devices and rude clients, and the links they are connected by.

use tidegate_client::Stop;

use super::faults::Fault;
use super::{Happening, World};
use crate::device::Wishes;
use crate::ledger::Finding;
use crate::network::{Due, End, Link};
use crate::rude::{Manner, RUDE};
use crate::{MS, SECOND, US};

impl World {
    pub(super) fn turn_device(&mut self, device: usize) -> Result<(), Finding> {
        let now = self.now;
        let Self { devices, ledger, plan, made, .. } = self;
        let who = &mut devices[device];
        if self.is_troubled && !who.is_auditor && who.next_say <= now {
            let backlog = (usize::from(plan.send_window) * 4).clamp(8, 64);
            let times = if who.random.chance(plan.burst_ppm) { who.random.between(5, 40) } else { 1 };
            for _ in 0..times {
                // A person who sees that nothing leaves stops writing.
                if who.machine.unsent_count() < backlog {
                    who.say(ledger, plan.payload_max, made);
                }
            }
            if who.random.chance(200_000) {
                who.read(ledger);
            }
            if plan.renew_ppm > 0 && who.random.chance(plan.renew_ppm) {
                who.renew(now, ledger);
            }
            who.next_say = now + who.random.spread(plan.send_every_ns);
        }
        self.pump_device(device, Wishes::default())
    }

    pub(super) fn pump_device(&mut self, device: usize, mut wishes: Wishes) -> Result<(), Finding> {
        let now = self.now;
        let link = self.devices[device].link;
        self.devices[device].pump(now, &mut self.ledger, &mut wishes)?;
        if let Some(link) = link {
            let mut due = Due::default();
            if !wishes.bytes.is_empty() {
                self.hash(&wishes.bytes);
                self.links[link].client_writes(now, wishes.bytes, &self.weather, &mut due);
            }
            if wishes.close {
                self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
                self.links[link].client_gone = true;
            }
            self.note_due(link, due);
        }
        if wishes.connect {
            let core = self.random.index(self.plan.cores);
            let at = now + self.weather.latency(&mut self.random);
            self.push(at, Happening::Opened { device, core });
        }
        let who = &self.devices[device];
        if let Some(stop) = who.machine.stopped()
            && !(who.is_auditor && stop == Stop::Closed)
            && self.is_troubled | (stop != Stop::Closed)
        {
            if stop != Stop::Replaced {
                return Err(format!("device {device} stopped: {stop:?}"));
            }
            // An earlier connection of this device came through late and took its place; the person starts the program again.
            self.restart_device(device);
            return Ok(());
        }
        let mut at = who.machine.poll_timeout().map_or(u64::MAX, |at| u64::try_from(at.as_nanos()).expect("seconds"));
        at = at.min(who.cursors.wake_at().unwrap_or(u64::MAX));
        if self.is_troubled && !who.is_auditor {
            at = at.min(who.next_say);
        }
        if at != u64::MAX {
            // What has passed and changed nothing waits for an answer.
            self.wake_device(device, if at <= now { now + 20 * MS } else { at });
        }
        Ok(())
    }

    pub(super) fn wake_device(&mut self, device: usize, at: u64) {
        self.devices[device].due = at;
        self.push(at, Happening::Device { device });
    }

    pub(super) fn wake_rude(&mut self, rude: usize, at: u64) {
        self.rudes[rude].due = at;
        self.push(at, Happening::Device { device: RUDE + rude });
    }

    pub(super) fn turn_rude(&mut self, number: usize) -> Result<(), Finding> {
        if self.are_rude_gone {
            return Ok(());
        }
        let Self { rudes, ledger, plan, .. } = self;
        let rude = &mut rudes[number];
        let mut wishes = Wishes::default();
        if self.is_troubled {
            rude.act(ledger, &mut wishes, plan.payload_max);
        }
        let (link, pause) = (rude.link, rude.pause());
        match link {
            Some(link) => self.rude_writes(link, wishes),
            None => {
                let core = self.random.index(self.plan.cores);
                let at = self.now + self.weather.latency(&mut self.random);
                self.push(at, Happening::Opened { device: RUDE + number, core });
            }
        }
        self.wake_rude(number, self.now + pause + 50 * MS);
        Ok(())
    }

    pub(super) fn rude_writes(&mut self, link: usize, wishes: Wishes) {
        let mut due = Due::default();
        if !wishes.bytes.is_empty() {
            self.hash(&wishes.bytes);
            self.links[link].client_writes(self.now, wishes.bytes, &self.weather, &mut due);
        }
        if wishes.close {
            self.links[link].client_ends(self.now, End::Fin, &self.weather, &mut due);
            self.links[link].client_gone = true;
        }
        self.note_due(link, due);
    }

    /// Something, or the end, has come to a rude client.
    pub(super) fn down_rude(&mut self, link: usize, bytes: &[u8], end: Option<End>) -> Result<(), Finding> {
        let number = self.links[link].device - RUDE;
        if self.links[link].client_gone || self.rudes[number].link != Some(link) || (bytes.is_empty() && end.is_none()) {
            return Ok(());
        }
        self.trace(Happening::Down { link });
        self.hash(bytes);
        let mut wishes = Wishes::default();
        let now = self.now;
        self.rudes[number].handle_bytes(now, bytes, &mut self.ledger, &mut wishes)?;
        if end.is_some() && self.rudes[number].link == Some(link) {
            wishes.close = true;
            self.rudes[number].disconnected();
        }
        self.rude_writes(link, wishes);
        Ok(())
    }

    /// Those whose manners nobody can wait for end without a word.
    pub(super) fn send_away(&mut self, who: impl Fn(Manner) -> bool) {
        for number in 0..self.rudes.len() {
            if who(self.rudes[number].manner) {
                self.rudes[number].due = 0;
                if let Some(link) = self.rudes[number].link.take() {
                    self.rudes[number].disconnected();
                    let mut due = Due::default();
                    self.links[link].client_ends(self.now, End::Reset, &self.weather, &mut due);
                    self.note_due(link, due);
                }
            }
        }
    }

    pub(super) fn open_rude(&mut self, number: usize, core: usize) {
        let is_open = self.process.as_ref().is_some_and(|process| process.ends_by.is_none());
        if self.rudes[number].link.is_some() || self.are_rude_gone || !is_open {
            return;
        }
        let link = self.links.len();
        self.links.push(Link::new(RUDE + number, core, self.life, self.random.stream("link", link as u64)));
        let bytes = self.rudes[number].connected(link);
        self.process.as_mut().expect("lives").cores[core].arrivals.push_back(link);
        self.wake_core(core, 50 * US);
        self.rude_writes(link, Wishes { bytes, ..Wishes::default() });
    }

    pub(super) fn open(&mut self, device: usize, core: usize) -> Result<(), Finding> {
        if device >= RUDE {
            self.open_rude(device - RUDE, core);
            return Ok(());
        }
        if self.devices[device].link.is_some() {
            return Ok(());
        }
        if self.process.as_ref().is_none_or(|process| process.ends_by.is_some()) {
            self.devices[device].disconnected(self.now);
            return self.pump_device(device, Wishes::default());
        }
        let link = self.links.len();
        self.links.push(Link::new(device, core, self.life, self.random.stream("link", link as u64)));
        if !self.is_troubled {
            self.links[link].widen();
        }
        let bytes = self.devices[device].connected(link);
        self.process.as_mut().expect("lives").cores[core].arrivals.push_back(link);
        self.wake_core(core, 50 * US);
        self.pump_device(device, Wishes { bytes, ..Wishes::default() })
    }

    pub(super) fn down(&mut self, link: usize) -> Result<(), Finding> {
        // What a process said before it died may arrive when the next one lives, which promises nothing of it.
        self.ledger.is_of_dead = self.links[link].life != self.life || self.process.is_none();
        let result = self.arrive(link);
        self.ledger.is_of_dead = false;
        result
    }

    pub(super) fn arrive(&mut self, link: usize) -> Result<(), Finding> {
        let mut due = Due::default();
        let now = self.now;
        let bytes = self.links[link].client_reads(now, &self.weather, &mut due);
        let end = self.links[link].client_sees_end(now);
        self.note_due(link, due);
        let device = self.links[link].device;
        if device >= RUDE {
            return self.down_rude(link, &bytes, end);
        }
        if self.links[link].client_gone || self.devices[device].link != Some(link) {
            return Ok(());
        }
        if bytes.is_empty() && end.is_none() {
            return Ok(());
        }
        self.trace(Happening::Down { link });
        self.hash(&bytes);
        let mut wishes = Wishes::default();
        self.devices[device].handle_bytes(now, &bytes, &mut self.ledger, &mut wishes)?;
        if end.is_some() && self.devices[device].link == Some(link) {
            self.links[link].client_gone = true;
            let mut due = Due::default();
            if end == Some(End::Fin) {
                self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
            }
            self.note_due(link, due);
            self.devices[device].disconnected(now);
            return self.pump_device(device, Wishes::default());
        }
        if self.devices[device].link.is_none() {
            // The device has let go of it while it read.
            let mut due = Due::default();
            if !wishes.bytes.is_empty() {
                self.links[link].client_writes(now, wishes.bytes, &self.weather, &mut due);
            }
            self.links[link].client_ends(now, End::Fin, &self.weather, &mut due);
            self.links[link].client_gone = true;
            self.note_due(link, due);
            return self.pump_device(device, Wishes::default());
        }
        self.pump_device(device, wishes)
    }

    pub(super) fn note_due(&mut self, link: usize, due: Due) {
        for at in due.core {
            self.push(at.max(self.now), Happening::Up { link });
        }
        for at in due.device {
            self.push(at.max(self.now), Happening::Down { link });
        }
    }

    /// The program of a device ends without a word, and is started again.
    pub(super) fn restart_device(&mut self, device: usize) {
        if let Some(link) = self.devices[device].link {
            self.links[link].client_gone = true;
            let mut due = Due::default();
            if self.random.chance(500_000) {
                self.links[link].client_ends(self.now, End::Reset, &self.weather, &mut due);
            } else {
                // The machine it ran on is gone: nobody answers, until the gateway notices.
                let at = self.now + self.random.spread(5 * SECOND);
                self.push(at, Happening::Mended { fault: Fault::DeviceRestart, what: link });
            }
            self.note_due(link, due);
        }
        self.devices[device].restart(self.plan.window);
        let at = self.now + self.random.spread(200 * MS);
        self.wake_device(device, at);
    }
}
