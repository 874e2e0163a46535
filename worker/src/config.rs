//! What `belay-worker serve` is told: one struct for flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use belay_ascend::Products;
use belay_cpu::Level;
use belay_engine::chat::Encoding;
use belay_fabric::RowFormat;
use belay_model::{Drafting, KvFormat};
use clap::{Args, ValueEnum};

/// Options of `belay-worker serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeConfig {
    /// Checkpoint directory: config.json, tokenizer.json and the safetensors files
    #[arg(long, env = "BELAY_MODEL_DIR", value_name = "DIR")]
    pub model_dir: PathBuf,

    /// Name that clients ask for [default: last part of the directory]
    #[arg(long, env = "BELAY_MODEL_NAME", value_name = "NAME")]
    pub model_name: Option<String>,

    /// Longest prompt + completion [default: the model's maximum]
    #[arg(long, env = "BELAY_MAX_CONTEXT_TOKENS", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_context_tokens: Option<u32>,

    /// Edition of the chat format: april (V4-Flash, V4-Pro, -DSpark) or 0731 (V4-Flash-0731, V4-Pro-0813)
    #[arg(long, env = "BELAY_CHAT_ENCODING", value_name = "EDITION", default_value = "april")]
    pub chat_encoding: Encoding,

    /// Whether a chat whose request does not say reasons before the answer
    #[arg(long, env = "BELAY_DEFAULT_THINKING", value_enum, default_value = "on")]
    pub default_thinking: Switch,

    /// Bytes for the states of requests and for cached prefixes, all together, such as 500M or 4Gi
    #[arg(long, env = "BELAY_KV_MEMORY", value_name = "BYTES", default_value = "4Gi", value_parser = quantity)]
    pub memory: usize,

    /// Form that those are stored in: f32 (exact), bf16 or fp8
    #[arg(long, env = "BELAY_KV_FORMAT", value_name = "FORMAT", default_value = "f32")]
    pub kv_format: KvFormat,

    /// Whether a prompt that begins like an earlier one goes on from what was kept of that
    #[arg(long, env = "BELAY_PREFIX_CACHE", value_enum, default_value = "on")]
    pub prefix_cache: Switch,

    /// Tokens that the model's draft stage guesses ahead: 0 to 3, or auto (1 if the checkpoint has the stage)
    #[arg(long, env = "BELAY_DRAFT_TOKENS", value_name = "N", default_value = "0")]
    pub draft_tokens: Drafting,

    /// Tokens of a step, those of prompts included: more is faster for prompts and slower for running answers
    #[arg(long, env = "BELAY_STEP_TOKENS", value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub step_tokens: u32,

    /// What the ranks of this worker are
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Bytes of experts that the ranks of this worker may hold together, such as 64Gi [default: what the container's
    /// memory limit leaves, if it has one]
    #[arg(long, env = "BELAY_EXPERT_MEMORY", value_name = "BYTES", value_parser = quantity)]
    pub expert_memory: Option<usize>,

    /// Ranks of this worker
    #[arg(long, env = "BELAY_DEVICES_PER_WORKER", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub devices_per_worker: u32,

    /// Group of this worker; without one it stands alone and holds every expert
    #[arg(long, env = "BELAY_GROUP", value_name = "NAME")]
    pub group: Option<String>,

    /// Revision of the deployment; workers of different revisions never exchange experts
    #[arg(long, env = "BELAY_REVISION", value_name = "REVISION", default_value = "")]
    pub revision: String,

    /// Index of this worker in its group
    #[arg(long, env = "BELAY_WORKER_INDEX", value_name = "N", default_value_t = 0)]
    pub worker_index: u32,

    /// Workers of the group
    #[arg(long, env = "BELAY_GROUP_WORKERS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub group_workers: u32,

    /// UID of this pod: tells one life of a worker from the next [default: random]
    #[arg(long, env = "BELAY_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,

    /// Placement of the group as JSON; read at start if it exists
    #[arg(long, env = "BELAY_PLACEMENT_FILE", value_name = "FILE")]
    pub placement_file: Option<PathBuf>,

    /// How long SIGTERM waits for requests in flight, seconds
    #[arg(long, env = "BELAY_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 300)]
    pub drain_seconds: u64,

    /// Address for inference, KServe open inference protocol, health and reflection
    #[arg(long, env = "BELAY_GRPC_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:50051")]
    pub grpc_listen: SocketAddr,

    /// Address for the operator (belay.admin.v1.Admin)
    #[arg(long, env = "BELAY_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:50052")]
    pub admin_listen: SocketAddr,

    /// Address for the workers of the group (framed TCP); not opened without a group
    #[arg(long, env = "BELAY_FABRIC_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:50053")]
    pub fabric_listen: SocketAddr,

    /// Address for /metrics, /healthz and /readyz
    #[arg(long, env = "BELAY_HTTP_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    pub http_listen: SocketAddr,

    /// Form in which rows travel between workers, and in which those of local experts are rounded as well:
    /// f32 (exact), bf16 or fp8
    #[arg(long, env = "BELAY_FABRIC_FORMAT", value_name = "FORMAT", default_value = "f32")]
    pub fabric_format: RowFormat,

    /// File with the group's key: peers prove to each other that they know it [default: no proof is asked]
    #[arg(long, env = "BELAY_FABRIC_KEY_FILE", value_name = "FILE")]
    pub fabric_key_file: Option<PathBuf>,

    /// Whether the admin service may break this worker on purpose
    #[arg(long, env = "BELAY_FAULT_INJECTION", value_enum, default_value = "off")]
    pub fault_injection: Switch,

    /// How long a step waits for an expert that nobody can compute before it is lost, seconds
    #[arg(long, env = "BELAY_FABRIC_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub fabric_timeout_seconds: u64,

    /// Rows from which a step of a group is done in two halves, one of which attends while the experts of the other are
    /// computed elsewhere; 0: never. Pays where peers are far: the dense weights are read twice
    #[arg(long, env = "BELAY_HALVES_FROM", value_name = "ROWS", default_value_t = 0)]
    pub halves_from: u32,

    /// Requests that are computed together
    #[arg(long, env = "BELAY_MAX_SESSIONS", value_name = "N", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,

    /// Requests that wait at most; more are refused with RESOURCE_EXHAUSTED
    #[arg(long, env = "BELAY_MAX_QUEUED", value_name = "N", default_value_t = 256)]
    pub max_queued: u32,

    /// Whether the log shows what clients ask
    #[arg(long, env = "BELAY_LOG_PROMPTS", value_enum, default_value = "off")]
    pub log_prompts: Switch,
}

