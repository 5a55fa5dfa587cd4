//! What the standard library does not tell about files.                                                              [libc]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bytes free to an unprivileged process, and bytes in all, of the file system that holds `file`.
///
/// # Errors
/// The kernel's.
pub fn space(file: &File) -> io::Result<(u64, u64)> {
    // SAFETY: all zeros is a valid value of this structure of integers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for the length of the call, and `stat` is a writable structure of the type asked for.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root file system has room, and no more than it holds.
    #[test]
    fn free_is_part_of_total() {
        let (free, total) = space(&File::open("/").unwrap()).unwrap();
        assert!(total > 0 && free <= total);
    }
}
