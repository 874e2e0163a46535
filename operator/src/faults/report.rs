//! What the ConfigMap `mindx-dl-deviceinfo-<node>` says, which Ascend's device plugin keeps for each node.
//!
//! Its fields are JSON within strings. What is not understood is left out and told in the log: a report of a newer plugin must
//! not hide the faults that are understood.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

/// How grave a fault is, in the plugin's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is to be done.
    NotHandleFault,
    /// Slower than it should be.
    SubHealthFault,
    /// Requests must be computed again.
    RestartRequest,
    /// The process must be started again.
    RestartBusiness,
    /// The device is reset once nobody uses it.
    FreeRestartNpu,
    /// The device is reset at once.
    RestartNpu,
    /// Nothing new gets the device.
    PreSeparateNpu,
    /// The device is taken out.
    SeparateNpu,
    /// The device is out until a person brings it back.
    ManuallySeparateNpu,
    /// Another word; empty if there is none.
    Other(String),
}

impl Level {
    /// Of the plugin's word.
    pub fn of(word: &str) -> Self {
        match word {
            "NotHandleFault" => Self::NotHandleFault,
            "SubHealthFault" => Self::SubHealthFault,
            "RestartRequest" => Self::RestartRequest,
            "RestartBusiness" => Self::RestartBusiness,
            "FreeRestartNPU" => Self::FreeRestartNpu,
            "RestartNPU" => Self::RestartNpu,
            "PreSeparateNPU" => Self::PreSeparateNpu,
            "SeparateNPU" => Self::SeparateNpu,
            "ManuallySeparateNPU" => Self::ManuallySeparateNpu,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The plugin's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::NotHandleFault => "NotHandleFault",
            Self::SubHealthFault => "SubHealthFault",
            Self::RestartRequest => "RestartRequest",
            Self::RestartBusiness => "RestartBusiness",
            Self::FreeRestartNpu => "FreeRestartNPU",
            Self::RestartNpu => "RestartNPU",
            Self::PreSeparateNpu => "PreSeparateNPU",
            Self::SeparateNpu => "SeparateNPU",
            Self::ManuallySeparateNpu => "ManuallySeparateNPU",
            Self::Other(word) if word.is_empty() => "none",
            Self::Other(word) => word,
        }
    }

    /// Of the words for switches, which are fewer.
    fn of_switch(word: &str) -> Self {
        match word {
            "" | "NotHandle" => Self::NotHandleFault,
            "Separate" => Self::SeparateNpu,
            other => Self::of(other),
        }
    }
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Name of the device, which ends with its number in the node; `None`: all of the node.
    pub device: Option<String>,
    /// Code, or what kind of fault it is if there is none.
    pub code: String,
    /// How grave it is.
    pub level: Level,
    /// Since when, as far as the report tells.
    pub since: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "DeviceInfo")]
    device_info: DeviceInfo,
}

#[derive(Deserialize)]
struct DeviceInfo {
    #[serde(rename = "DeviceList", default)]
    device_list: BTreeMap<String, String>,
}

/// An entry of the list of faults.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    fault_type: String,
    #[serde(default)]
    npu_name: String,
    #[serde(default)]
    large_model_fault_level: String,
    #[serde(default)]
    fault_level: String,
    #[serde(default)]
    fault_handling: String,
    #[serde(default)]
    fault_code: String,
    #[serde(default)]
    fault_time_and_level_map: BTreeMap<String, TimeAndLevel>,
}

#[derive(Deserialize)]
struct TimeAndLevel {
    /// Milliseconds since 1970; not above 0 if it is not known.
    #[serde(default)]
    fault_time: i64,
    #[serde(default)]
    fault_level: String,
}

#[derive(Deserialize)]
struct SwitchInfo {
    #[serde(rename = "FaultCode", default)]
    fault_code: Vec<Value>,
    #[serde(rename = "FaultLevel", default)]
    fault_level: String,
}

/// The faults that the ConfigMap of `node` tells of, without those that nothing is to be done about.
pub fn read(node: &str, data: &BTreeMap<String, String>) -> Vec<Fault> {
    let mut faults = devices(node, data);
    faults.extend(switches(node, data));
    faults.retain(|fault| fault.level != Level::NotHandleFault);
    faults.sort();
    faults.dedup();
    faults
}