/// What to compute on.
#[derive(Args, Clone, Debug)]
pub struct DeviceOptions {
    /// What the ranks of this worker are
    #[arg(long = "device", env = "BELAY_DEVICE", value_enum, ignore_case = true, default_value = "CPU")]
    pub kind: Device,

    #[command(flatten)]
    /// How CPUs compute
    pub cpu: CpuOptions,

    /// Generation that the NPUs must be of: A2, A3, Ascend950PR or Ascend950DT [default: any that is supported]
    #[arg(long, env = "BELAY_ASCEND_CHIP", value_name = "CHIP")]
    pub ascend_chip: Option<String>,

    /// What NPUs multiply weights in
    #[arg(long, env = "BELAY_ASCEND_PRODUCTS", value_enum, default_value = "bf16")]
    pub ascend_products: AscendProducts,

    /// How rows go between the NPUs of a group: by HCCL, and over TCP while that is not possible; or over TCP always
    #[arg(long, env = "BELAY_ASCEND_ROWS", value_enum, default_value = "hccl")]
    pub ascend_rows: AscendRows,
}

/// Bytes as Kubernetes writes them: a number and at most one of k, M, G, T, P, Ki, Mi, Gi, Ti, Pi. Parts of bytes
/// round up.
pub(crate) fn quantity(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit: u128 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        other => return Err(format!("{other:?} is no unit of bytes; expected one as in 500M or 4Gi")),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() > 18 {
        return Err("more than 18 digits".into());
    }
    let value: u128 =
        format!("{whole}{part}").parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let bytes = (value * unit).div_ceil(10_u128.pow(part.len() as u32));
    match usize::try_from(bytes) {
        Ok(0) => Err("must be more than 0".into()),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(format!("{bytes} bytes are more than this machine can address")),
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}

/// Kind of rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Ranks on the processor
    #[value(name = "CPU")]
    Cpu,
    /// Each rank on an NPU of its own
    #[value(name = "Ascend")]
    Ascend,
}

