//! How many bytes the ranks of this worker may hold of experts.

use std::path::Path;

/// Where the kernel tells a container's memory limit: cgroup v2, then v1.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Part of a container's memory that is neither weights nor cache: code, buffers, requests.
const SPARE: u64 = 64 << 20;

/// The bound: what the options say, else what the container's limit leaves beside dense weights and the states of
/// requests; `None` if nothing bounds it.
#[must_use]
pub fn expert_bytes(asked: Option<u64>, container: Option<u64>, dense: u64, cache: u64) -> Option<u64> {
    asked.or_else(|| Some(container?.saturating_sub(dense).saturating_sub(cache).saturating_sub(SPARE)))
}

/// Memory limit of this process' container in bytes; `None` without one.
#[must_use]
pub fn container_limit() -> Option<u64> {
    LIMITS.iter().find_map(|path| limit(&std::fs::read_to_string(Path::new(path)).ok()?))
}

/// Version 2 writes "max" for none, version 1 a number near 2⁶³.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_no_limit_are_none() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("536870912\n"), Some(512 << 20));
    }

    #[test]
    fn an_option_counts_more_than_the_container() {
        assert_eq!(expert_bytes(Some(5), Some(1 << 40), 0, 0), Some(5));
        assert_eq!(
            expert_bytes(None, Some(1 << 30), 100 << 20, 200 << 20),
            Some((1024 - 100 - 200 - 64) << 20)
        );
        assert_eq!(expert_bytes(None, Some(1 << 20), 1 << 30, 0), Some(0), "never below nothing");
        assert_eq!(expert_bytes(None, None, 1 << 30, 0), None);
    }
}
