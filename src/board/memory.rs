//! Bounds that the system puts on a process's memory, read before the work that needs it: a process
//! beyond its address space is aborted at an allocation, one beyond its control group is killed,
//! and neither says why.

use std::fs;
use std::path::Path;

/// How far what a control group says is used may be off: the kernel adds up its pages in batches of up to 64
/// for every processor, 1 MiB for four. Equal runs were seen to differ by 31 pages before they began, and
/// one in four to be refused under a limit that the one before had been told would do.
const GROUP_UNCERTAIN: u64 = 1 << 20;

/// A bound on this process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes.
    pub limit: u64,
    /// Bytes of it that are taken.
    pub used: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `ulimit -v`, RLIMIT_AS: everything mapped counts, touched or not.
    AddressSpace,
    /// Files that are mapped and unchanged do not count: their pages can be dropped and read again.
    ControlGroup,
}

/// What is about to be done needs more memory than a [`MemoryLimit`] leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this needs about {} MiB more memory, and the limit of {} MiB ({}) leaves {} MiB: raise the \
     limit to {} MiB",
    mib(*needed), mib(limit.limit), limit.name(), limit.left() >> 20, mib(limit.enough(*needed))
)]
pub struct TooLittleMemory {
    pub limit: MemoryLimit,
    /// Bytes.
    pub needed: u64,
}

/// Rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl MemoryLimit {
    /// Bytes still to be had.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// A limit under which another run has room for `needed` bytes.
    fn enough(&self, needed: u64) -> u64 {
        let uncertain = match self.kind {
            Kind::AddressSpace => 0,
            Kind::ControlGroup => GROUP_UNCERTAIN,
        };
        self.used + needed + uncertain
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::AddressSpace => "on address space, ulimit -v",
            Kind::ControlGroup => "of the control group",
        }
    }

    /// Bytes left beside `mapped` bytes of files and `heap` bytes of everything else.
    ///
    /// # Errors
    /// When there is no room for these.
    pub fn check(&self, mapped: u64, heap: u64) -> Result<u64, TooLittleMemory> {
        let needed = match self.kind {
            Kind::AddressSpace => mapped + heap,
            Kind::ControlGroup => heap,
        };
        self.left().checked_sub(needed).ok_or(TooLittleMemory {
            limit: *self,
            needed,
        })
    }
}

pub(super) fn tightest(root: &Path) -> Option<MemoryLimit> {
    [address_space(root), control_group(root)]
        .into_iter()
        .flatten()
        .min_by_key(MemoryLimit::left)
}

/// From `/proc/self/limits` and `/proc/self/status`.
pub(super) fn address_space(root: &Path) -> Option<MemoryLimit> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?
        .split_whitespace()
        .next()?;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let kilobytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(MemoryLimit {
        // "unlimited" is no number.
        limit: soft.parse().ok()?,
        used: kilobytes << 10,
        kind: Kind::AddressSpace,
    })
}

/// From the group that `/proc/self/cgroup` names and those around it, of either version.
fn control_group(root: &Path) -> Option<MemoryLimit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let (folder, limit, anonymous) = match controllers {
                "" => ("sys/fs/cgroup", "memory.max", "anon "),
                c if c.split(',').any(|c| c == "memory") => (
                    "sys/fs/cgroup/memory",
                    "memory.limit_in_bytes",
                    "total_rss ",
                ),
                _ => return None,
            };
            let top = root.join(folder);
            // Inside a container the path may be one of the host, and only the top is seen.
            top.join(path.trim_start_matches('/'))
                .ancestors()
                .take_while(|group| group.starts_with(&top))
                .filter_map(|group| group_limit(group, limit, anonymous))
                .min_by_key(MemoryLimit::left)
        })
        .min_by_key(MemoryLimit::left)
}

fn group_limit(group: &Path, limit: &str, anonymous: &str) -> Option<MemoryLimit> {
    // Version 2 writes "max" for no limit, version 1 a number beyond any memory.
    let limit: u64 = fs::read_to_string(group.join(limit))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let used = stat
        .lines()
        .find_map(|line| line.strip_prefix(anonymous)?.trim().parse().ok())
        .unwrap_or(0);
    (limit < 1 << 50).then_some(MemoryLimit {
        limit,
        used,
        kind: Kind::ControlGroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
         Max resident set          unlimited            unlimited            bytes\n\
         Max address space         268435456            unlimited            bytes\n";

    #[test]
    fn a_limit_on_address_space_counts_mapped_files() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/limits", LIMITS);
        write(
            root.path(),
            "proc/self/status",
            "Name: fledge\nVmSize:\t   65536 kB\n",
        );
        let limit = tightest(root.path()).unwrap();
        assert_eq!((limit.limit, limit.left()), (256 << 20, 192 << 20));
        assert!(limit.check(92 << 20, 100 << 20).is_ok());
        let refused = limit.check(92 << 20, 101 << 20).unwrap_err().to_string();
        for part in [
            "193 MiB more",
            "256 MiB",
            "ulimit -v",
            "leaves 192",
            "to 257 MiB",
        ] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
    }

    #[test]
    fn no_limit_is_found_where_none_is_set() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(tightest(root.path()), None);
        write(
            root.path(),
            "proc/self/limits",
            &LIMITS.replace("268435456", "unlimited"),
        );
        write(root.path(), "proc/self/status", "VmSize: 65536 kB\n");
        write(root.path(), "proc/self/cgroup", "0::/a\n");
        write(root.path(), "sys/fs/cgroup/a/memory.max", "max\n");
        assert_eq!(tightest(root.path()), None);
    }

    #[test]
    fn the_tightest_control_group_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "proc/self/cgroup",
            "1:name=systemd:/b\n0::/system/fledge\n",
        );
        write(
            root.path(),
            "sys/fs/cgroup/system/fledge/memory.max",
            "max\n",
        );
        write(
            root.path(),
            "sys/fs/cgroup/system/memory.max",
            "104857600\n",
        );
        write(
            root.path(),
            "sys/fs/cgroup/system/memory.stat",
            "file 7\nanon 4194304\n",
        );
        write(root.path(), "sys/fs/cgroup/memory.max", "536870912\n");
        let limit = tightest(root.path()).unwrap();
        assert_eq!((limit.limit, limit.used), (100 << 20, 4 << 20));
        assert!(
            limit.check(1 << 30, 96 << 20).is_ok(),
            "mapped files can be dropped"
        );
        let refused = limit.check(0, 97 << 20).unwrap_err().to_string();
        assert!(refused.contains("to 102 MiB"), "{refused}");
    }

    #[test]
    fn a_group_of_the_first_version_counts_too() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/self/cgroup", "4:cpu,memory:/host/path\n");
        let group = "sys/fs/cgroup/memory";
        write(
            root.path(),
            &format!("{group}/memory.limit_in_bytes"),
            "9223372036854771712\n",
        );
        assert_eq!(tightest(root.path()), None);
        write(
            root.path(),
            &format!("{group}/memory.limit_in_bytes"),
            "67108864\n",
        );
        assert_eq!(tightest(root.path()).unwrap().limit, 64 << 20);
    }
}
