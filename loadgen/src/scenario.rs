//! What a run does, and who talks to whom: pure, and decided by the seed alone.

use std::sync::Arc;

use crate::random::Random;

/// Who is there and what they send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections, each a device of its own.
    pub connections: usize,
    /// Users who own them, at most one per connection.
    pub users: usize,
    /// Payload sizes, smallest and largest, drawn evenly between them.
    pub payload_bytes: (usize, usize),
    /// Part of the messages that go to a group, 0 to 1.
    pub group_share: f64,
    /// Members of each group.
    pub group_size: usize,
    /// Decides every draw.
    pub seed: u64,
    /// Begins every name, so that runs on one gateway do not meet.
    pub tag: String,
    /// Connections that read slowly; they and the deaf are the last ones, and send nothing.
    pub slow: usize,
    /// Connections that read nothing any more once they are welcomed.
    pub deaf: usize,
    /// The first so many connections are spared by a storm, and are the only ones that send; 0: nobody is spared, and all send.
    pub spared: usize,
}

/// How a connection reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tempo {
    /// At once.
    Brisk,
    /// A little at a time.
    Slow,
    /// Never, once it is welcomed.
    Deaf,
}

impl Load {
    /// The connections, of so many, that one of the workers carries: each in turn. Those whom a storm spares have a worker of their own where
    /// there are several, so that they notice what befalls the gateway, not what all the others do to their worker.
    pub fn part(&self, worker: usize, workers: usize, all: usize) -> impl Iterator<Item = usize> + use<> {
        match self.turn(worker, workers) {
            Some((0, 1)) if workers > 1 => (0..self.spared).step_by(1),
            Some((turn, turns)) => (turn..all).step_by(turns),
            None => (self.spared + worker - 1..all).step_by(workers - 1),
        }
    }

    /// Which turn a worker has on the schedule, of how many; `None`: none of its connections sends.
    #[must_use]
    pub fn turn(&self, worker: usize, workers: usize) -> Option<(usize, usize)> {
        match (self.spared, workers, worker) {
            (0, ..) | (_, 1, _) => Some((worker, workers)),
            (.., 0) => Some((0, 1)),
            _ => None,
        }
    }

    /// How the connection with this index reads. The brisk ones come first, then the slow ones; devices of an audit are brisk.
    #[must_use]
    pub fn tempo(&self, index: usize) -> Tempo {
        let deaf_from = self.connections - self.deaf;
        if index >= self.connections || index < deaf_from - self.slow {
            Tempo::Brisk
        } else if index < deaf_from {
            Tempo::Slow
        } else {
            Tempo::Deaf
        }
    }
}

/// A conversation and its members.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// As the protocol names it.
    pub name: Arc<str>,
    /// Indices of users.
    pub members: Vec<u32>,
}

/// Users, devices and conversations of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Conversations; the direct ones first.
    pub conversations: Vec<Conversation>,
    /// For each user: the direct conversation, and the group if there is one.
    pub places: Vec<(u32, Option<u32>)>,
    tag: String,
}

impl Plan {
    /// Draws a plan. Users come in pairs that talk directly; with a group share each is in one group too.
    ///
    /// # Errors
    /// What cannot be.
    pub fn new(load: &Load) -> Result<Self, String> {
        if load.users == 0 || load.users > load.connections {
            return Err(format!("{} users need at least as many connections, not {}", load.users, load.connections));
        }
        if load.slow + load.deaf >= load.connections {
            return Err(format!("of {} connections one must read as it should", load.connections));
        }
        if load.spared > 0 && (load.users < load.connections || load.spared % 2 == 1 || load.spared >= load.connections) {
            return Err(
                "those whom the storm spares are users with one connection each, in pairs, and not all of them".to_owned()
            );
        }
        if !(0.0..=1.0).contains(&load.group_share) {
            return Err(format!("a group share lies between 0 and 1, not at {}", load.group_share));
        }
        if load.group_size == 0 {
            return Err("a group has at least one member".to_owned());
        }
        let index = |at: usize| u32::try_from(at).expect("fewer users than 2^32");
        let mut plan = Self { conversations: Vec::new(), places: Vec::with_capacity(load.users), tag: load.tag.clone() };
        for first in (0..load.users).step_by(2) {
            let second = (first + 1).min(load.users - 1);
            let name = format!("d:{}:{}", plan.user(index(first)), plan.user(index(second)));
            let mut members = vec![index(first), index(second)];
            members.dedup();
            plan.places.extend(members.iter().map(|_| (index(plan.conversations.len()), None)));
            plan.conversations.push(Conversation { name: name.into(), members });
        }
        if load.group_share > 0.0 {
            plan.groups(load);
        }
        Ok(plan)
    }

    /// Name of a user: zero-padded, so that the byte order of names is the order of numbers.
    #[must_use]
    pub fn user(&self, user: u32) -> String {
        format!("{}-{user:07}", self.tag)
    }

