//! Logs.
use anyhow::anyhow;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error.
///
/// # Errors
/// When the filter is not one, or logging was started before.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(directives(filter))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    }
    .map_err(|error| anyhow!("start logging: {error}"))
}

/// Libraries that write a line for each frame or request below the level `info`.
const CHATTY: [&str; 6] = ["h2", "hyper", "hyper_util", "kube_client", "rustls", "tower"];

/// A single level is meant for the operator; who wants the libraries as well names them.
fn directives(filter: &str) -> String {
    match filter {
        "debug" | "trace" => {
            let quiet: Vec<String> = CHATTY.iter().map(|library| format!("{library}=info")).collect();
            format!("{filter},{}", quiet.join(","))
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_alone_keeps_libraries_quiet() {
        assert_eq!(directives("info"), "info");
        assert!(directives("debug").starts_with("debug,h2=info,"));
        assert_eq!(directives("info,h2=trace"), "info,h2=trace");
        assert!(EnvFilter::try_new(directives("trace")).is_ok());
    }
}
