//! One ring of submissions and completions behind a small face.                                                  [io-uring]
//!
//! The ring belongs to the thread that makes it (`SINGLE_ISSUER`), and the kernel does its part of the work only while that thread is
//! inside [`Ring::enter`] (`DEFER_TASKRUN`): no socket is read behind its back, and what a turn finds is what it delivers.
//!
//! It can do what the driver does and nothing else: it is made disabled, restricted to a list of operations, and then enabled. A ring
//! can open files, connect and run past a filter of system calls otherwise.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Submitter, cqueue, opcode, squeue};

/// See the module text.
pub struct Ring {
    /// Borrows `ring`, so it stands, and is dropped, before it. Kept because the registration of the ring's descriptor, which saves a
    /// lookup per enter, is remembered here and nowhere else.
    submitter: Submitter<'static>,
    ring: Box<IoUring>,
    /// Entries that found no room in the queue, in order.
    backlog: VecDeque<squeue::Entry>,
    /// The kernel can wait a moment for several completions and then for one (6.12).
    can_gather: bool,
}

/// How to wait for completions.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// Return once so many are there.
    pub count: usize,
    /// Or once this has passed and one is there.
    pub gather: Duration,
    /// Or once this has passed.
    pub most: Duration,
}

impl Ring {
    /// A ring of this many entries on either side, for this thread.
    ///
    /// # Errors
    /// The kernel's: too old, forbidden, or out of memory.
    pub fn new(submissions: u32, completions: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_no_sqarray().setup_cqsize(completions);
        builder.setup_r_disabled();
        let ring = Box::new(builder.build(submissions)?);
        let pointer: *const IoUring = &raw const *ring;
        // SAFETY: the box keeps the ring at this address until it is dropped, after the submitter, which stands before it. From here
        // on the ring is only borrowed shared.
        let mut submitter = unsafe { &*pointer }.submitter();
        submitter.register_restrictions(&mut restrictions())?;
        submitter.register_enable_rings()?;
        // A thread has few places for registered rings; without one, entering costs a lookup.
        let _ = submitter.register_ring_fd();
        let can_gather = ring.params().is_feature_min_timeout();
        Ok(Self { submitter, ring, backlog: VecDeque::new(), can_gather })
    }

    /// The face for registering memory.
    pub fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues an entry; a full queue is submitted first. Never drops one, never reorders.
    ///
    /// # Safety
    /// Memory the entry names stays valid, and unused by anybody else, until the last completion of the entry; its descriptor stays
    /// open until it was submitted.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller's promise is passed on.
        if self.backlog.is_empty() && unsafe { self.try_push(&entry) } {
            return;
        }
        self.backlog.push_back(entry);
        self.submit();
    }

    /// Completions that wait to be taken.
    pub fn ready(&self) -> usize {
        // SAFETY: the view lives only here.
        unsafe { self.ring.completion_shared() }.len()
    }

    /// Whether the kernel holds completions for which the queue had no room.
    pub fn has_overflown(&self) -> bool {
        // SAFETY: the view lives only here.
        unsafe { self.ring.submission_shared() }.cq_overflow()
    }

    /// Completions the queue can hold.
    pub fn completions_max(&self) -> usize {
        // SAFETY: the view lives only here.
        unsafe { self.ring.completion_shared() }.capacity()
    }

    /// Submits, without letting the kernel do deferred work. Errors show again at the next enter.
    pub fn submit(&mut self) {
        let _ = self.submitter.submit();
        self.refill();
    }

    /// Submits, waits, lets the kernel do its work.
    ///
    /// # Errors
    /// Those after which the ring is unusable. `EINTR` and a passed time are none; `EAGAIN` and `EBUSY` mean that completions must be
    /// taken first, and the next turn does.
    pub fn enter(&mut self, wait: Wait) -> io::Result<()> {
        self.refill();
        // SAFETY: the view lives only here.
        let queued = u32::try_from(unsafe { self.ring.submission_shared() }.len()).expect("a queue is short");
        let time = Timespec::from(wait.most);
        let mut args = SubmitArgs::new().timespec(&time);
        let mut count = u32::try_from(wait.count).expect("a queue is short");
        if self.can_gather {
            args = args.min_wait_usec(u32::try_from(wait.gather.as_micros()).unwrap_or(0));
        } else {
            count = count.min(1);
        }
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        // SAFETY: the entries are sound by the promise made to `push`; `args` is what the flag asks for, and it and the time it points
        // to outlive the call.
        let entered = unsafe { self.submitter.enter(queued, count, flags.bits(), Some(&args)) };
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    /// Takes at most `max` completions.
    pub fn take(&mut self, into: &mut Vec<cqueue::Entry>, max: usize) {
        // SAFETY: the view lives only here; dropping it gives the places back to the kernel.
        let queue = unsafe { self.ring.completion_shared() };
        into.extend(queue.take(max));
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: whoever pushed it promised what is asked.
            if !unsafe { self.try_push(&entry) } {
                return self.backlog.push_front(entry);
            }
        }
    }

    /// # Safety
    /// As [`Ring::push`].
    unsafe fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the view lives only here, and the caller promised what the entry needs.
        unsafe { self.ring.submission_shared().push(entry).is_ok() }
    }
}

/// All a ring is allowed to do.
fn restrictions() -> [Restriction; 10] {
    let flags = squeue::Flags::SKIP_SUCCESS | squeue::Flags::BUFFER_SELECT;
    [
        Restriction::sqe_op(opcode::PollAdd::CODE),
        Restriction::sqe_op(opcode::RecvMulti::CODE),
        Restriction::sqe_op(opcode::Send::CODE),
        Restriction::sqe_op(opcode::SendMsg::CODE),
        Restriction::sqe_op(opcode::AsyncCancel::CODE),
        Restriction::sqe_flags_allowed(flags.bits()),
        Restriction::register_op(REGISTER_RING_FDS),
        Restriction::register_op(UNREGISTER_RING_FDS),
        Restriction::register_op(REGISTER_PBUF_RING),
        Restriction::register_op(UNREGISTER_PBUF_RING),
    ]
}

/// `io_uring_register_op` of the kernel's header.
const REGISTER_RING_FDS: u8 = 20;
const UNREGISTER_RING_FDS: u8 = 21;
const REGISTER_PBUF_RING: u8 = 22;
const UNREGISTER_PBUF_RING: u8 = 23;

impl Drop for Ring {
    fn drop(&mut self) {
        // The registration would keep the ring alive as long as the thread.
        let _ = self.submitter.unregister_ring_fd();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the driver does not do, its ring refuses: opening, connecting, even nothing; and to register files.
    #[test]
    fn a_ring_is_restricted_to_what_the_driver_does() {
        let Ok(mut ring) = Ring::new(8, 16) else { return println!("no io_uring here") };
        let path = c"/";
        let fd = io_uring::types::Fd(-1);
        let refused = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(fd, path.as_ptr()).build(),
            opcode::Connect::new(fd, std::ptr::null(), 0).build(),
            opcode::Read::new(fd, std::ptr::null_mut(), 0).build(),
        ];
        let count = refused.len();
        for entry in refused {
            // SAFETY: the one path is static, and the others name no memory.
            unsafe { ring.push(entry) };
        }
        ring.submit();
        let mut completions = Vec::new();
        let wait = Wait { count, gather: Duration::ZERO, most: Duration::from_secs(10) };
        ring.enter(wait).unwrap();
        ring.take(&mut completions, count);
        let results: Vec<i32> = completions.iter().map(cqueue::Entry::result).collect();
        assert_eq!(results, vec![-libc::EACCES; count]);
        let error = ring.submitter().register_files(&[-1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