/// How CPUs compute.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Instruction set of the kernels: scalar, avx2, avx512, avx512-bf16 or amx-bf16 [default: the best of this machine, but
    /// not amx-bf16]
    #[arg(long, env = "BELAY_ISA")]
    pub isa: Option<Level>,

    /// What CPUs multiply weights by
    #[arg(long, env = "BELAY_CPU_PRODUCTS", value_enum, default_value = "f32")]
    pub cpu_products: CpuProducts,

    /// Where weights lie while they are used
    #[arg(long, env = "BELAY_CPU_WEIGHTS", value_enum, default_value = "copied")]
    pub cpu_weights: CpuWeights,
}

/// What the inputs of linears are on CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CpuProducts {
    /// f32: nothing is rounded
    #[default]
    F32,
    /// bf16, as in the published code: twice as fast where the processor multiplies bf16
    Bf16,
}

impl From<CpuProducts> for belay_cpu::Products {
    fn from(products: CpuProducts) -> Self {
        match products {
            CpuProducts::F32 => Self::F32,
            CpuProducts::Bf16 => Self::Bf16,
        }
    }
}

/// Where weights lie on CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CpuWeights {
    /// in the mapped checkpoint: workers on one machine share it, and memory that is short takes it back
    Mapped,
    /// copied to huge pages, if the kernel gives them to who asks: decoding reads them faster
    #[default]
    Copied,
}

impl From<CpuWeights> for belay_cpu::Weights {
    fn from(weights: CpuWeights) -> Self {
        match weights {
            CpuWeights::Mapped => Self::Mapped,
            CpuWeights::Copied => Self::Copied,
        }
    }
}

/// How rows go between the NPUs of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AscendRows {
    /// From device to device.
    Hccl,
    /// By way of the hosts.
    Tcp,
}

/// What NPUs multiply weights in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AscendProducts {
    /// bf16: published weights lose nothing
    Bf16,
    /// W8A8: INT8 weights and activations
    Int8,
    /// W4A8: as int8, with INT4 weights of routed experts; A2 and A3
    Int4Experts,
    /// f32: slow, and twice the memory; to compare results
    F32,
}

impl From<AscendProducts> for Products {
    fn from(products: AscendProducts) -> Self {
        match products {
            AscendProducts::Bf16 => Self::Bf16,
            AscendProducts::Int8 => Self::Int8,
            AscendProducts::Int4Experts => Self::Int4Experts,
            AscendProducts::F32 => Self::F32,
        }
    }
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What is wrong with options that each are fine alone.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The index is not one of the group's.
    #[error("worker index {index} is out of range: the group has {workers} workers")]
    WorkerIndex {
        /// Given index.
        index: u32,
        /// Given size of the group.
        workers: u32,
    },
    /// Several workers, but no group.
    #[error("{0} workers need a group name (BELAY_GROUP)")]
    NoGroup(u32),
    /// A form of the cache that NPUs do not keep.
    #[error("BELAY_KV_FORMAT: NPUs keep f32 or bf16, not fp8")]
    AscendFormat,
    /// No name was given and the directory has none.
    #[error("the model directory {0:?} has no last part to name the model after; give BELAY_MODEL_NAME")]
    NoModelName(PathBuf),
}

