//! Files on disk become one deterministic tar.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What stands at one path of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder,
    /// A regular file, read when the tar is written.
    File {
        from: PathBuf,
        executable: bool,
    },
    Link {
        target: PathBuf,
    },
}

/// The files of an image, by their path without the leading slash.
///
/// A sorted map: the order of the tar depends on the names alone.
#[derive(Debug, Default)]
pub struct Layer {
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the file or folder `from` at the absolute path `to` of the image. Links in a folder stay links.
    ///
    /// # Errors
    /// If `from` can't be read, `to` isn't an absolute path inside the image, or a path is given twice.
    pub fn add(&mut self, from: &Path, to: &str) -> Result<()> {
        let to = inside(to)?;
        let meta = fs::metadata(from).map_err(|source| read_error(from, source))?;
        if meta.is_dir() {
            return self.add_folder(from, &to);
        }
        if to.is_empty() {
            return Err(Error::Path { path: "/".into(), reason: "a file needs a name" });
        }
        let executable = meta.permissions().mode() & 0o111 != 0;
        self.insert(to, Entry::File { from: from.to_owned(), executable })
    }

    fn add_folder(&mut self, from: &Path, to: &str) -> Result<()> {
        if !to.is_empty() {
            self.insert(to.to_owned(), Entry::Folder)?;
        }
        for item in fs::read_dir(from).map_err(|source| read_error(from, source))? {
            let item = item.map_err(|source| read_error(from, source))?;
            let path = item.path();
            let name = item.file_name().into_string().map_err(|name| Error::Path {
                path: name.to_string_lossy().into_owned(),
                reason: "not UTF-8",
            })?;
            let to = if to.is_empty() { name } else { format!("{to}/{name}") };
            let meta = fs::symlink_metadata(&path).map_err(|source| read_error(&path, source))?;
            let kind = meta.file_type();
            if kind.is_dir() {
                self.add_folder(&path, &to)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(|source| read_error(&path, source))?;
                self.insert(to, Entry::Link { target })?;
            } else if kind.is_file() {
                let executable = meta.permissions().mode() & 0o111 != 0;
                self.insert(to, Entry::File { from: path, executable })?;
            } else {
                return Err(Error::Special(path));
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: String, entry: Entry) -> Result<()> {
        for (end, _) in path.match_indices('/') {
            let parent = self.entries.entry(path[..end].to_owned()).or_insert(Entry::Folder);
            // below a link to a folder (lib -> usr/lib) is fine: the tar is unpacked in this order
            if matches!(parent, Entry::File { .. }) {
                return Err(Error::Twice(path[..end].to_owned()));
            }
        }
        match self.entries.get(&path) {
            Some(Entry::Folder) if entry == Entry::Folder => Ok(()),
            Some(_) => Err(Error::Twice(path)),
            None => {
                self.entries.insert(path, entry);
                Ok(())
            }
        }
    }

    /// The layer as an uncompressed tar.
    ///
    /// # Errors
    /// If one of the files can't be read.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            let written = match entry {
                Entry::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    tar.append_data(&mut header, format!("{path}/"), io::empty())
                }
                Entry::Link { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)
                }
                Entry::File { from, executable } => {
                    let bytes = read(from)?;
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(if *executable { 0o755 } else { 0o644 });
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice())
                }
            };
            written.map_err(|source| read_error(Path::new(path), source))?;
        }
        tar.into_inner().map_err(|source| read_error(Path::new("layer"), source))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|source| read_error(path, source))?;
    Ok(bytes)
}

fn read_error(path: &Path, source: io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

/// `/a/b` as `a/b`; refuses what is relative or leaves the root.
fn inside(path: &str) -> Result<String> {
    let refuse = |reason| Error::Path { path: path.to_owned(), reason };
    let relative = path.strip_prefix('/').ok_or_else(|| refuse("not absolute"))?.trim_end_matches('/');
    if !relative.is_empty() && relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(refuse("has an empty part, . or .."));
    }
    Ok(relative.to_owned())
}
