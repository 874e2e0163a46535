//! Committed files that are made from code must be what the code makes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use std::{fs, path::Path};

fn up_to_date(command: &str, file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/belay/files").join(file);
    let committed = fs::read_to_string(&path).unwrap();
    assert!(
        committed == made,
        "{file} is not what the code says; run: cargo run -p belay-operator -- {command} > charts/belay/files/{file}"
    );
}

#[test]
fn crd_in_the_chart_is_up_to_date() {
    let made = belay_operator::generate::crd_yaml().unwrap();
    up_to_date("crd", "modeldeployments.serving.belay.dev.yaml", &made);
}

#[test]
fn rbac_in_the_chart_is_up_to_date() {
    up_to_date("rbac", "operator-rbac.yaml", &belay_operator::generate::rbac_yaml().unwrap());
}
