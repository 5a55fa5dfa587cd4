//! On which core the current thread runs, and whom it lets go first.                                  [core_affinity, libc]

/// Pins the current thread to the `index`-th core this process may use, counted from 0 and going round when there are fewer.
///
/// Returns the number of the core, or `None` when the system does not tell its cores or refuses. Not fatal: a reactor that is not
/// pinned is slower, not wrong, so the caller logs it and goes on.
pub fn pin_current_thread(index: usize) -> Option<usize> {
    let cores = core_affinity::get_core_ids()?;
    let core = *cores.get(index.checked_rem(cores.len())?)?;
    core_affinity::set_for_current(core).then_some(core.id)
}

/// Lets the other threads of this process go first where there are not cores enough for all: the current one has two fifths of their weight
/// (nice 4). It still gets on, whatever they do. Linux keeps a nice value per thread, against POSIX (setpriority(2)).
///
/// Returns whether the system let it; not fatal.
pub fn give_way() -> bool {
    // SAFETY: the calls take numbers; 0 is the calling thread.
    unsafe {
        // A process that is nicer stays so.
        let is_nicer = libc::getpriority(libc::PRIO_PROCESS, 0) >= GIVES_WAY;
        is_nicer || libc::setpriority(libc::PRIO_PROCESS, 0, GIVES_WAY) == 0
    }
}

/// Weight 423 beside 1024 (Linux 6.18, `sched_prio_to_weight`).
const GIVES_WAY: libc::c_int = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// It is the thread that gives way, not the process.
    #[test]
    fn a_thread_gives_way_alone() {
        let nice = |thread: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).unwrap();
            let behind_name = stat.rsplit(')').next().unwrap();
            behind_name.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice("thread-self");
        let other = std::thread::spawn(move || give_way().then(|| nice("thread-self"))).join().unwrap();
        assert_eq!(other, Some(before.max(GIVES_WAY)));
        assert_eq!(nice("thread-self"), before);
    }

    /// Any index finds a core, the same one after a full round. On a thread of its own, since pinning outlives the call.
    #[test]
    fn index_goes_round() {
        std::thread::spawn(|| {
            let all = core_affinity::get_core_ids().unwrap().len();
            let first = pin_current_thread(0).unwrap();
            // Pinned, the thread may use one core only, so any index now names that one.
            assert_eq!(pin_current_thread(all), Some(first));
        })
        .join()
        .unwrap();
    }
}
