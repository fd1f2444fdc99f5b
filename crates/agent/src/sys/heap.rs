//! mallopt(3): how the C library keeps the agent's heap.

/// Bytes asked of the kernel beyond what is needed, and kept at the end when they are free.
const PAD: libc::c_int = 512 << 10;

/// One heap for all threads, which grows in steps that are seldom taken. By default each thread has one of its own that
/// grows by a few pages at a time, and growing it takes the kernel longer than what is done with it. To be called first.
pub(crate) fn share() {
    // SAFETY: two parameters of the allocator, which it takes or leaves.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, PAD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * PAD);
    }
}
