//! What is found where, and what is said when something is missing.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::path::Path;
use std::process::Command;

use belay_ascend::{Family, Library, LibraryError, Place, Search};

/// A shared library with these functions, each returning 0.
fn library_with(folder: &Path, name: &str, functions: &[&str]) {
    let source = folder.join("source.c");
    let text: String = functions.iter().map(|name| format!("int {name}(void) {{ return 0; }}\n")).collect();
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new("cc");
    let status =
        compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(&source).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_symbol_of_the_simulator_is_found_in_its_file() {
    let library = common::library();
    let report = library.report();
    let file = common::library_file();
    for found in report.symbols.iter().filter(|found| found.file.is_some()) {
        assert_eq!(
            found.file.as_ref().unwrap().canonicalize().unwrap(),
            file.canonicalize().unwrap(),
            "{found:?}"
        );
    }
    assert!(report.symbols.iter().all(|found| found.file.is_some() || !found.required));
    assert!(report.symbols.len() > 50 && library.has("aclrtMalloc") && !library.has("aclrtTeleport"));
    assert!(report.to_string().contains("libbelay_ascend_sim.so"), "{report}");
}

#[test]
fn what_is_missing_is_listed_at_once_with_where_it_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let lib = root.path().join("lib64");
    std::fs::create_dir(&lib).unwrap();
    library_with(&lib, "libascendcl.so", &["aclInit", "aclFinalize", "aclrtMalloc"]);
    library_with(&lib, "libopapi.so", &["aclnnAdd"]);
    std::fs::create_dir_all(root.path().join("share/info/runtime")).unwrap();
    std::fs::write(root.path().join("share/info/runtime/version.info"), "Version=7.0.0\n").unwrap();
    let search =
        Search { places: vec![Place::Root(root.path().to_owned()), Place::Loader], vendors: Vec::new() };
    let error = Library::open(&search).unwrap_err();

    let LibraryError::MissingSymbols { missing, version, tried } = &error else { panic!("{error}") };
    assert_eq!(version.as_deref(), Some("7.0.0"));
    let names: Vec<&str> = missing.iter().map(|missing| missing.symbol).collect();
    assert!(
        ["aclrtFree", "aclCreateTensor", "aclnnMatmul", "aclnnAddGetWorkspaceSize"]
            .iter()
            .all(|name| names.contains(name))
    );
    assert!(
        ["aclInit", "aclFinalize", "aclrtMalloc", "aclnnAdd", "aclrtStreamAbort"]
            .iter()
            .all(|name| !names.contains(name))
    );
    let opened: Vec<_> =
        tried.iter().filter(|tried| tried.refused.is_none()).map(|tried| &tried.file).collect();
    assert_eq!(opened, [&lib.join("libascendcl.so"), &lib.join("libopapi.so")]);
    let text = error.to_string();
    for part in
        ["CANN 7.0.0", "aclCreateTensor", "(of libnnopbase.so)", "libacl_rt.so", "lib64/libopapi_nn.so"]
    {
        assert!(text.contains(part), "{part} in: {text}");
    }
}

#[test]
fn a_library_that_is_something_else_lacks_everything() {
    let error = Library::open(&Search::file("libc.so.6")).unwrap_err();
    let LibraryError::MissingSymbols { missing, version, .. } = &error else { panic!("{error}") };
    assert!(missing.len() > 40);
    assert_eq!(*version, None);
    assert!(
        error.to_string().starts_with("CANN of unknown version lacks required symbols: aclInit"),
        "{error}"
    );
}

#[test]
fn nothing_at_all_says_what_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let search = Search { places: vec![Place::Root(folder.path().to_owned())], vendors: Vec::new() };
    let error = Library::open(&search).unwrap_err();
    let LibraryError::NotFound { tried } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), Family::Runtime.files().len());
    assert!(
        error.to_string().contains("libacl_rt.so") && error.to_string().contains("libascendcl.so"),
        "{error}"
    );
}

#[test]
fn the_first_place_with_a_runtime_is_used_for_everything() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for root in [&old, &new] {
        std::fs::create_dir(root.path().join("lib64")).unwrap();
    }
    library_with(&new.path().join("lib64"), "libacl_rt.so", &["aclInit"]);
    library_with(&old.path().join("lib64"), "libacl_rt.so", &["aclInit", "aclFinalize"]);
    let places = [&new, &old].map(|root| Place::Root(root.path().to_owned())).to_vec();
    let error = Library::open(&Search { places, vendors: Vec::new() }).unwrap_err();
    let LibraryError::MissingSymbols { missing, tried, .. } = &error else { panic!("{error}") };
    assert!(missing.iter().any(|missing| missing.symbol == "aclFinalize"), "installations are never mixed");
    assert!(tried.iter().all(|tried| !tried.file.starts_with(old.path())));
}
