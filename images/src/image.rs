//! Names, configuration and labels of an image.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::Error;

/// A complete image name: `registry/repository:tag`.
///
/// Container runtimes guess a registry where none is given, each in its own way, so a short name is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    repository: String,
    tag: String,
}

impl ImageName {
    /// The part after the colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::Name { name: name.to_owned(), reason };
        let (repository, tag) = name.rsplit_once(':').ok_or_else(|| refuse("has no tag"))?;
        let (host, path) = repository.split_once('/').ok_or_else(|| refuse("has no registry host"))?;
        if !(host.contains('.') || host.contains(':') || host == "localhost") {
            return Err(refuse("has no registry host"));
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
        if path.is_empty() || path.split('/').any(str::is_empty) || !path.chars().all(plain) {
            return Err(refuse("the repository may hold lower-case letters, digits and ._-/ only"));
        }
        let tag_char = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !tag.chars().all(tag_char) {
            return Err(refuse("the tag may hold letters, digits and ._- only, at most 128"));
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

/// How the layer is stored in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// gzip: for archives that travel.
    #[default]
    Gzip,
    /// As it is: for archives that are read once, on the same machine.
    None,
}

/// What an image is, apart from its files.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    /// Program and fixed arguments.
    pub entrypoint: Vec<String>,
    /// Numeric user (and group) that the program runs as; `None` leaves it to the runtime.
    pub user: Option<u32>,
    /// Environment, in this order.
    pub env: Vec<(String, String)>,
    /// Labels, such as `org.opencontainers.image.version`.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970 that are written as the time of creation.
    pub created: u64,
    /// How the layer is stored.
    pub compression: Compression,
}

/// The image configuration of the OCI image specification.
#[derive(Debug, Serialize)]
pub(crate) struct Config<'a> {
    created: String,
    architecture: &'static str,
    os: &'static str,
    config: Run<'a>,
    rootfs: RootFs,
    history: Vec<History>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Run<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    env: Vec<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    entrypoint: &'a [String],
    working_dir: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Debug, Serialize)]
struct History {
    created: String,
    created_by: &'static str,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl ImageSpec {
    /// The configuration for one layer with this digest of its uncompressed tar.
    pub(crate) fn config(&self, diff_id: String) -> Config<'_> {
        let created = timestamp(self.created);
        let env = std::iter::once(PATH.to_owned())
            .chain(self.env.iter().map(|(key, value)| format!("{key}={value}")))
            .collect();
        Config {
            created: created.clone(),
            architecture: architecture(),
            os: "linux",
            config: Run {
                user: self.user.map(|user| format!("{user}:{user}")),
                env,
                entrypoint: &self.entrypoint,
                working_dir: "/",
                labels: &self.labels,
            },
            rootfs: RootFs { kind: "layers", diff_ids: vec![diff_id] },
            history: vec![History { created, created_by: "belay-images" }],
        }
    }
}

/// The name that the OCI specification has for the processor this is built for.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// RFC 3339 in UTC. Civil-from-days on the proleptic Gregorian calendar: a year starts in March,
/// so that the leap day is its last one.
fn timestamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn a_complete_name_is_taken_and_a_short_one_refused() {
        for name in ["ghcr.io/belay-dev/belay-worker:0.1.0", "localhost:5000/a/b:x", "docker.io/local/web:1"]
        {
            assert_eq!(name.parse::<ImageName>().unwrap().to_string(), name);
        }
        for name in
            ["web", "web:1", "belay/web:1", "ghcr.io/web", "ghcr.io/:1", "ghcr.io/Web:1", "ghcr.io/a:b c"]
        {
            let error = name.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
