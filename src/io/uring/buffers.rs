//! Receive buffers that the kernel picks itself, and gets back in the same turn.                                   [io-uring]
//!
//! ```text
//!  entries  ┌─ head: the kernel takes here        tail: we give back here ─┐
//!           ▼                                                              ▼
//!           [ 7 | 3 | 0 | 5 | ............................................. ]     capacity, a power of two
//!  memory   [0][1][2][3][4]...                                                     2 KiB each, those beyond `lent` untouched
//! ```
//!
//! The kernel takes them in turn, so all that circulate pass through the cache. Only `lent` of them do; more join when they run out.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;
use crate::limits::RING_BUFFER_BYTES;

/// See the module text.
pub struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    capacity: u16,
    lent: u16,
    tail: u16,
}

/// The one group of buffers of a ring.
pub const GROUP: u16 = 0;

/// What so many buffers occupy, of which `first` circulate: the others are not touched.
pub fn bytes(first: u16, capacity: u16) -> usize {
    entries_layout(capacity).size() + memory_layout(first).size()
}

impl Buffers {
    /// Registers room for `capacity` buffers, a power of two, of which `first` circulate.
    ///
    /// # Errors
    /// The kernel's: too old, or out of memory.
    pub fn new(ring: &Ring, first: u16, capacity: u16) -> io::Result<Self> {
        assert!(capacity.is_power_of_two() && first > 0 && first <= capacity);
        let mut buffers = Self {
            entries: allocate(entries_layout(capacity)).cast(),
            memory: allocate(memory_layout(capacity)),
            capacity,
            lent: 0,
            tail: 0,
        };
        let address = buffers.entries.as_ptr() as u64;
        // SAFETY: the entries are page-aligned and as many as said. They outlive the ring: their owner frees them after it, or never.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, capacity, GROUP, 0)? };
        buffers.lend(first);
        buffers.publish();
        Ok(buffers)
    }

    /// The first `len` bytes of a buffer that the kernel has filled.
    pub fn filled(&mut self, id: u16, len: usize) -> &mut [u8] {
        assert!(id < self.lent);
        assert!(len <= RING_BUFFER_BYTES);
        // SAFETY: the two assertions keep the slice inside the memory, which lives as long as `self`; the kernel does not touch a buffer
        // between its completion and the publication of its return, which needs `self` too.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(usize::from(id) * RING_BUFFER_BYTES), len) }
    }

    /// Gives a buffer back; the kernel sees it after [`Buffers::publish`].
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.lent);
        let at = usize::from(self.tail & (self.capacity - 1));
        // SAFETY: `at` is below the capacity; the place is ours, because no more buffers are lent than there are places. Its tail
        // field, which is the ring's own in the first entry, is left alone.
        let entry = unsafe { &mut *self.entries.as_ptr().add(at) };
        // SAFETY: the assertion keeps the address inside the memory.
        entry.set_addr(unsafe { self.memory.as_ptr().add(usize::from(id) * RING_BUFFER_BYTES) } as u64);
        entry.set_len(u32::try_from(RING_BUFFER_BYTES).expect("a small constant"));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was given back.
    pub fn publish(&mut self) {
        // SAFETY: the pointer is to the first entry of the ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: it is an aligned field of memory that lives as long as `self`, written by us and read by the kernel.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
    }

    /// Lets twice as many circulate, if there are more.
    pub fn grow(&mut self) {
        self.lend(self.lent.min(self.capacity - self.lent));
    }

    fn lend(&mut self, count: u16) {
        for id in self.lent..self.lent + count {
            self.lent = id + 1;
            self.give_back(id);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        #[cfg(test)]
        FREED.with(|freed| freed.set(freed.get() + 1));
        // SAFETY: both were allocated with these layouts; whoever drops us has made sure that the kernel is done with them.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout(self.capacity));
            dealloc(self.memory.as_ptr(), memory_layout(self.capacity));
        }
    }
}

/// Zeroed, which for sizes like these means: untouched pages are not resident.
fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: both layouts have a size above 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

fn entries_layout(capacity: u16) -> Layout {
    let bytes = usize::from(capacity) * size_of::<BufRingEntry>();
    Layout::from_size_align(bytes, PAGE_BYTES).expect("a small size and a power of two")
}

fn memory_layout(capacity: u16) -> Layout {
    Layout::from_size_align(usize::from(capacity) * RING_BUFFER_BYTES, PAGE_BYTES).expect("a small size and a power of two")
}

const PAGE_BYTES: usize = 4096;

#[cfg(test)]
thread_local! {
    /// How many were freed on this thread.
    pub static FREED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}
