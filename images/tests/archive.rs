//! What container runtimes rely on in an archive, and that equal input gives equal bytes.
#![allow(clippy::unwrap_used)] // functions that tests share are not seen as tests

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use belay_images::{Compression, Error, ImageName, ImageSpec, Layer, write};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn name() -> ImageName {
    "ghcr.io/belay-dev/belay-test:0.1.0".parse().unwrap()
}

fn spec(compression: Compression) -> ImageSpec {
    ImageSpec {
        entrypoint: vec!["/belay-test".into()],
        user: Some(65532),
        env: vec![("A".into(), "b".into())],
        labels: BTreeMap::from([("org.opencontainers.image.version".into(), "0.1.0".into())]),
        created: 0,
        compression,
    }
}

fn files_of(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    files
}

fn json(files: &BTreeMap<String, Vec<u8>>, path: &str) -> Value {
    serde_json::from_slice(&files[path]).unwrap()
}

fn blob_path(digest: &Value) -> String {
    format!("blobs/sha256/{}", digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
}

/// A folder with files made in an order and with times and modes of its own.
fn tree(at: &Path, reverse: bool, mode: u32) {
    let mut names = vec!["z", "m/x", "m/a", "b"];
    if reverse {
        names.reverse();
    }
    for name in names {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("content of {name}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("m/x", at.join("link")).unwrap();
}

#[test]
fn equal_input_gives_equal_bytes_whatever_order_times_and_umask() {
    for compression in [Compression::Gzip, Compression::None] {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        tree(&one, false, 0o640);
        tree(&two, true, 0o644);
        fs::File::open(two.join("z")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let mut archives = Vec::new();
        for (from, out) in [(&one, "one.tar"), (&two, "elsewhere/two.tar")] {
            let mut layer = Layer::new();
            layer.add(from, "/opt/tree").unwrap();
            let out = folder.path().join(out);
            write(&name(), &spec(compression), &layer, &out).unwrap();
            archives.push(fs::read(out).unwrap());
        }
        assert!(archives[0] == archives[1], "archives differ with {compression:?}");
    }
}

#[test]
fn another_byte_gives_another_digest() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("belay-test");
    let mut digests = Vec::new();
    for content in ["one", "two"] {
        fs::write(&binary, content).unwrap();
        let mut layer = Layer::new();
        layer.add(&binary, "/belay-test").unwrap();
        digests.push(
            write(&name(), &spec(Compression::Gzip), &layer, &folder.path().join("out.tar")).unwrap().digest,
        );
    }
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn every_digest_names_the_blob_that_hashes_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("belay-test");
    fs::write(&binary, vec![7_u8; 100_000]).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o700)).unwrap();
    let mut layer = Layer::new();
    layer.add(&binary, "/usr/bin/belay-test").unwrap();
    let out = folder.path().join("out.tar");
    let written = write(&name(), &spec(Compression::Gzip), &layer, &out).unwrap();

    let archive = fs::read(&out).unwrap();
    assert_eq!(written.bytes, archive.len() as u64);
    let files = files_of(&archive);
    for (path, bytes) in
        files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/") && !path.ends_with('/'))
    {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(path, &format!("blobs/sha256/{hex}"));
    }

    let index = json(&files, "index.json");
    let described = &index["manifests"][0];
    assert_eq!(described["digest"], written.digest);
    assert_eq!(described["annotations"]["io.containerd.image.name"], name().to_string());
    let manifest_path = blob_path(&described["digest"]);
    assert_eq!(described["size"], files[&manifest_path].len());
    let manifest = json(&files, &manifest_path);
    let config_path = blob_path(&manifest["config"]["digest"]);
    let layer_path = blob_path(&manifest["layers"][0]["digest"]);
    assert_eq!(manifest["layers"][0]["size"], files[&layer_path].len());

    // what older Docker daemons read
    let docker = json(&files, "manifest.json");
    assert_eq!(docker[0]["RepoTags"][0], name().to_string());
    assert_eq!(docker[0]["Config"], config_path);
    assert_eq!(docker[0]["Layers"][0], layer_path);

    let config = json(&files, &config_path);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"][0], "/belay-test");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], "0.1.0");
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");

    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(files[&layer_path].as_slice()).read_to_end(&mut tar).unwrap();
    let hex: String = Sha256::digest(&tar).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{hex}"));
    let mut archive = tar::Archive::new(tar.as_slice());
    let seen: Vec<(String, u32, u64, u64)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, header.mode().unwrap(), header.uid().unwrap(), header.mtime().unwrap())
        })
        .collect();
    let expected = [("usr/", 0o755), ("usr/bin/", 0o755), ("usr/bin/belay-test", 0o755)];
    assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode, 0, 0)));
}

#[test]
fn bad_input_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let mut layer = Layer::new();
    assert!(matches!(layer.add(&folder.path().join("absent"), "/x"), Err(Error::Read { .. })));
    assert!(matches!(layer.add(&file, "relative"), Err(Error::Path { .. })));
    assert!(matches!(layer.add(&file, "/a/../../etc"), Err(Error::Path { .. })));
    assert!(matches!(layer.add(&file, "/"), Err(Error::Path { .. })));
    layer.add(&file, "/x").unwrap();
    assert!(matches!(layer.add(&file, "/x"), Err(Error::Twice(path)) if path == "x"));
    assert!(matches!(layer.add(&file, "/x/y"), Err(Error::Twice(path)) if path == "x"));
}
