use crate::ffi::{ROOT_INFO_BYTES, RawRootInfo};
use crate::{Current, Error, Result};

/// How the ranks of a communicator that is about to be made find each other. Good for one communicator.
#[derive(Clone)]
pub struct RootInfo(pub(super) Box<RawRootInfo>);

impl RootInfo {
    /// A new one; this process, and the device of this thread, is where the others come to.
    ///
    /// # Errors
    /// [`Error::Absent`] for a CANN without HCCL; [`Error::Call`].
    pub fn new(current: &Current) -> Result<Self> {
        current.hold()?;
        let runtime = current.runtime();
        let get = runtime.symbols().HcclGetRootInfo.ok_or(Error::Absent { symbol: "HcclGetRootInfo" })?;
        let mut raw = Box::new(RawRootInfo([0; ROOT_INFO_BYTES]));
        // SAFETY: as many bytes as the library writes, alive during the call.
        let code = unsafe { get(&mut *raw) };
        runtime.check_hccl("HcclGetRootInfo", code)?;
        Ok(Self(raw))
    }

    /// What another process has sent.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let raw = bytes.try_into().map_err(|_| Error::Shape {
            operation: "root info",
            cause: format!("{} bytes, expected {ROOT_INFO_BYTES}", bytes.len()),
        })?;
        Ok(Self(Box::new(RawRootInfo(raw))))
    }

    /// To be sent to the other ranks.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }
}

impl std::fmt::Debug for RootInfo {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RootInfo")
    }
}