fn devices(node: &str, data: &BTreeMap<String, String>) -> Vec<Fault> {
    let parse = |text: &String| parsed::<Document>(node, "DeviceInfoCfg", text);
    let lists = data.get("DeviceInfoCfg").and_then(parse).map(|document| document.device_info.device_list);
    let lists = lists.unwrap_or_default();
    let entries = lists.iter().filter(|(key, _)| key.ends_with("-Fault")).filter_map(|(key, text)| {
        // a list without any entry is written as an empty string, too
        if text.trim().is_empty() { None } else { parsed::<Vec<Entry>>(node, key, text) }
    });
    let entries: Vec<Entry> = entries.flatten().collect();
    let told: BTreeSet<&str> = entries.iter().map(|entry| entry.npu_name.as_str()).collect();
    let mut faults: Vec<Fault> = entries.iter().flat_map(Entry::faults).collect();
    // devices in a list of unhealthy ones without an entry that says why: the word before the list's end says what kind
    for (key, names) in lists.iter().filter(|(key, _)| key.ends_with("Unhealthy")) {
        let kind = key.rsplit_once('-').map_or(key.as_str(), |(_, kind)| kind);
        let silent = names_of(names).filter(|name| !told.contains(name));
        faults.extend(silent.map(|name| Fault {
            device: Some(name.to_owned()),
            code: kind.to_owned(),
            level: Level::Other(String::new()),
            since: None,
        }));
    }
    let separated = data.get("ManuallySeparateNPU").map(String::as_str).unwrap_or_default();
    for name in names_of(separated) {
        let is_told = faults
            .iter()
            .any(|fault| fault.device.as_deref() == Some(name) && fault.level == Level::ManuallySeparateNpu);
        if !is_told {
            faults.push(Fault {
                device: Some(name.to_owned()),
                code: "ManuallySeparateNPU".to_owned(),
                level: Level::ManuallySeparateNpu,
                since: None,
            });
        }
    }
    faults
}

impl Entry {
    /// One for each code, which has a level of its own, and one for the level of the whole if no code has it: many slight faults
    /// together may be a grave one.
    fn faults(&self) -> Vec<Fault> {
        let device = (!self.npu_name.is_empty()).then(|| self.npu_name.clone());
        let words = [&self.fault_handling, &self.fault_level, &self.large_model_fault_level];
        let whole = words.into_iter().find(|word| !word.is_empty()).map_or("", String::as_str);
        let codes = self.fault_time_and_level_map.iter().map(|(code, told)| Fault {
            device: device.clone(),
            code: code.trim().to_owned(),
            level: Level::of(&told.fault_level),
            since: (told.fault_time > 0).then(|| Timestamp::from_millisecond(told.fault_time).ok()).flatten(),
        });
        let mut faults: Vec<Fault> = codes.collect();
        let whole = Level::of(whole);
        if !faults.iter().any(|fault| fault.level == whole) && (faults.is_empty() || whole != Level::of("")) {
            let codes: Vec<&str> = names_of(&self.fault_code).collect();
            let code = if codes.is_empty() { self.fault_type.clone() } else { codes.join(",") };
            let since = faults.iter().filter_map(|fault| fault.since).min();
            faults.push(Fault { device, code, level: whole, since });
        }
        faults
    }
}

/// Faults of what connects the devices of the node.
fn switches(node: &str, data: &BTreeMap<String, String>) -> Option<Fault> {
    let text = data.get("SwitchInfoCfg").filter(|text| !text.trim().is_empty())?;
    let info = parsed::<SwitchInfo>(node, "SwitchInfoCfg", text)?;
    let code = |value: &Value| {
        // older plugins list the codes alone
        value.as_str().or_else(|| value["AssembledFaultCode"].as_str()).map(str::to_owned)
    };
    let codes: BTreeSet<String> = info.fault_code.iter().filter_map(code).collect();
    let codes: Vec<String> = codes.into_iter().collect();
    let code = if codes.is_empty() { "switch".to_owned() } else { format!("switch {}", codes.join(",")) };
    Some(Fault { device: None, code, level: Level::of_switch(&info.fault_level), since: None })
}

fn names_of(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty())
}

