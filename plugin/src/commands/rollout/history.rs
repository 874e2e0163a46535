//! The revisions of a deployment.

use std::io::{self, Write as _};

use anyhow::Result;
use serde_json::{Value, json};

use super::Output;
use crate::{
    cli::Outcome,
    cluster::{Cluster, Revision},
};

/// Prints them, the newest first.
pub async fn show(cluster: &Cluster, name: &str, output: Output) -> Result<Outcome> {
    let deployment = cluster.deployment(name).await?;
    let revisions = cluster.revisions(&deployment).await?;
    let listed = deployment.at("/status/groups").and_then(Value::as_array).cloned().unwrap_or_default();
    let groups = |revision: &Revision| {
        listed.iter().filter(|group| group["revision"] == revision.name.as_str()).count()
    };
    let mut to = io::stdout().lock();
    match output {
        Output::Json => {
            let all: Vec<Value> = revisions
                .iter()
                .map(|revision| {
                    json!({
                        "revision": revision.name, "number": revision.number, "created": revision.created,
                        "groups": groups(revision), "data": revision.data,
                    })
                })
                .collect();
            writeln!(to, "{}", serde_json::to_string_pretty(&all)?)?;
        }
        Output::Text => {
            writeln!(to, "{:<10}{:>4}{:>8}  {:<22}WHAT", "REVISION", "NO", "GROUPS", "CREATED")?;
            for revision in &revisions {
                let Revision { name, number, created, .. } = revision;
                let (groups, what) = (groups(revision), what(&revision.data));
                writeln!(to, "{name:<10}{number:>4}{groups:>8}  {created:<22}{what}")?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// What tells revisions apart most often: workers and ranks, where the model is, the image.
fn what(data: &Value) -> String {
    let (group, source) = (&data["content"]["group"], &data["content"]["model"]["source"]);
    let count = |key: &str| group[key].as_i64().unwrap_or(1);
    let place = source.as_object().and_then(|source| source.iter().find(|(_, place)| place.is_object()));
    let place = place.map_or_else(String::new, |(_, place)| {
        let words = place.as_object().into_iter().flat_map(|fields| fields.values());
        words.filter_map(Value::as_str).collect::<Vec<_>>().join("/")
    });
    let image = data["image"].as_str().unwrap_or_default();
    format!("{} x {} ranks of {place}, {image}", count("workers"), count("devicesPerWorker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_told_by_shape_place_and_image() {
        let data = json!({
            "content": {
                "model": {"name": "nano", "source": {"hostPath": {"path": "/models/nano"}}},
                "group": {"workers": 2, "devicesPerWorker": 4},
            },
            "image": "worker:1",
        });
        assert_eq!(what(&data), "2 x 4 ranks of /models/nano, worker:1");
        assert_eq!(what(&json!({})), "1 x 1 ranks of , ");
    }
}
