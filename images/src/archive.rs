//! One file that `docker load`, `ctr image import` and `kind load image-archive` read.
//!
//! It is an OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/…`) with a `manifest.json` beside it,
//! which older Docker daemons look for; both name the same blobs.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression as Level, GzBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::image::{Compression, ImageName, ImageSpec, architecture};
use crate::layer::Layer;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Digest of the image's manifest, `sha256:…`: what `image@digest` names.
    pub digest: String,
    /// Size of the archive in bytes.
    pub bytes: u64,
}

struct Blob {
    bytes: Vec<u8>,
    hex: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex = sha256(&bytes);
        Self { bytes, hex }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

/// Writes the image `name` with the files of `layer` to `out`, by way of a temporary file beside it.
///
/// # Errors
/// If a file of the layer can't be read, or the archive can't be written.
pub fn write(name: &ImageName, spec: &ImageSpec, layer: &Layer, out: &Path) -> Result<Written> {
    let tar = layer.tar()?;
    let diff_id = format!("sha256:{}", sha256(&tar));
    let (layer, layer_type) = match spec.compression {
        Compression::None => (Blob::new(tar), LAYER.to_owned()),
        Compression::Gzip => {
            (Blob::new(gzip(&tar).map_err(|source| write_error(out, source))?), format!("{LAYER}+gzip"))
        }
    };
    let config = Blob::new(serde_json::to_vec(&spec.config(diff_id))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(&layer_type)],
        "annotations": spec.labels,
    }))?);

    let mut described = manifest.descriptor(MANIFEST);
    described["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    described["annotations"] = json!({
        "io.containerd.image.name": name.to_string(),
        "org.opencontainers.image.ref.name": name.tag(),
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] });
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [name.to_string()],
        "Layers": [layer.path()],
    }]);

    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
    ];
    let digest = manifest.digest();
    let mut blobs = vec![layer, config, manifest];
    blobs.sort_by(|a, b| a.hex.cmp(&b.hex));
    files.extend(blobs.into_iter().map(|blob| (blob.path(), blob.bytes)));

    let bytes = save(&files, out).map_err(|source| write_error(out, source))?;
    Ok(Written { digest, bytes })
}

fn save(files: &[(String, Vec<u8>)], out: &Path) -> io::Result<u64> {
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let mut tar = tar::Builder::new(io::BufWriter::new(fs::File::create(&partial)?));
    for folder in ["blobs/", "blobs/sha256/"] {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, folder, io::empty())?;
    }
    for (path, bytes) in files {
        tar.append_data(&mut header(0o644, bytes.len() as u64), path, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()?;
    fs::rename(&partial, out)?;
    Ok(fs::metadata(out)?.len())
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// gzip without a file name and with time 0, so that equal input gives equal bytes.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Level::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}
