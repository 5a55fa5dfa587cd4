//! The disk of the machine: one directory, plain files.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::disk::{Disk, Space};
use crate::limits::DISK_CHORES_MAX;

/// Files under one directory, which is made if it is missing.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    /// Handle of the directory: syncing it makes names durable.
    handle: File,
    /// A file of zeros being written ahead.
    spare: Option<JoinHandle<io::Result<u64>>>,
    /// Length of the files that will be created: a removed one of it is kept for the next.
    usual_bytes: u64,
    /// Where changes of names are made that nobody waits for.
    aside: Option<Aside>,
}

/// A thread with work, ended when dropped, after the work it has. To sync a directory is to wait for the journal of the file system and
/// all that it orders before it: tens of milliseconds while tables are written.
#[derive(Debug)]
struct Aside {
    chores: Option<SyncSender<Chore>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Chore {
    /// A name, and the length of a file that is kept.
    Remove(String, u64),
    Replace(String, Vec<u8>),
    /// Says when everything before it is done.
    Tell(SyncSender<()>),
}

impl RealDisk {
    /// The directory `dir`.
    ///
    /// # Errors
    /// The kernel's, naming the directory.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(named)?;
        let handle = File::open(dir).map_err(named)?;
        Ok(Self { dir: dir.to_owned(), handle, spare: None, usual_bytes: 0, aside: None })
    }

    /// Whether there was room for it.
    fn do_aside(&mut self, chore: Chore) -> io::Result<bool> {
        if self.aside.is_none() {
            self.aside = Some(Aside::start(&self.dir, self.handle.try_clone()?)?);
        }
        let chores = self.aside.as_ref().and_then(|aside| aside.chores.as_ref());
        Ok(chores.is_some_and(|chores| chores.try_send(chore).is_ok()))
    }