impl ServeConfig {
    /// Checks what single options can't.
    ///
    /// # Errors
    /// [`ConfigError`] naming the option.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.worker_index >= self.group_workers {
            return Err(ConfigError::WorkerIndex { index: self.worker_index, workers: self.group_workers });
        }
        if self.group_name().is_none() && self.group_workers > 1 {
            return Err(ConfigError::NoGroup(self.group_workers));
        }
        if self.device.kind == Device::Ascend && self.kv_format == KvFormat::Fp8 {
            return Err(ConfigError::AscendFormat);
        }
        self.served_name().map(|_| ())
    }

    /// Group of this worker; an empty variable is none.
    #[must_use]
    pub fn group_name(&self) -> Option<&str> {
        self.group.as_deref().filter(|name| !name.is_empty())
    }

    /// Name that clients ask for.
    ///
    /// # Errors
    /// [`ConfigError::NoModelName`].
    pub fn served_name(&self) -> Result<String, ConfigError> {
        let given = self.model_name.clone().filter(|name| !name.is_empty());
        let last = || Some(self.model_dir.file_name()?.to_string_lossy().into_owned());
        given.or_else(last).ok_or_else(|| ConfigError::NoModelName(self.model_dir.clone()))
    }

    /// How long SIGTERM waits for requests in flight.
    #[must_use]
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        config: ServeConfig,
    }

    fn parse(args: &[&str]) -> ServeConfig {
        let all = ["belay-worker", "--model-dir", "/models/nano"].iter().chain(args);
        Cli::try_parse_from(all).unwrap_or_else(|error| panic!("{error}")).config
    }

    #[test]
    fn defaults_are_those_of_the_contracts() {
        let config = parse(&[]);
        assert_eq!(config.served_name().unwrap(), "nano");
        assert_eq!((config.devices_per_worker, config.worker_index, config.group_workers), (1, 0, 1));
        assert_eq!(config.drain_seconds, 300);
        let ports = [config.grpc_listen, config.admin_listen, config.fabric_listen, config.http_listen];
        assert_eq!(ports.map(|address| address.port()), [50051, 50052, 50053, 9090]);
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn contradictions_name_the_option() {
        let error = |args: &[&str]| parse(args).validate().unwrap_err().to_string();
        assert!(error(&["--worker-index", "2", "--group", "g", "--group-workers", "2"]).contains("index 2"));
        assert!(error(&["--group-workers", "2"]).contains("BELAY_GROUP"));
        assert!(error(&["--group", "", "--group-workers", "2"]).contains("BELAY_GROUP"));
        assert!(parse(&["--group", "g", "--group-workers", "2", "--worker-index", "1"]).validate().is_ok());
        assert!(error(&["--device", "Ascend", "--kv-format", "fp8"]).contains("BELAY_KV_FORMAT"));
    }

    #[test]
    fn bytes_are_written_as_in_kubernetes() {
        for (text, bytes) in [
            ("1", 1),
            ("1.5Ki", 1536),
            ("0.1k", 100),
            ("1.0001k", 1001),
            ("500M", 500_000_000),
            ("4Gi", 4 << 30),
        ] {
            assert_eq!(quantity(text), Ok(bytes), "{text}");
        }
        for wrong in
            ["", ".", "Gi", "4GiB", "4g", "-1", "1e3", "0", "0.0Gi", "1.2.3", "9999999999999999999", "99999P"]
        {
            assert!(quantity(wrong).is_err(), "{wrong}");
        }
        let refused = Cli::try_parse_from(["w", "--model-dir", "/m", "--memory", "4GiB"]).unwrap_err();
        assert!(refused.to_string().contains("--memory <BYTES>") && refused.to_string().contains("GiB"));
    }

    #[test]
    fn settings_of_the_engine_have_names_for_their_values() {
        let config = parse(&["--kv-format", "fp8", "--draft-tokens", "2", "--prefix-cache", "off"]);
        assert_eq!((config.kv_format, config.prefix_cache), (KvFormat::Fp8, Switch::Off));
        assert_eq!(config.draft_tokens, "2".parse().unwrap());
        for wrong in [["--kv-format", "fp4"], ["--draft-tokens", "4"], ["--chat-encoding", "may"]] {
            let args = ["w", "--model-dir", "/m"].into_iter().chain(wrong);
            let refused = Cli::try_parse_from(args).unwrap_err().to_string();
            assert!(refused.contains(wrong[0]) && refused.contains(wrong[1]), "{refused}");
        }
    }

    #[test]
    fn the_device_is_spelt_as_in_the_resource() {
        assert_eq!(parse(&["--device", "CPU"]).device.kind, Device::Cpu);
        assert_eq!(parse(&["--device", "Ascend"]).device.kind, Device::Ascend);
        assert!(Cli::try_parse_from(["w", "--model-dir", "/m", "--device", "Abacus"]).is_err());
    }
}
