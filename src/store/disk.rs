//! The disk as the log sees it: a small trait, so that a test can tear, lose, delay and fail what is written.

use std::io;

/// Files of one directory. Names are plain file names.
///
/// A file is written in place and made durable by [`Disk::sync`]; what was not synced may be lost, or kept in part, by a crash.
pub trait Disk {
    /// An open file.
    type File;

    /// Names of all files.
    ///
    /// # Errors
    /// The kernel's.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// A new file of `bytes`, durable with its name: writing into it later changes no metadata. It holds zeros, or what a removed file of
    /// that length held.
    ///
    /// # Errors
    /// The kernel's, `StorageFull` above all; no file of that name is left then.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Self::File>;

    /// Says that a file of `bytes` will be created soon, so that one can be made ready beforehand. May do nothing.
    fn prepare(&mut self, bytes: u64);

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&mut self, name: &str) -> io::Result<Self::File>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn len(&mut self, file: &Self::File) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The kernel's; `UnexpectedEof` if the file ends before.
    fn read_at(&mut self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `offset`, all of them.
    ///
    /// # Errors
    /// The kernel's; part of the bytes may stand then.
    fn write_at(&mut self, file: &Self::File, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written to the file durable (`fdatasync`).
    ///
    /// # Errors
    /// The kernel's. A failed sync is final: the kernel may have dropped what it could not write.
    fn sync(&mut self, file: &Self::File) -> io::Result<()>;

    /// Removes a file, durably: of several removals none is undone by a crash unless all later ones are.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// As [`Disk::remove`], without waiting for it where the disk can do so, in the order of the calls. `false`: too much waits to be done,
    /// and nothing was begun. What fails is tried again before the next one.
    ///
    /// # Errors
    /// The kernel's, if it did wait.
    fn remove_aside(&mut self, name: &str) -> io::Result<bool> {
        self.remove(name).map(|()| true)
    }

    /// Contents of a tiny file, `None` if there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn read_small(&mut self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Puts a tiny file in the place of an older one: either the old or the new contents survive a crash, never a mixture.
    ///
    /// # Errors
    /// The kernel's.
    fn replace_small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// As [`Disk::replace_small`], without waiting for it where the disk can do so; any later replacement comes after it. `false`: too much
    /// waits to be done, and nothing was begun. For contents that may be old: what fails is told to nobody.
    ///
    /// # Errors
    /// The kernel's, if it did wait.
    fn replace_small_aside(&mut self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        self.replace_small(name, bytes).map(|()| true)
    }

    /// A number that nobody outside can guess; another one each time.
    fn salt(&mut self) -> u32;

    /// Room on the file system.
    ///
    /// # Errors
    /// The kernel's.
    fn space(&mut self) -> io::Result<Space>;
}

/// Room on a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Bytes an unprivileged process may still write.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// When SEND is refused for want of space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceRule {
    /// Refuse below this many free bytes,
    pub free_bytes_min: u64,
    /// or below this part of the file system in percent, whichever is reached first.
    pub free_percent_min: u8,
}

impl SpaceRule {
    /// Whether `space` is too little for new messages.
    #[must_use]
    pub fn is_short(self, space: Space) -> bool {
        let percent = u128::from(space.free_bytes) * 100 < u128::from(space.total_bytes) * u128::from(self.free_percent_min);
        space.free_bytes < self.free_bytes_min || percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Either bound refuses, and 0 switches a bound off.
    #[test]
    fn either_bound_refuses() {
        let rule = SpaceRule { free_bytes_min: 1000, free_percent_min: 5 };
        assert!(rule.is_short(Space { free_bytes: 999, total_bytes: 2000 }));
        assert!(!rule.is_short(Space { free_bytes: 1000, total_bytes: 2000 }));
        assert!(rule.is_short(Space { free_bytes: 4999, total_bytes: 100_000 }));
        assert!(!SpaceRule { free_bytes_min: 0, free_percent_min: 0 }.is_short(Space { free_bytes: 0, total_bytes: 10 }));
    }
}
