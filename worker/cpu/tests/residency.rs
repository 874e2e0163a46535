//! Weights are in memory once they are loaded: the first request does not wait for a disk.

use std::io::Write;
use std::sync::Arc;

use belay_backend::{Backend, Bytes, Format, Precision, StoredMatrix};
use belay_cpu::{CpuBackend, Weights};

/// KiB of a mapped file that this process has in memory.
fn resident_kib(path: &std::path::Path) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(&*path.to_string_lossy()));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:"))?;
    rss.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn every_page_of_a_loaded_weight_is_resident_whatever_its_format() {
    let (rows, cols) = (512, 4096);
    let backend = CpuBackend::detect().with_weights(Weights::Mapped);
    for format in [Format::F32, Format::Bf16, Format::Fp8, Format::Fp4] {
        let (data, scale) = format.bytes(rows, cols);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1; data + scale]).unwrap();
        // SAFETY: nobody else knows the file.
        let map = Arc::new(unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap());
        assert_eq!(resident_kib(file.path()), Some(0), "{format}: nothing was read yet");
        let part = |range| Bytes::new(map.clone(), range).unwrap();
        let stored = StoredMatrix::new(rows, cols, format, part(0..data), part(data..data + scale)).unwrap();
        let loaded = backend.matrix(stored, Precision::Expert).unwrap();
        assert!(resident_kib(file.path()) >= Some((data + scale) as u64 / 1024), "{format}");
        drop(loaded);
    }
}