    /// Conversations that must be made by the operator.
    pub fn made_by_hand(&self) -> impl Iterator<Item = &Conversation> {
        self.conversations.iter().filter(|conversation| conversation.name.starts_with("g:"))
    }

    /// Which conversation the next message of `user` goes to.
    pub fn choose(&self, user: u32, group_share: f64, random: &mut Random) -> u32 {
        let (direct, group) = self.places[user as usize];
        group.filter(|_| random.unit() < group_share).unwrap_or(direct)
    }

    fn groups(&mut self, load: &Load) {
        let mut users: Vec<u32> = (0..u32::try_from(load.users).expect("fewer users than 2^32")).collect();
        let mut random = Random::new(load.seed ^ 0x6772_6f75_7073);
        for at in (1..users.len()).rev() {
            users.swap(at, random.below(at + 1));
        }
        for (number, members) in users.chunks(load.group_size).enumerate() {
            let at = u32::try_from(self.conversations.len()).expect("fewer conversations than 2^32");
            members.iter().for_each(|&user| self.places[user as usize].1 = Some(at));
            let name = format!("g:{}-{number:06}", self.tag).into();
            self.conversations.push(Conversation { name, members: members.to_vec() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        let payload_bytes = (64, 64);
        let tag = "t".to_owned();
        Load {
            connections: 20,
            users: 11,
            payload_bytes,
            group_share: 0.5,
            group_size: 4,
            seed: 1,
            tag,
            slow: 0,
            deaf: 0,
            spared: 0,
        }
    }

    /// Everybody has a direct conversation and a group, an odd one out talks to itself, and the seed decides the groups.
    #[test]
    fn everybody_has_a_place() {
        let plan = Plan::new(&load()).unwrap();
        assert_eq!(plan.conversations.len(), 6 + 3);
        assert_eq!(&*plan.conversations[0].name, "d:t-0000000:t-0000001");
        assert_eq!(&*plan.conversations[5].name, "d:t-0000010:t-0000010");
        for (user, (direct, group)) in (0..).zip(&plan.places) {
            assert!(plan.conversations[*direct as usize].members.contains(&user));
            assert!(plan.conversations[group.unwrap() as usize].members.contains(&user));
        }
        let same = Plan::new(&load()).unwrap();
        let other = Plan::new(&Load { seed: 2, ..load() }).unwrap();
        assert_eq!(plan.conversations[6].members, same.conversations[6].members);
        assert_ne!(plan.conversations[6].members, other.conversations[6].members);
    }

    /// The last connections are the deaf ones, those before them slow, and an audit reads as it should.
    #[test]
    fn the_last_ones_read_badly() {
        let load = Load { slow: 2, deaf: 3, ..load() };
        let tempos: Vec<Tempo> = (14..22).map(|index| load.tempo(index)).collect();
        let (brisk, slow, deaf) = (Tempo::Brisk, Tempo::Slow, Tempo::Deaf);
        assert_eq!(tempos, [brisk, slow, slow, deaf, deaf, deaf, brisk, brisk]);
        assert!(Plan::new(&Load { slow: 10, deaf: 10, ..load.clone() }).is_err());
        assert!(Plan::new(&Load { spared: 4, ..load.clone() }).is_err(), "users with two connections each");
        assert!(Plan::new(&Load { spared: 3, users: 20, ..load.clone() }).is_err());
        assert!(Plan::new(&Load { spared: 4, users: 20, ..load }).is_ok());
    }

    /// Whoever carries them, each connection is carried once; the spared are alone with the first worker, who sends alone.
    #[test]
    fn workers_share_the_connections() {
        for (spared, workers) in [(0, 3), (4, 1), (4, 3)] {
            let load = Load { spared, ..load() };
            let parts: Vec<Vec<usize>> = (0..workers).map(|worker| load.part(worker, workers, 31).collect()).collect();
            let senders: Vec<_> = (0..workers).filter_map(|worker| load.turn(worker, workers)).collect();
            if spared > 0 && workers > 1 {
                assert_eq!((&parts[0][..], &senders[..]), (&[0, 1, 2, 3][..], &[(0, 1)][..]));
            } else {
                assert_eq!(senders.len(), workers);
            }
            let mut all = parts.concat();
            all.sort_unstable();
            assert_eq!(all, (0..31).collect::<Vec<_>>());
        }
    }

    /// A share decides between group and direct; more users than connections are refused.
    #[test]
    fn the_share_is_kept() {
        let plan = Plan::new(&load()).unwrap();
        let mut random = Random::new(1);
        let groups = (0..10_000).filter(|_| plan.choose(3, 0.25, &mut random) >= 6).count();
        assert!((2_300..2_700).contains(&groups), "{groups}");
        assert!(Plan::new(&Load { users: 21, ..load() }).is_err());
    }
}
