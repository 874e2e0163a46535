//! A Prometheus in the cluster, asked from this machine.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{env::Env, kubectl::Kubectl, node, tunnel::Tunnel};

/// Its address for those in the cluster.
pub const ADDRESS: &str = "http://prometheus.monitoring.svc:9090";

/// A way to it.
#[derive(Debug)]
pub struct Prometheus {
    tunnel: Tunnel,
    client: reqwest::Client,
}

impl Prometheus {
    /// To the pod that `tests/cluster/autoscaling.sh` makes.
    ///
    /// # Errors
    /// If there is none, or the tunnel does not open.
    pub fn open(env: &Env) -> Result<Self> {
        let kubectl = Kubectl::new(env, "monitoring");
        let pods = kubectl.list(&["pods", "-l", "app=prometheus"])?;
        let ready = |pod: &&Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        let pod =
            pods.iter().find(ready).context("no Prometheus is ready: tests/cluster/autoscaling.sh up")?;
        let pod = node::name(pod)?;
        let tunnel = Tunnel::open(&kubectl, pod, 9090, Stdio::null())?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        Ok(Self { tunnel, client })
    }

    /// The values of an instant vector.
    ///
    /// # Errors
    /// If it does not answer, or not with a vector.
    pub async fn ask(&self, query: &str) -> Result<Vec<f64>> {
        let url = reqwest::Url::parse_with_params(
            &format!("{}/api/v1/query", self.tunnel.url()),
            [("query", query)],
        )?;
        let answer: Value = self.client.get(url).send().await?.json().await?;
        values(&answer).with_context(|| query.to_owned())
    }
}

fn values(answer: &Value) -> Result<Vec<f64>> {
    ensure!(answer["status"] == "success", "refused: {}", answer["error"]);
    let Some(series) =
        answer["data"]["result"].as_array().filter(|_| answer["data"]["resultType"] == "vector")
    else {
        bail!("no vector: {}", answer["data"])
    };
    let value = |one: &Value| one["value"][1].as_str().and_then(|text| text.parse().ok());
    series.iter().map(|one| value(one).with_context(|| format!("no value: {one}"))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vector_is_its_values_and_all_else_an_error() {
        let vector =
            |result: Value| json!({"status": "success", "data": {"resultType": "vector", "result": result}});
        let one = |text: &str| json!({"metric": {}, "value": [1.5, text]});
        assert_eq!(values(&vector(json!([one("2"), one("0.5")]))).unwrap(), [2.0, 0.5]);
        assert_eq!(values(&vector(json!([]))).unwrap(), [0.0; 0]);
        values(&vector(json!([one("x")]))).unwrap_err();
        values(&json!({"status": "success", "data": {"resultType": "matrix", "result": []}})).unwrap_err();
        let error = values(&json!({"status": "error", "error": "parse error"})).unwrap_err().to_string();
        assert!(error.contains("parse error"), "{error}");
    }
}
