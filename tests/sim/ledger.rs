//! The truth: what clients said, what they were told, and what is stored. Whatever does not fit together is a finding.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use tidegate::ids::{Cmid, ConversationKind, conversation_kind};
use tidegate::store::engine_memory::MemoryEngine;
use tidegate::store::record::{self, MessageHeader, Value};
use tidegate::store::schema::{Hashes, Keyspace, msg_seq};

use crate::SECOND;
use crate::rude::RUDE;
use crate::tokens::Tokens;

pub type Conv = Arc<str>;

/// What is looked up for every delivery. Its order is arbitrary, and the same in every run.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// Something that must not be.
pub type Finding = String;

#[derive(Debug, Default)]
pub struct Ledger {
    pub said: Map<Cmid, Said>,
    /// What any client was told of a place in a conversation, by SENT, DELIVER or PAGE; by conversation, from seq 1 on.
    places: Map<Conv, Vec<Option<Cmid>>>,
    /// What users did, by user and conversation.
    parts: Map<Arc<str>, Map<Conv, Part>>,
    /// Who was, at some time, not allowed to write. What was said then and refused without a word that arrived may come again later.
    pub removed: BTreeSet<(Conv, Arc<str>)>,
    pub tokens: Tokens,
    /// What arrives now was said by a process that is gone.
    pub is_of_dead: bool,
    pub acknowledged_count: u64,
    pub delivered_count: u64,
    pub duplicates_count: u64,
}

#[derive(Debug)]
pub struct Said {
    pub device: usize,
    pub user: Arc<str>,
    pub conv: Conv,
    /// Counts what a device says.
    pub order: u64,
    pub payload: Arc<[u8]>,
    pub quiet: bool,
    pub acknowledged: Option<u64>,
}

/// What a user did in a conversation.
#[derive(Debug, Default)]
struct Part {
    /// How many messages were said and not answered by SENT.
    unanswered_count: usize,
    /// The highest READ.
    asked: u64,
    /// Confirmed by OK in this life of the process, with the time.
    confirmed: Vec<(u64, u64)>,
    /// Confirmed so long before a crash that it must be on disk.
    firm: u64,
}

/// A conversation as the rows have it.
#[derive(Debug, Default)]
pub struct Stored {
    pub messages: Vec<StoredMessage>,
    /// With the first seq each may see.
    pub members: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub struct StoredMessage {
    pub seq: u64,
    pub cmid: Cmid,
    pub from: String,
    pub quiet: bool,
    pub payload: Vec<u8>,
}

impl Ledger {
    pub fn says(&mut self, cmid: Cmid, said: Said) {
        self.part(&said.user, &said.conv).unanswered_count += 1;
        assert!(self.said.insert(cmid, said).is_none(), "cmids of the simulation are new");
    }

    /// SENT.
    ///
    /// # Errors
    /// The finding.
    pub fn acknowledged(&mut self, cmid: Cmid, seq: u64, duplicate: bool) -> Result<(), Finding> {
        let said = self.said.get_mut(&cmid).ok_or_else(|| format!("SENT for {cmid:?}, which nobody said"))?;
        if let Some(before) = said.acknowledged
            && before != seq
        {
            return Err(format!("{cmid:?} was acknowledged as {before} and as {seq}"));
        }
        let is_first = said.acknowledged.replace(seq).is_none();
        self.acknowledged_count += 1;
        self.duplicates_count += u64::from(duplicate);
        let (user, conv) = (said.user.clone(), said.conv.clone());
        self.part(&user, &conv).unanswered_count -= usize::from(is_first);
        self.place(&conv, seq, cmid, "SENT")
    }

    /// A message as a client has it. Returns its cmid, which its payload begins with.
    ///
    /// # Errors
    /// The finding.
    pub fn received(&mut self, conv: &str, seq: u64, from: &str, payload: &[u8], quiet: bool) -> Result<Cmid, Finding> {
        let cmid = cmid_of(payload).ok_or_else(|| format!("{conv} {seq}: a payload nobody wrote"))?;
        let said = self.said.get(&cmid).ok_or_else(|| format!("{conv} {seq}: {cmid:?}, which nobody said"))?;
        if *said.conv != *conv || *said.user != *from || *said.payload != *payload || said.quiet != quiet {
            return Err(format!("{conv} {seq}: not what {} said to {} as {cmid:?}", said.user, said.conv));
        }
        let conv = said.conv.clone();
        self.delivered_count += 1;
        self.place(&conv, seq, cmid, "a delivery")?;
        Ok(cmid)
    }

