//! Where the libraries may lie: pure decisions about paths, apart from opening them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Environment variable that names one file with every symbol, as a simulator is.
pub const LIBRARY_VARIABLE: &str = "BELAY_CANN_LIBRARY";

/// Variables that CANN's own environment script sets to its root.
const ROOT_VARIABLES: [&str; 2] = ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"];
/// Where CANN is installed by default; the second is that of older releases.
const DEFAULT_ROOTS: [&str; 2] = ["/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest"];
/// Operators that a vendor adds to CANN's.
const VENDOR_FILE: &str = "libcust_opapi.so";

/// Symbols that are documented to live in the same libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Devices, streams, memory.
    Runtime,
    /// Tensors, scalars, executors.
    OpBase,
    /// Elementwise operators and reductions.
    Math,
    /// Matrix products, norms, activations, quantisation.
    Nn,
    /// Attention, grouped products, experts.
    Transformer,
    /// Images.
    Cv,
    /// Collectives.
    Collectives,
    /// Communicators.
    Communicators,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 8] = [
        Self::Runtime,
        Self::OpBase,
        Self::Math,
        Self::Nn,
        Self::Transformer,
        Self::Cv,
        Self::Collectives,
        Self::Communicators,
    ];

    /// Names of the files to look in, best first: today's home, then that of older releases.
    pub fn files(self) -> &'static [&'static str] {
        match self {
            Self::Runtime => &["libacl_rt.so", "libascendcl.so"],
            Self::OpBase => &["libnnopbase.so"],
            Self::Math => &["libopapi_math.so", "libopapi.so"],
            Self::Nn => &["libopapi_nn.so", "libopapi.so"],
            Self::Transformer => &["libopapi_transformer.so", "libopapi.so"],
            Self::Cv => &["libopapi_cv.so", "libopapi.so"],
            Self::Collectives => &["libhccl.so"],
            Self::Communicators => &["libhcomm.so", "libhccl.so"],
        }
    }

    /// Whether a vendor's operators come before CANN's own.
    fn has_vendors(self) -> bool {
        matches!(self, Self::Math | Self::Nn | Self::Transformer | Self::Cv)
    }
}

/// One place in which all families are looked up, so that two installations never mix in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One file that has every symbol.
    File(PathBuf),
    /// `lib64` of an installation.
    Root(PathBuf),
    /// What the loader finds by name (`LD_LIBRARY_PATH`, `ld.so.conf`).
    Loader,
}

impl Place {
    /// Paths or names to open for a file name of [`Family::files`].
    fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Root(root) => root.join("lib64").join(file),
            Self::Loader => PathBuf::from(file),
        }
    }
}

/// Where to look, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Places, best first. The first one where the runtime's library opens is used for everything.
    pub places: Vec<Place>,
    /// Files with a vendor's operators, best first.
    pub vendors: Vec<PathBuf>,
}

impl Search {
    /// As the process's environment says: see [`Self::from_variables`].
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// One file that has every symbol.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { places: vec![Place::File(path.into())], vendors: Vec::new() }
    }

    /// `BELAY_CANN_LIBRARY` alone if it is set; else the roots of `ASCEND_HOME_PATH` and `ASCEND_TOOLKIT_HOME`, the
    /// default roots, and the loader's own path. Vendors' operators by `ASCEND_CUSTOM_OPP_PATH`, then by
    /// `ASCEND_OPP_PATH` with the order of `vendors/config.ini`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        if let Some(file) = set(LIBRARY_VARIABLE) {
            return Self::file(file);
        }
        let mut places = Vec::new();
        let named = ROOT_VARIABLES.iter().filter_map(|name| set(name)).map(PathBuf::from);
        for root in named.chain(DEFAULT_ROOTS.iter().map(PathBuf::from)) {
            let place = Place::Root(root);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places.push(Place::Loader);

        let mut vendors = Vec::new();
        if let Some(paths) = set("ASCEND_CUSTOM_OPP_PATH") {
            std::env::split_paths(&paths).for_each(|path| vendors.extend(custom_libraries(&path)));
        }
        if let Some(path) = set("ASCEND_OPP_PATH") {
            vendors.extend(vendor_libraries(Path::new(&path)));
        }
        Self { places, vendors }
    }

    /// Paths or names to open for a family at a place, best first.
    pub fn candidates(&self, family: Family, place: &Place) -> Vec<PathBuf> {
        if let Place::File(path) = place {
            return vec![path.clone()];
        }
        let vendors = self.vendors.iter().filter(|_| family.has_vendors()).cloned();
        vendors.chain(family.files().iter().map(|file| place.path(file))).collect()
    }
}

/// `<path>/op_api/lib` and `<path>/*/op_api/lib`, where there is such a file. Both layouts are in use.
fn custom_libraries(path: &Path) -> Vec<PathBuf> {
    let mut folders = vec![path.to_path_buf()];
    if let Ok(entries) = std::fs::read_dir(path) {
        let mut inner: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        inner.sort();
        folders.extend(inner);
    }
    folders
        .iter()
        .map(|folder| folder.join("op_api/lib").join(VENDOR_FILE))
        .filter(|file| file.exists())
        .collect()
}

