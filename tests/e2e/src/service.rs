//! A way to the gateways that outlives each of them: a port of every node, as clients outside of a cluster have it.

use anyhow::{Context, Result};
use serde_json::json;

use crate::{fixture::Fixture, node};

/// Name of the Service that the tests make.
const NAME: &str = "e2e-gateways";

/// A Service of type NodePort in front of all gateways. The clients' machine runs the nodes, so it reaches their addresses.
#[derive(Clone, Debug)]
pub struct NodePort {
    /// `http://<node>:<port>`.
    pub url: String,
}

impl NodePort {
    /// Makes it, or finds it.
    ///
    /// # Errors
    /// With what `kubectl` said.
    pub fn to_gateways(fixture: &Fixture) -> Result<Self> {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": NAME },
            "spec": {
                "type": "NodePort",
                "selector": { "app.kubernetes.io/component": "gateway" },
                "ports": [{ "name": "api", "port": 80, "targetPort": "api" }],
            },
        });
        fixture.system.apply(&service.to_string())?;
        let service = fixture.system.get(&["service", NAME])?;
        let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("nodePort")?;
        let nodes = fixture.system.list(&["nodes", "-l", "node-role.kubernetes.io/control-plane"])?;
        let node = node::name(nodes.first().context("no control plane")?)?.to_owned();
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = node::docker(&["inspect", "--format", format, &node])?;
        Ok(Self { url: format!("http://{}:{port}", address.trim()) })
    }
}