    fn place(&mut self, conv: &Conv, seq: u64, cmid: Cmid, by: &str) -> Result<(), Finding> {
        let index = place_index(seq).ok_or_else(|| format!("{conv} {seq}: {cmid:?} has no place, by {by}"))?;
        let places = entry(&mut self.places, conv);
        if places.len() <= index {
            places.resize(index + 1, None);
        }
        let stands = *places[index].get_or_insert(cmid);
        if stands != cmid {
            return Err(format!("{conv} {seq} was {stands:?} and is {cmid:?} by {by}"));
        }
        Ok(())
    }

    fn placed(&self, conv: &str, seq: u64) -> Option<Cmid> {
        *self.places.get(conv)?.get(place_index(seq)?)?
    }

    fn part(&mut self, user: &Arc<str>, conv: &Conv) -> &mut Part {
        entry(entry(&mut self.parts, user), conv)
    }

    fn part_of(&self, user: &str, conv: &str) -> Option<&Part> {
        self.parts.get(user)?.get(conv)
    }

    pub fn asks_read(&mut self, user: &Arc<str>, conv: &Conv, seq: u64) {
        let part = self.part(user, conv);
        part.asked = part.asked.max(seq);
    }

    pub fn confirms_read(&mut self, now: u64, user: &Arc<str>, conv: &Conv, seq: u64) {
        if !self.is_of_dead {
            self.part(user, conv).confirmed.push((now, seq));
        }
    }

    /// RECEIPT tells how far a user has read: not further than anybody of that user asked, or wrote.
    ///
    /// # Errors
    /// The finding.
    pub fn receipt(&self, conv: &Conv, user: &Arc<str>, read: u64) -> Result<(), Finding> {
        let part = self.part_of(user, conv);
        let asked = part.map_or(0, |part| part.asked);
        // The sender may not have heard yet that it is stored.
        if read <= asked || part.is_some_and(|part| part.unanswered_count > 0) {
            return Ok(());
        }
        let wrote = self.placed(conv, read).and_then(|cmid| self.said.get(&cmid)).is_some_and(|said| said.user == *user);
        if wrote { Ok(()) } else { Err(format!("{user} has read {conv} up to {read} by RECEIPT, and asked for {asked}")) }
    }

    /// The process ended without a word at `now`: what was confirmed shortly before may be gone.
    pub fn crashed(&mut self, now: u64) {
        for part in self.parts.values_mut().flat_map(Map::values_mut) {
            let firm = part.confirmed.drain(..).filter(|(at, _)| at + READ_FIRM_NS < now).map(|(_, seq)| seq).max();
            part.firm = part.firm.max(firm.unwrap_or(0));
        }
    }

    /// Compares with what a process finds when it starts.
    ///
    /// # Errors
    /// The finding.
    pub fn judge(&self, stored: &BTreeMap<String, Stored>) -> Result<(), Finding> {
        let told = self.places.iter().flat_map(|(conv, cmids)| (1..).zip(cmids).map(move |(seq, cmid)| (conv, seq, cmid)));
        for (conv, seq, cmid) in told {
            let Some(cmid) = cmid else { continue };
            let found = stored.get(&**conv).and_then(|stored| stored.messages.get(place_index(seq)?));
            match found {
                Some(message) if message.cmid == *cmid => {}
                Some(message) => return Err(format!("{conv} {seq}: {cmid:?} was told, {:?} is stored", message.cmid)),
                None => return Err(format!("{conv} {seq}: {cmid:?} was acknowledged or delivered, and is lost")),
            }
        }
        let mut known = BTreeMap::new();
        for (conv, stored) in stored {
            let mut orders: BTreeMap<usize, u64> = BTreeMap::new();
            for (place, message) in (1..).zip(&stored.messages) {
                let StoredMessage { seq, cmid, from, quiet, payload } = message;
                if *seq != place {
                    return Err(format!("{conv}: seq {place} is missing, {seq} is stored"));
                }
                if let Some(other) = known.insert(*cmid, (conv, *seq)) {
                    return Err(format!("{cmid:?} is stored twice: {other:?} and {conv} {seq}"));
                }
                let Some(said) = self.said.get(cmid) else {
                    return Err(format!("{conv} {seq}: {cmid:?} of {from}, which nobody said"));
                };
                if *said.conv != **conv || *said.user != **from || *said.payload != **payload || said.quiet != *quiet {
                    return Err(format!("{conv} {seq}: not what {} said as {cmid:?}", said.user));
                }
                let last = orders.entry(said.device).or_default();
                // Who waits for no answer has no order to be kept.
                if said.device >= RUDE || self.removed.contains(&(said.conv.clone(), said.user.clone())) {
                    continue;
                }
                if said.order <= *last {
                    return Err(format!(
                        "{conv} {seq}: message {} of device {} after its message {last}",
                        said.order, said.device
                    ));
                }
                *last = said.order;
                if let Some(acknowledged) = said.acknowledged
                    && acknowledged != *seq
                {
                    return Err(format!("{conv} {seq}: {cmid:?} was acknowledged as {acknowledged}"));
                }
            }
        }
        Ok(())
    }

