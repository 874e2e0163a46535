//! Flags and environment.
use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};

use crate::routing::PolicyName;

/// OpenAI HTTP and gRPC in front of Belay workers.
///
/// Without --worker the gateway reads ModelDeployments and worker pods from the Kubernetes API.
#[derive(Clone, Debug, Parser)]
#[command(name = "belay-gateway", version)]
pub struct Config {
    /// Address of the API: OpenAI HTTP and gRPC, HTTP/1.1 and HTTP/2 without TLS
    #[arg(long, env = "BELAY_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "BELAY_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    pub metrics_listen: SocketAddr,

    /// A worker that serves model NAME; may be given again. Turns Kubernetes discovery off
    #[arg(long = "worker", env = "BELAY_WORKERS", value_name = "NAME=HOST:PORT", value_delimiter = ',')]
    pub workers: Vec<StaticWorker>,

    /// Namespace to watch; unset: all namespaces
    #[arg(long, env = "BELAY_NAMESPACE")]
    pub namespace: Option<String>,

    /// How a worker is picked among the ready ones
    #[arg(long, env = "BELAY_POLICY", value_enum, default_value_t = PolicyName::LeastLoad)]
    pub policy: PolicyName,

    /// File of API keys (YAML or JSON); read again when it changes. Unset: everybody may ask for everything
    #[arg(long, env = "BELAY_KEYS_FILE")]
    pub keys_file: Option<PathBuf>,

    /// Gateways that share the requests: each grants its part of every key's limits
    #[arg(long, env = "BELAY_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub replicas: u64,

    /// Requests that may wait at one time for a worker to become ready
    #[arg(long, env = "BELAY_HOLD_REQUESTS", default_value_t = 256)]
    pub hold_requests: usize,

    /// Longest time a request waits for a worker, counted from its last progress, in seconds
    #[arg(long, env = "BELAY_HOLD_SECONDS", default_value = "60", value_parser = seconds)]
    pub hold_seconds: Duration,

    /// After how many seconds without a first token a second worker is asked as well; unset: never
    #[arg(long, env = "BELAY_HEDGE_AFTER_SECONDS", value_parser = seconds)]
    pub hedge_after: Option<Duration>,

    /// Largest request body or gRPC message
    #[arg(long, env = "BELAY_MAX_BODY_BYTES", default_value_t = 8 << 20)]
    pub max_body_bytes: usize,

    /// Longest time to receive a request body, in seconds
    #[arg(long, env = "BELAY_BODY_SECONDS", default_value = "60", value_parser = seconds)]
    pub body_seconds: Duration,

    /// Longest time to connect to a worker, in seconds; a request that meets a dead node waits so long before it goes elsewhere
    #[arg(long, env = "BELAY_CONNECT_SECONDS", default_value = "0.5", value_parser = seconds)]
    pub connect_seconds: Duration,

    /// Interval of HTTP/2 pings to workers, in seconds; a worker that stays silent as long again is lost
    #[arg(long, env = "BELAY_KEEP_ALIVE_SECONDS", default_value = "1", value_parser = seconds)]
    pub keep_alive_seconds: Duration,

    /// After SIGTERM: how long new connections are still taken, so that load balancers can notice
    #[arg(long, env = "BELAY_LAME_DUCK_SECONDS", default_value = "5", value_parser = seconds)]
    pub lame_duck_seconds: Duration,

    /// After the lame duck: longest time that running requests may take to finish
    #[arg(long, env = "BELAY_DRAIN_SECONDS", default_value = "300", value_parser = seconds)]
    pub drain_seconds: Duration,

    /// Format of the logs on stderr; RUST_LOG sets the level
    #[arg(long, env = "BELAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Format of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// A worker named by flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticWorker {
    /// Served model name.
    pub model: String,
    /// `host:port` of its gRPC service.
    pub address: String,
}

/// What is wrong with a `--worker`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not NAME=HOST:PORT")]
pub struct StaticWorkerError(String);

impl FromStr for StaticWorker {
    type Err = StaticWorkerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || StaticWorkerError(text.to_owned());
        let (model, address) = text.split_once('=').ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        if model.is_empty() || host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        // the address becomes a URI later: what is no authority is refused here, where the flag can be named
        address.parse::<http::uri::Authority>().map_err(|_| wrong())?;
        Ok(Self { model: model.to_owned(), address: address.to_owned() })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    Duration::try_from_secs_f64(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Config::command().debug_assert();
    }

    #[test]
    fn a_static_worker_is_a_model_and_an_address() {
        let worker: StaticWorker = "nano=127.0.0.1:50051".parse().unwrap();
        assert_eq!(worker, StaticWorker { model: "nano".into(), address: "127.0.0.1:50051".into() });
        assert_eq!("m=[::1]:1".parse::<StaticWorker>().unwrap().address, "[::1]:1");
        for wrong in ["nano", "nano=", "=a:1", "nano=host", "nano=host:port", "nano=:1", "nano=a b:1"] {
            assert!(wrong.parse::<StaticWorker>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_may_be_fractions_but_not_negative() {
        let config = Config::try_parse_from(["belay-gateway", "--hold-seconds", "0.25"]).unwrap();
        assert_eq!(config.hold_seconds, Duration::from_millis(250));
        assert!(Config::try_parse_from(["belay-gateway", "--hold-seconds=-1"]).is_err());
    }
}
