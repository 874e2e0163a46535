//! Committed files that are made from code must be what the code makes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use std::{fs, path::Path};

#[test]
fn crd_in_the_chart_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/belay/crds/modeldeployments.serving.belay.dev.yaml");
    let committed = fs::read_to_string(&path).unwrap();
    let made = belay_operator::generate::crd_yaml().unwrap();
    assert!(
        committed == made,
        "the CRD is not what the types say; run: cargo run -p belay-operator -- crd > charts/belay/crds/{}",
        path.file_name().unwrap().display()
    );
}
