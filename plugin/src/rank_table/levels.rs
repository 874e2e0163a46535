//! Layers of networks of 950 devices. Which device is in which network is known to its device plugin alone, so what that
//! wrote is taken as it is; only which kind of outer network a table names is decided here.
use super::{
    annotation::{Device, Level},
    error::RankTableError,
};

/// The layers up to here are inside a superpod and have one kind of network.
const INNER: u32 = 1;

/// Kinds of network that join superpods: the first that is there is taken, as MindCluster's own operator does.
const OUTER: [&str; 3] = ["ROCE", "UBOE", "UBG"];

/// The kind of outer network that a table of these devices names.
pub fn outer<'a>(devices: impl Iterator<Item = &'a Device>) -> Option<&'static str> {
    let levels: Vec<_> =
        devices.flat_map(|device| &device.levels).filter(|level| level.level > INNER).collect();
    OUTER.into_iter().find(|kind| levels.iter().any(|level| level.info.contains_key(*kind)))
}

/// The layers of a device, the innermost first.
///
/// # Errors
/// When it has none, has not got the outer network that the others have, or an inner layer is not one network.
pub fn layers(
    pod: &str,
    id: u32,
    device: &Device,
    outer: Option<&'static str>,
) -> Result<Vec<Level>, RankTableError> {
    let mut layers = vec![];
    let mut has_outer = false;
    for level in &device.levels {
        if level.level > INNER {
            let chosen = outer.and_then(|kind| level.info.get(kind));
            has_outer |= chosen.is_some();
            layers.extend(chosen.cloned());
        } else if level.info.len() > 1 {
            return Err(RankTableError::SeveralNetworks {
                pod: pod.to_owned(),
                device: id,
                level: level.level,
                kinds: level.info.keys().cloned().collect::<Vec<_>>().join(", "),
            });
        } else {
            layers.extend(level.info.values().cloned());
        }
    }
    if layers.is_empty() && outer.is_none() {
        return Err(RankTableError::NoLevels { pod: pod.to_owned(), device: id });
    }
    if let Some(kind) = outer.filter(|_| !has_outer) {
        return Err(RankTableError::NoOuterNetwork { pod: pod.to_owned(), device: id, kind });
    }
    layers.sort_by_key(|level| level.net_layer);
    Ok(layers)
}
