//! What a limit on address space asks of the process itself.

use std::env;
use std::process::Command;

use fledge::board::Machine;

/// What tells the C library how many heaps to keep.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Starts this program anew with a single heap, where address space is limited and nobody said
/// otherwise: the C library reserves 64 MiB of addresses for a heap of each thread, a quarter of
/// the 256 MiB that have to do, and reads the setting only when a program begins.
#[cfg(unix)]
pub fn keep_one_heap_under_a_limit() {
    use std::os::unix::process::CommandExt;
    if env::var_os(HEAPS).is_some() || Machine::here().address_space_limit().is_none() {
        return;
    }
    let mut arguments = env::args_os();
    if let (Ok(program), Some(name)) = (env::current_exe(), arguments.next()) {
        // Returns only when it fails, and then the heaps stay as they are.
        let _ = Command::new(program)
            .arg0(name)
            .args(arguments)
            .env(HEAPS, "1")
            .exec();
    }
}

#[cfg(not(unix))]
pub fn keep_one_heap_under_a_limit() {}
