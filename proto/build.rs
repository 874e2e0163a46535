//! Compiles the protos with protox, so that no `protoc` is needed, and keeps the descriptors for reflection.
use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = [
        "belay/inference/v1/inference.proto",
        "belay/admin/v1/admin.proto",
        "belay/gateway/v1/gateway.proto",
        "inference/open_inference_grpc.proto",
        "externalscaler/externalscaler.proto",
    ];
    let descriptors = protox::compile(protos, ["protos"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("descriptors.bin"))
        .type_attribute(
            "belay.admin.v1.Placement",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        )
        .type_attribute(
            "belay.admin.v1.GroupWorker",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        )
        .type_attribute(
            "belay.admin.v1.LayerPlacement",
            // [[0], [1, 3]]: a placement of a large model must fit into a ConfigMap, twice
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(transparent)]",
        )
        .type_attribute(
            "belay.admin.v1.ExpertCopies",
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(transparent)]",
        )
        .compile_fds(descriptors.clone())?;
    std::fs::write(out.join("descriptors.bin"), prost_bytes(&descriptors))?;
    println!("cargo:rerun-if-changed=protos");
    Ok(())
}

fn prost_bytes(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
