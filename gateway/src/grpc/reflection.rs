//! Reflection over the services that are really here.
use belay_proto::DESCRIPTORS;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic_reflection::server::Builder;

/// Files whose services are not served at this address.
const NOT_SERVED: [&str; 3] = ["belay.admin.v1", "belay.gateway.v1", "externalscaler"];

/// Descriptors of the services that this address serves.
pub fn files() -> Result<FileDescriptorSet, prost::DecodeError> {
    let mut files = FileDescriptorSet::decode(DESCRIPTORS)?;
    files.file.retain(|file| !NOT_SERVED.contains(&file.package()));
    Ok(files)
}

/// A reflection service in the making.
pub fn builder(files: &FileDescriptorSet) -> Builder<'static> {
    Builder::configure()
        .register_file_descriptor_set(files.clone())
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
