use std::fmt;
use std::path::PathBuf;

use super::{Family, shown};

/// A file that was opened, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The path, or the name that the loader looked for.
    pub file: PathBuf,
    /// Why it could not be opened; `None` if it was.
    pub refused: Option<String>,
}

impl fmt::Display for Tried {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refused {
            None => write!(out, "{} (opened)", shown(&self.file)),
            Some(cause) => write!(out, "{} ({cause})", shown(&self.file)),
        }
    }
}

/// A required symbol that no library has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub symbol: &'static str,
    /// Where it is documented to live.
    pub family: Family,
}

/// Why CANN cannot be used in this process.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LibraryError {
    /// No library of the runtime was found.
    #[error("no CANN runtime was found; tried: {}", listed(tried))]
    NotFound {
        /// Files in the order in which they were tried.
        tried: Vec<Tried>,
    },
    /// The installation lacks required symbols.
    #[error(
        "CANN {} lacks required symbols: {}; tried: {}",
        version.as_deref().unwrap_or("of unknown version"),
        by_family(missing),
        listed(tried)
    )]
    MissingSymbols {
        /// All of them.
        missing: Vec<Missing>,
        /// Version of the installation, if it says.
        version: Option<String>,
        /// Files in the order in which they were tried.
        tried: Vec<Tried>,
    },
}

fn listed(tried: &[Tried]) -> String {
    tried.iter().map(Tried::to_string).collect::<Vec<_>>().join(", ")
}

/// `a, b (of libx.so or liby.so), c (of libz.so)`
fn by_family(missing: &[Missing]) -> String {
    let parts = Family::ALL.iter().filter_map(|family| {
        let names: Vec<&str> = missing
            .iter()
            .filter(|missing| missing.family == *family)
            .map(|missing| missing.symbol)
            .collect();
        (!names.is_empty()).then(|| format!("{} (of {})", names.join(", "), family.files().join(" or ")))
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_names_symbols_libraries_and_version() {
        let error = LibraryError::MissingSymbols {
            missing: vec![
                Missing { symbol: "aclnnMatmul", family: Family::Nn },
                Missing { symbol: "aclInit", family: Family::Runtime },
                Missing { symbol: "aclFinalize", family: Family::Runtime },
            ],
            version: Some("8.0.0".into()),
            tried: vec![
                Tried { file: "/a/libacl_rt.so".into(), refused: None },
                Tried { file: "/a/libopapi.so".into(), refused: Some("no such file".into()) },
            ],
        };
        assert_eq!(
            error.to_string(),
            "CANN 8.0.0 lacks required symbols: aclInit, aclFinalize (of libacl_rt.so or libascendcl.so), aclnnMatmul \
             (of libopapi_nn.so or libopapi.so); tried: /a/libacl_rt.so (opened), /a/libopapi.so (no such file)"
        );
    }
}