    /// The read position and the count of unread messages that SYNC reports, against the slow obvious sum.
    ///
    /// # Errors
    /// The finding.
    pub fn judge_unread(&self, user: &Arc<str>, conv: &Conv, stored: &Stored, read: u64, unread: u32) -> Result<(), Finding> {
        let joined = stored.members.get(&**user).copied().unwrap_or(1).max(1);
        let seen = read.max(joined - 1);
        let expected = stored.messages.iter().filter(|message| message.seq > seen && !message.quiet).count().min(9_999);
        if unread as usize != expected {
            return Err(format!("{user} in {conv}: unread is {unread}, should be {expected} above {seen}"));
        }
        let own = stored.messages.iter().filter(|message| *message.from == **user).map(|message| message.seq).max().unwrap_or(0);
        let part = self.part_of(user, conv);
        let confirmed = part.map_or(0, |part| part.confirmed.iter().map(|(_, seq)| *seq).max().unwrap_or(0).max(part.firm));
        let highest = part.map_or(0, |part| part.asked).max(own);
        if read < own.max(confirmed) || read > highest {
            return Err(format!("{user} in {conv}: read is {read}; own {own}, confirmed {confirmed}, asked or own {highest}"));
        }
        Ok(())
    }
}

/// The value of a key, made if it is not there. Keys are cloned for new ones alone.
fn entry<'m, V: Default>(map: &'m mut Map<Arc<str>, V>, key: &Arc<str>) -> &'m mut V {
    if !map.contains_key(key) {
        map.insert(key.clone(), V::default());
    }
    map.get_mut(key).expect("just inserted")
}

/// Where a seq stands among places, which begin with seq 1.
fn place_index(seq: u64) -> Option<usize> {
    usize::try_from(seq.checked_sub(1)?).ok().filter(|index| *index < PLACES_MAX)
}

/// All conversations, as the rows have them.
///
/// # Errors
/// A row that cannot be read.
pub fn stored(engine: &MemoryEngine, hashes: Hashes) -> Result<BTreeMap<String, Stored>, Finding> {
    let mut names = BTreeMap::new();
    let mut all: BTreeMap<String, Stored> = BTreeMap::new();
    for (key, value) in engine.rows(Keyspace::Head) {
        let head = record::Head::decode(value).map_err(|_| "a head row is damaged")?;
        if hashes.conv(head.conv).0 != *key {
            return Err(format!("the head row of {} stands under another key", head.conv));
        }
        names.insert(hashes.conv(head.conv).0, head.conv.to_owned());
        let mut stored = Stored::default();
        if let Some(ConversationKind::Direct(a, b)) = conversation_kind(head.conv) {
            stored.members = [(a.to_owned(), 1), (b.to_owned(), 1)].into();
        }
        all.insert(head.conv.to_owned(), stored);
    }
    for (key, value) in engine.rows(Keyspace::Member) {
        let name = names.get(&key[..16]).ok_or("a member of a conversation that does not exist")?;
        let member = record::Member::decode(value).map_err(|_| "a member row is damaged")?;
        all.get_mut(name).expect("named").members.insert(member.user.to_owned(), member.joined);
    }
    for (key, value) in engine.rows(Keyspace::Msg) {
        let name = names.get(&key[..16]).ok_or("a message of a conversation that does not exist")?;
        let (header, payload) = MessageHeader::decode(value).map_err(|_| "a message row is damaged")?;
        all.get_mut(name).expect("named").messages.push(StoredMessage {
            seq: msg_seq(key).ok_or("a message key is damaged")?,
            cmid: header.cmid,
            from: header.from.to_owned(),
            quiet: header.flags & tidegate::wire::envelope::send_flags::QUIET != 0,
            payload: payload.to_vec(),
        });
    }
    Ok(all)
}

/// A payload that names its cmid and can be told from every other.
pub fn payload(cmid: Cmid, length: usize) -> Vec<u8> {
    let mut payload = cmid.0.to_vec();
    let mut word = u64::from_le_bytes(cmid.0[..8].try_into().expect("eight bytes"));
    while payload.len() < length {
        word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        payload.push(word.to_be_bytes()[0]);
    }
    payload
}

fn cmid_of(payload: &[u8]) -> Option<Cmid> {
    Some(Cmid(payload.get(..16)?.try_into().expect("sixteen bytes")))
}

/// READ is on disk with the next commit, within a second; a slow disk may need a while for it.
const READ_FIRM_NS: u64 = 5 * SECOND;
/// Seqs of a conversation that a run of a minute cannot reach.
const PLACES_MAX: usize = 1 << 20;