    /// Waits until everything aside is done.
    fn settle(&self) {
        let (told, done) = sync_channel(1);
        let chores = self.aside.as_ref().and_then(|aside| aside.chores.as_ref());
        // Without a thread, or with one that has ended, nothing is under way.
        if chores.is_some_and(|chores| chores.send(Chore::Tell(told)).is_ok()) {
            let _ = done.recv();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Waits for the spare; whether one of this size stands ready.
    fn take_spare(&mut self, bytes: u64) -> bool {
        let Some(spare) = self.spare.take() else { return false };
        matches!(spare.join(), Ok(Ok(written)) if written == bytes)
    }
}

impl Disk for RealDisk {
    type File = File;

    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<File> {
        let (spare, kept) = (self.path(SPARE), self.path(KEPT));
        let ready = if self.take_spare(bytes) {
            spare
        } else if len(&kept) == Some(bytes) {
            kept
        } else {
            write_zeros(&spare, bytes).inspect_err(|_| drop(fs::remove_file(&spare)))?;
            spare
        };
        fs::rename(ready, self.path(name))?;
        self.handle.sync_all()?;
        self.open(name)
    }

    fn prepare(&mut self, bytes: u64) {
        self.usual_bytes = bytes;
        if self.spare.is_none() && len(&self.path(KEPT)) != Some(bytes) {
            let path = self.path(SPARE);
            let write = move || write_zeros(&path, bytes).inspect_err(|_| drop(fs::remove_file(&path)));
            // Without a thread the zeros are written when they are needed.
            self.spare = std::thread::Builder::new().name("zeros".to_owned()).spawn(write).ok();
        }
    }

    fn open(&mut self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(name))
    }

    fn len(&mut self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&mut self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.settle();
        remove(&self.dir, &self.handle, name, self.usual_bytes)
    }

    fn remove_aside(&mut self, name: &str) -> io::Result<bool> {
        self.do_aside(Chore::Remove(name.to_owned(), self.usual_bytes))
    }

    fn read_small(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.settle();
        replace(&self.dir, &self.handle, name, bytes)
    }

    fn replace_small_aside(&mut self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        self.do_aside(Chore::Replace(name.to_owned(), bytes.to_owned()))
    }

    fn salt(&mut self) -> u32 {
        // The standard library seeds its hash tables from the kernel, per process and with every new state.
        let bytes = RandomState::new().hash_one(std::process::id()).to_le_bytes();
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn space(&mut self) -> io::Result<Space> {
        let (free_bytes, total_bytes) = crate::io::file::space(&self.handle)?;
        Ok(Space { free_bytes, total_bytes })
    }
}

impl Drop for RealDisk {
    /// The file of zeros must not be written on while the next owner of the directory makes a segment of it.
    fn drop(&mut self) {
        self.take_spare(0);
    }
}

impl Aside {
    fn start(dir: &Path, handle: File) -> io::Result<Self> {
        let (chores, to_do) = sync_channel(DISK_CHORES_MAX);
        let dir = dir.to_owned();
        let work = move || do_chores(&dir, &handle, &to_do);
        let thread = std::thread::Builder::new().name("chores".to_owned()).spawn(work)?;
        Ok(Self { chores: Some(chores), thread: Some(thread) })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.chores = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until the disk is dropped.
fn do_chores(dir: &Path, handle: &File, to_do: &Receiver<Chore>) {
    // One that cannot be removed keeps back those behind it: a log must not have a hole.
    let mut doomed = VecDeque::new();
    while let Ok(chore) = to_do.recv() {
        match chore {
            Chore::Remove(name, kept_bytes) => doomed.push_back((name, kept_bytes)),
            Chore::Replace(name, bytes) => drop(replace(dir, handle, &name, &bytes)),
            Chore::Tell(done) => drop(done.send(())),
        }
        while doomed.front().is_some_and(|(name, kept_bytes)| remove(dir, handle, name, *kept_bytes).is_ok()) {
            doomed.pop_front();
        }
    }
}

/// One of `kept_bytes` is kept under another name, unless there is one, or somebody has given it a second name to keep what it holds. One
/// that is gone already only has to be gone for good.
fn remove(dir: &Path, handle: &File, name: &str, kept_bytes: u64) -> io::Result<()> {
    let (path, kept) = (dir.join(name), dir.join(KEPT));
    let is_usual = kept_bytes > 0 && fs::metadata(&path).is_ok_and(|file| file.len() == kept_bytes && file.nlink() == 1);
    let done = if is_usual && len(&kept) != Some(kept_bytes) { fs::rename(path, kept) } else { fs::remove_file(path) };
    match done {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => handle.sync_all(),
    }
}

/// `None`: there is no such file.
fn len(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.len())
}

fn replace(dir: &Path, handle: &File, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, dir.join(name))?;
    handle.sync_all()
}

/// Writes a file of zeros and makes it durable. Allocating alone would leave extents marked unwritten, and the first sync into
/// each would have to write metadata as well.
fn write_zeros(path: &Path, bytes: u64) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let step = usize::try_from(left.min(1 << 20)).expect("at most a MiB");
        file.write_all(&zeros[..step])?;
        left -= step as u64;
    }
    file.sync_all()?;
    Ok(bytes)
}