/// The vendors of `load_priority=a,b` in `<path>/vendors/config.ini`.
fn vendor_libraries(path: &Path) -> Vec<PathBuf> {
    let vendors = path.join("vendors");
    let config = std::fs::read_to_string(vendors.join("config.ini")).unwrap_or_default();
    let order =
        config.lines().find_map(|line| line.trim().strip_prefix("load_priority=")).unwrap_or_default();
    let names = order.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| vendors.join(name).join("op_api/lib").join(VENDOR_FILE))
        .filter(|file| file.exists())
        .collect()
}

/// The version that an installation says it has, from the first `version.info` or `*_install.info` with such a line.
pub(super) fn version_of(root: &Path) -> Option<String> {
    let arch = format!("{}-linux", std::env::consts::ARCH);
    let files = [
        root.join(&arch).join("ascend_toolkit_install.info"),
        root.join("share/info/runtime/version.info"),
        root.join("runtime/version.info"),
        root.join("version.info"),
    ];
    files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            let is_version = key.trim().eq_ignore_ascii_case("version");
            is_version.then(|| value.trim().to_owned()).filter(|value| !value.is_empty())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(variables: &[(&str, &str)]) -> Search {
        Search::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn one_file_is_all_there_is_to_search() {
        let search = search(&[(LIBRARY_VARIABLE, "/tmp/sim.so"), ("ASCEND_HOME_PATH", "/opt/cann")]);
        assert_eq!(search, Search::file("/tmp/sim.so"));
        for family in Family::ALL {
            assert_eq!(search.candidates(family, &search.places[0]), [PathBuf::from("/tmp/sim.so")]);
        }
    }

    #[test]
    fn the_environment_comes_before_the_defaults_and_the_loader_is_last() {
        let found = search(&[
            ("ASCEND_TOOLKIT_HOME", "/opt/toolkit"),
            ("ASCEND_HOME_PATH", "/usr/local/Ascend/cann"),
        ]);
        let root = |path: &str| Place::Root(PathBuf::from(path));
        assert_eq!(
            found.places,
            [
                root("/usr/local/Ascend/cann"),
                root("/opt/toolkit"),
                root("/usr/local/Ascend/ascend-toolkit/latest"),
                Place::Loader
            ]
        );
        assert_eq!(
            found.candidates(Family::Runtime, &found.places[1]),
            [
                PathBuf::from("/opt/toolkit/lib64/libacl_rt.so"),
                PathBuf::from("/opt/toolkit/lib64/libascendcl.so")
            ]
        );
        assert_eq!(
            found.candidates(Family::Communicators, &Place::Loader),
            [PathBuf::from("libhcomm.so"), PathBuf::from("libhccl.so")]
        );
        assert_eq!(search(&[("ASCEND_HOME_PATH", "")]).places.len(), 3, "an empty variable is not set");
    }

    #[test]
    fn vendors_come_first_in_the_order_of_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for vendor in ["custom/op_api/lib", "opp/vendors/b/op_api/lib", "opp/vendors/a/op_api/lib"] {
            std::fs::create_dir_all(at(vendor)).unwrap();
            std::fs::write(at(vendor).join(VENDOR_FILE), "").unwrap();
        }
        std::fs::write(at("opp/vendors/config.ini"), "load_priority=b,missing,a\n").unwrap();
        let (opp, custom) = (at("opp"), folder.path().to_owned());
        let found = search(&[
            ("ASCEND_OPP_PATH", opp.to_str().unwrap()),
            ("ASCEND_CUSTOM_OPP_PATH", custom.to_str().unwrap()),
        ]);
        let expected = [
            at("custom/op_api/lib").join(VENDOR_FILE),
            at("opp/vendors/b/op_api/lib").join(VENDOR_FILE),
            at("opp/vendors/a/op_api/lib").join(VENDOR_FILE),
        ];
        assert_eq!(found.vendors, expected);
        let nn = found.candidates(Family::Nn, &Place::Loader);
        assert_eq!(nn[..3], expected);
        assert_eq!(nn[3..], [PathBuf::from("libopapi_nn.so"), PathBuf::from("libopapi.so")]);
        assert_eq!(found.candidates(Family::Runtime, &Place::Loader).len(), 2, "vendors add operators alone");
    }

    #[test]
    fn a_version_is_read_from_the_installation() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(version_of(folder.path()), None);
        std::fs::create_dir_all(folder.path().join("runtime")).unwrap();
        std::fs::write(folder.path().join("runtime/version.info"), "# info\nVersion=9.1.0\n").unwrap();
        assert_eq!(version_of(folder.path()).as_deref(), Some("9.1.0"));
    }
}
