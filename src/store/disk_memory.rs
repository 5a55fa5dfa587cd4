//! A disk in memory that can lie, tear and fail: for tests of everything above [`Disk`].

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::{Disk, Space};

/// Files in memory. Clones share them, so that a test keeps a hand on the disk that the log has taken.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

/// What a test may ask of the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Syncs that still succeed; after them every sync fails with EIO. `None`: all succeed.
    pub syncs_left: Option<u64>,
    /// Syncs claim success and keep nothing: the disk of a machine with a lying cache.
    pub sync_lies: bool,
    /// Bytes that may still be written before the disk is full. `None`: no end.
    pub room_bytes: Option<u64>,
    /// What the file system reports as free. `None`: plenty.
    pub free_bytes: Option<u64>,
    /// How long a sync takes.
    pub sync_takes: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// What the process sees.
    files: BTreeMap<String, Vec<u8>>,
    /// What would survive a power cut for certain.
    durable: BTreeMap<String, Vec<u8>>,
    /// What the last removed file held: the next one of its length is made of it.
    removed: Vec<u8>,
    /// Writes since the last sync of their file, in order.
    pending: Vec<(String, u64, Vec<u8>)>,
    faults: Faults,
    syncs_count: u64,
    salts_count: u32,
}

impl MemoryDisk {
    /// A disk that holds these files, all durable.
    #[must_use]
    pub fn with_files(files: BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        let mut state = disk.state();
        state.durable = files.clone();
        state.files = files;
        drop(state);
        disk
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Syncs asked for so far.
    #[must_use]
    pub fn syncs_count(&self) -> u64 {
        self.state().syncs_count
    }

    /// What the process sees: the image after kill -9, when the kernel lives on.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().files.clone()
    }

    /// Damages a file, or puts it right again, behind everybody's back. A file that does not exist is made.
    pub fn edit(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut state = self.state();
        change(state.files.entry(name.to_owned()).or_default());
        change(state.durable.entry(name.to_owned()).or_default());
    }

    /// The image after a power cut: what was synced, and of each later write whatever `keep` says, in 512-byte sectors.
    ///
    /// `keep(n)` is asked once per unsynced sector, counted from 0.
    #[must_use]
    pub fn power_cut(&self, keep: impl FnMut(u64) -> bool) -> BTreeMap<String, Vec<u8>> {
        self.power_cut_by(SECTOR_BYTES, keep)
    }

    /// As [`MemoryDisk::power_cut`], on a disk that tears its writes at any multiple of `unit` bytes.
    ///
    /// # Panics
    /// If `unit` is 0.
    #[must_use]
    pub fn power_cut_by(&self, unit: usize, mut keep: impl FnMut(u64) -> bool) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let mut files = state.durable.clone();
        let mut asked = 0;
        for (name, offset, bytes) in &state.pending {
            let Some(file) = files.get_mut(name) else { continue };
            let mut at = usize::try_from(*offset).expect("files fit memory");
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let unit_end = (at / unit + 1) * unit;
                let step = rest.len().min(unit_end - at);
                if keep(asked) {
                    file[at..at + step].copy_from_slice(&rest[..step]);
                }
                asked += 1;
                at += step;
                rest = &rest[step..];
            }
        }
        files
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    type File = String;

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.state().files.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<String> {
        let mut state = self.state();
        state.use_room(bytes)?;
        let mut contents = std::mem::take(&mut state.removed);
        if contents.len() as u64 != bytes {
            contents = vec![0; usize::try_from(bytes).expect("files fit memory")];
        }
        state.files.insert(name.to_owned(), contents.clone());
        state.durable.insert(name.to_owned(), contents);
        Ok(name.to_owned())
    }

    fn prepare(&mut self, _bytes: u64) {}

    fn open(&mut self, name: &str) -> io::Result<String> {
        if !self.state().files.contains_key(name) {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(name.to_owned())
    }

    fn len(&mut self, file: &String) -> io::Result<u64> {
        self.state().files.get(file).map(|bytes| bytes.len() as u64).ok_or(ErrorKind::NotFound.into())
    }

    fn read_at(&mut self, file: &String, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let bytes = state.files.get(file).ok_or(ErrorKind::NotFound)?;
        let start = usize::try_from(offset).expect("files fit memory");
        let part = bytes.get(start..start + buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&mut self, file: &String, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let contents = state.files.get_mut(file).ok_or(ErrorKind::NotFound)?;
        let start = usize::try_from(offset).expect("files fit memory");
        let part = contents.get_mut(start..start + bytes.len()).ok_or(ErrorKind::UnexpectedEof)?;
        part.copy_from_slice(bytes);
        state.pending.push((file.clone(), offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, file: &String) -> io::Result<()> {
        let mut state = self.state();
        state.syncs_count += 1;
        if !state.faults.sync_takes.is_zero() {
            std::thread::sleep(state.faults.sync_takes);
        }
        if let Some(left) = &mut state.faults.syncs_left {
            if *left == 0 {
                return Err(io::Error::other("EIO by order of the test"));
            }
            *left -= 1;
        }
        if state.faults.sync_lies {
            return Ok(());
        }
        let State { durable, pending, .. } = &mut *state;
        let contents = durable.get_mut(file).ok_or(ErrorKind::NotFound)?;
        pending.retain(|(name, offset, bytes)| {
            if name == file {
                let start = usize::try_from(*offset).expect("files fit memory");
                contents[start..start + bytes.len()].copy_from_slice(bytes);
            }
            name != file
        });
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.removed = state.durable.remove(name).unwrap_or_default();
        state.pending.retain(|(pending, ..)| pending != name);
        state.files.remove(name).map(drop).ok_or(ErrorKind::NotFound.into())
    }

    fn read_small(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state().files.get(name).cloned())
    }

    fn replace_small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.files.insert(name.to_owned(), bytes.to_vec());
        state.durable.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn salt(&mut self) -> u32 {
        let mut state = self.state();
        state.salts_count += 1;
        state.salts_count.wrapping_mul(0x9E37_79B9)
    }

    fn space(&mut self) -> io::Result<Space> {
        let total_bytes = 1 << 40;
        Ok(Space { free_bytes: self.state().faults.free_bytes.unwrap_or(total_bytes), total_bytes })
    }
}

impl State {
    fn use_room(&mut self, bytes: u64) -> io::Result<()> {
        let Some(room) = &mut self.faults.room_bytes else { return Ok(()) };
        *room = room.checked_sub(bytes).ok_or(ErrorKind::StorageFull)?;
        Ok(())
    }
}

const SECTOR_BYTES: usize = 512;
