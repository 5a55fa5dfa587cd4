//! A seeded mutator: from bytes that mean something to bytes that nearly do. The same seed makes the same inputs.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Longest input that is made.
pub const INPUT_BYTES_MAX: usize = 24 * 1024;

/// A new input from one of `pool`, changed in a few places; `words` are byte strings that mean something to the target.
pub fn mutate(random: &mut Random, pool: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(5) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(64) + 1);
        match random.below(10) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = EDGES[random.below(EDGES.len())],
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add([1, 255][random.below(2)]),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, random.pick(words).iter().copied())),
            5 => drop(bytes.splice(at..end, random.pick(words).iter().copied())),
            6 => {
                let again = bytes[at..end].repeat(1 + random.below(3));
                bytes.splice(at..at, again);
            }
            7 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            8 => bytes.truncate(at),
            _ => {
                let noise = random.next().to_le_bytes();
                bytes.splice(at..at, noise[..=random.below(noise.len() - 1)].iter().copied());
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

const EDGES: [u8; 14] = [0, 1, 2, 3, 125, 126, 127, 128, 0x81, 0x82, 0x88, 0xfe, 0xff, b'\r'];