fn parsed<T: for<'a> Deserialize<'a>>(node: &str, field: &str, text: &str) -> Option<T> {
    serde_json::from_str(text)
        .inspect_err(|error| warn!(node, field, %error, "the report of the device plugin is not understood"))
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data(list: Value) -> BTreeMap<String, String> {
        let info = json!({ "DeviceInfo": { "DeviceList": list, "UpdateTime": 1_800_000_000 }, "SuperPodID": 3,
            "ServerIndex": 1, "CheckCode": "0f" });
        BTreeMap::from([("DeviceInfoCfg".to_owned(), info.to_string())])
    }

    fn fault(device: &str, code: &str, level: Level, since: Option<i64>) -> Fault {
        let since = since.map(|seconds| Timestamp::from_second(seconds).unwrap());
        Fault { device: Some(device.to_owned()), code: code.to_owned(), level, since }
    }

    #[test]
    fn each_code_is_a_fault_with_its_own_level_and_time() {
        let entries = json!([{
            "fault_type": "CardUnhealthy", "npu_name": "Ascend910-3", "large_model_fault_level": "SeparateNPU",
            "fault_level": "SeparateNPU", "fault_handling": "SeparateNPU", "fault_code": "80E01801 , 80C98009,1",
            "fault_time_and_level_map": {
                "80E01801": { "fault_time": 1_800_000_000_500_i64, "fault_level": "SeparateNPU" },
                "80C98009": { "fault_time": 0, "fault_level": "SubHealthFault" },
                "1": { "fault_time": 5, "fault_level": "NotHandleFault" } },
        }]);
        let list = json!({ "huawei.com/Ascend910": "Ascend910-0", "huawei.com/Ascend910-Fault": entries.to_string(),
            "huawei.com/Ascend910-Unhealthy": "Ascend910-3", "huawei.com/Ascend910-NetworkUnhealthy": "",
            "huawei.com/Ascend910-Recovering": "Ascend910-7" });
        let mut grave = fault("Ascend910-3", "80E01801", Level::SeparateNpu, None);
        grave.since = Some(Timestamp::from_millisecond(1_800_000_000_500).unwrap());
        let slight = fault("Ascend910-3", "80C98009", Level::SubHealthFault, None);
        assert_eq!(read("n", &data(list)), [slight, grave]);
    }

    #[test]
    fn level_of_the_whole_counts_where_no_code_has_it() {
        let entries = json!([
            { "fault_type": "CardUnhealthy", "npu_name": "npu-1", "fault_level": "ManuallySeparateNPU", "fault_code": "a",
              "fault_time_and_level_map": { "a": { "fault_time": 7000, "fault_level": "RestartBusiness" } } },
            { "fault_type": "CardNetworkUnhealthy", "npu_name": "npu-2", "fault_handling": "PreSeparateNPU" },
            { "fault_type": "NodeUnhealthy", "npu_name": "", "fault_level": "" },
            { "fault_type": "CardUnhealthy", "npu_name": "npu-4", "fault_level": "MeltNPU", "fault_code": "b" },
        ]);
        let faults = read("n", &data(json!({ "huawei.com/npu-Fault": entries.to_string() })));
        let node = Fault {
            device: None,
            code: "NodeUnhealthy".into(),
            level: Level::Other(String::new()),
            since: None,
        };
        assert_eq!(
            faults,
            [
                node,
                fault("npu-1", "a", Level::RestartBusiness, Some(7)),
                fault("npu-1", "a", Level::ManuallySeparateNpu, Some(7)),
                fault("npu-2", "CardNetworkUnhealthy", Level::PreSeparateNpu, None),
                fault("npu-4", "b", Level::Other("MeltNPU".into()), None),
            ]
        );
    }

    #[test]
    fn unhealthy_devices_without_an_entry_have_a_fault_of_no_level() {
        let list = json!({ "huawei.com/Ascend910-Fault": "[]", "huawei.com/Ascend910-Unhealthy": "Ascend910-1, Ascend910-2",
            "huawei.com/Ascend910-NetworkUnhealthy": "Ascend910-2" });
        let none = || Level::Other(String::new());
        assert_eq!(
            read("n", &data(list)),
            [
                fault("Ascend910-1", "Unhealthy", none(), None),
                fault("Ascend910-2", "NetworkUnhealthy", none(), None),
                fault("Ascend910-2", "Unhealthy", none(), None),
            ]
        );
    }

    #[test]
    fn devices_that_are_out_and_switches_are_in_fields_of_their_own() {
        let mut data = data(json!({}));
        data.insert("ManuallySeparateNPU".to_owned(), "Ascend910-5".to_owned());
        let info = json!({ "FaultCode": [{ "AssembledFaultCode": "[0x00f1fef5]" }], "FaultLevel": "Separate",
            "NodeStatus": "UnHealthy" });
        data.insert("SwitchInfoCfg".to_owned(), info.to_string());
        let switch = Fault {
            device: None,
            code: "switch [0x00f1fef5]".into(),
            level: Level::SeparateNpu,
            since: None,
        };
        let out = fault("Ascend910-5", "ManuallySeparateNPU", Level::ManuallySeparateNpu, None);
        assert_eq!(read("n", &data), [switch, out]);
        let well = json!({ "FaultCode": [], "FaultLevel": "", "NodeStatus": "Healthy" });
        data.insert("SwitchInfoCfg".to_owned(), well.to_string());
        data.remove("ManuallySeparateNPU");
        assert!(read("n", &data).is_empty());
    }

    #[test]
    fn what_is_not_understood_hides_nothing_else() {
        let mut data = data(json!({ "huawei.com/Ascend910-Fault": "{", "huawei.com/npu-Fault": "",
            "huawei.com/Ascend910-Unhealthy": "Ascend910-1" }));
        data.insert("SwitchInfoCfg".to_owned(), "[]".to_owned());
        assert_eq!(read("n", &data).len(), 1);
        assert!(read("n", &BTreeMap::from([("DeviceInfoCfg".to_owned(), "no".to_owned())])).is_empty());
        assert!(read("n", &BTreeMap::new()).is_empty());
    }

    #[test]
    fn words_of_levels_are_read_back() {
        for word in [
            "NotHandleFault",
            "SubHealthFault",
            "RestartRequest",
            "RestartBusiness",
            "FreeRestartNPU",
            "RestartNPU",
            "PreSeparateNPU",
            "SeparateNPU",
            "ManuallySeparateNPU",
            "MeltNPU",
        ] {
            assert_eq!(Level::of(word).as_str(), word);
        }
    }
}