/// Name of the file being written ahead; never a segment.
const SPARE: &str = "spare.new";
/// Name of a removed file that is kept for the next one of its length; no more a segment.
const KEPT: &str = "kept.new";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::log::{Log, LogSettings};

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidegate-disk-{name}-{}", std::process::id()));
            drop(fs::remove_dir_all(&path));
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    /// Files are made of zeros, with a spare and without one, hold what was written, and go when removed; a tiny file is replaced.
    #[test]
    fn files_hold_what_was_written() {
        let dir = Dir::new("files");
        let mut disk = RealDisk::new(&dir.0).unwrap();
        let mut buffer = [1; 5];
        for (name, prepared) in [("a", 0), ("b", 3_000_000), ("c", 7)] {
            disk.prepare(prepared);
            let file = disk.create(name, 3_000_000).unwrap();
            assert_eq!(disk.len(&file).unwrap(), 3_000_000);
            disk.read_at(&file, 2_999_995, &mut buffer).unwrap();
            assert_eq!(buffer, [0; 5]);
            disk.write_at(&file, 1_000, b"hello").unwrap();
            disk.sync(&file).unwrap();
        }
        let file = disk.open("b").unwrap();
        disk.read_at(&file, 1_000, &mut buffer).unwrap();
        assert_eq!(&buffer, b"hello");
        assert_eq!(disk.read_at(&file, 2_999_999, &mut buffer).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(disk.read_small("tiny").unwrap(), None);
        disk.replace_small("tiny", b"one").unwrap();
        disk.replace_small("tiny", b"two").unwrap();
        assert_eq!(disk.read_small("tiny").unwrap(), Some(b"two".to_vec()));
        disk.remove("a").unwrap();
        let mut names = disk.list().unwrap();
        names.sort_unstable();
        assert_eq!(names, ["b", "c", "tiny"]);
        assert!(disk.space().unwrap().total_bytes > 0);
        assert_ne!((disk.salt(), disk.salt()), (disk.salt(), disk.salt()));
    }

    /// A removed file of the usual length is what the next one is made of, also by another process; one of another length is gone, as is
    /// a second one.
    #[test]
    fn a_removed_file_becomes_the_next() {
        let dir = Dir::new("kept");
        let mut disk = RealDisk::new(&dir.0).unwrap();
        disk.prepare(5_000);
        for name in ["a", "b", "c"] {
            let file = disk.create(name, 5_000).unwrap();
            disk.write_at(&file, 0, name.as_bytes()).unwrap();
        }
        disk.create("long", 6_000).unwrap();
        disk.create("linked", 5_000).unwrap();
        fs::hard_link(disk.path("linked"), disk.path("second name")).unwrap();
        disk.remove("long").unwrap();
        disk.remove("linked").unwrap();
        assert!(disk.remove_aside("a").unwrap() && disk.remove_aside("b").unwrap());
        drop(disk);
        let mut disk = RealDisk::new(&dir.0).unwrap();
        let mut names = disk.list().unwrap();
        names.sort_unstable();
        assert_eq!(names, ["c", KEPT, "second name"]);
        disk.prepare(5_000);
        let held = |disk: &mut RealDisk, name: &str| {
            let file = disk.create(name, 5_000).unwrap();
            let mut first = [1];
            disk.read_at(&file, 0, &mut first).unwrap();
            first[0]
        };
        assert_eq!((held(&mut disk, "d"), held(&mut disk, "e")), (b'a', 0));
    }

    /// What is done aside is done in order and before anything that is waited for; a file that cannot be removed keeps back those behind
    /// it, until it can.
    #[test]
    fn what_is_done_aside_is_done_in_order() {
        let dir = Dir::new("aside");
        let mut disk = RealDisk::new(&dir.0).unwrap();
        fs::create_dir(disk.path("stubborn")).unwrap();
        fs::write(disk.path("later"), "").unwrap();
        for contents in [b"1", b"2", b"3"] {
            assert!(disk.replace_small_aside("tiny", contents).unwrap());
        }
        assert!(disk.remove_aside("stubborn").unwrap() && disk.remove_aside("later").unwrap());
        disk.settle();
        assert_eq!(disk.read_small("tiny").unwrap(), Some(b"3".to_vec()));
        assert!(disk.path("later").exists());
        fs::remove_dir(disk.path("stubborn")).unwrap();
        assert!(disk.replace_small_aside("tiny", b"4").unwrap());
        disk.replace_small("tiny", b"5").unwrap();
        assert_eq!(disk.read_small("tiny").unwrap(), Some(b"5".to_vec()));
        assert!(!disk.path("later").exists());
        assert!(disk.replace_small_aside("tiny", b"6").unwrap());
        drop(disk);
        assert_eq!(fs::read(dir.0.join("tiny")).unwrap(), b"6");
    }

    /// A log on a real disk comes back over several openings, each of which leaves a spare behind for the next to find.
    #[test]
    fn a_log_on_a_real_disk_comes_back() {
        let dir = Dir::new("log");
        let settings = LogSettings { segment_bytes: 1 << 16, accept_loss: false, projected: 0 };
        let mut written: Vec<Vec<u8>> = Vec::new();
        for opening in 0..5 {
            let (mut log, recovered) = Log::open(RealDisk::new(&dir.0).unwrap(), settings).unwrap();
            assert_eq!((recovered.last, recovered.torn, recovered.lost), (written.len() as u64, None, None));
            let mut held = Vec::new();
            log.replay(0, |_, _, body| {
                held.push(body.to_vec());
                Ok::<(), io::Error>(())
            })
            .unwrap();
            assert_eq!(held, written);
            for number in 0..40_u8 {
                written.push(vec![number ^ opening; 1_000 + usize::from(number) * 50]);
                log.write(1, written.last().unwrap()).unwrap();
                log.sync().unwrap();
            }
            log.save_watermark().unwrap();
        }
    }
}
