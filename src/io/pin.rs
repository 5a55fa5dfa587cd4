//! Binding the current thread to one core.                                                                   [core_affinity]

/// Pins the current thread to the `index`-th core this process may use, counted from 0 and going round when there are fewer.
///
/// Returns the number of the core, or `None` when the system does not tell its cores or refuses. Not fatal: a reactor that is not
/// pinned is slower, not wrong, so the caller logs it and goes on.
pub fn pin_current_thread(index: usize) -> Option<usize> {
    let cores = core_affinity::get_core_ids()?;
    let core = *cores.get(index.checked_rem(cores.len())?)?;
    core_affinity::set_for_current(core).then_some(core.id)
}

#[cfg(test)]
mod tests {
    use super::*;

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
