//! Every CEL rule, accepted and refused, evaluated as an API server would but without one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
use belay_crds::{ModelDeployment, RESERVED_ENV};
use serde_json::{Value, json};

fn good() -> Value {
    json!({
        "apiVersion": "serving.belay.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": { "name": "nano" },
        "spec": {
            "model": { "source": { "hostPath": { "path": "/models/nano" } } },
            "group": { "workers": 2, "device": "CPU", "devicesPerWorker": 2 },
        },
    })
}

/// The spec with one value replaced, by JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut object = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

fn check(object: Value) -> Result<(), String> {
    let deployment: ModelDeployment = serde_json::from_value(object).unwrap();
    deployment.validate_cel().map_err(|errors| errors.to_string())
}

#[track_caller]
fn refused(object: Value, words: &str) {
    let error = check(object).expect_err("must be refused");
    assert!(error.contains(words), "expected \"{words}\" in: {error}");
}

#[test]
fn plain_deployment_is_accepted() {
    check(good()).unwrap();
}

#[test]
fn name_must_fit_the_names_of_its_pods() {
    check(with("/metadata/name", json!("n".repeat(45)))).unwrap();
    refused(with("/metadata/name", json!("n".repeat(46))), "at most 45 characters");
}

#[test]
fn name_must_be_usable_for_services_and_hostnames() {
    refused(with("/metadata/name", json!("v4.flash")), "starting with a letter");
    refused(with("/metadata/name", json!("4flash")), "starting with a letter");
    refused(with("/metadata/name", json!("flash-")), "starting with a letter");
}

#[test]
fn source_must_be_exactly_one() {
    refused(with("/spec/model/source", json!({})), "exactly one of");
    let two = json!({ "hostPath": { "path": "/m" }, "persistentVolumeClaim": { "claimName": "c" } });
    refused(with("/spec/model/source", two), "exactly one of");
    let three = json!({ "hostPath": { "path": "/m" }, "persistentVolumeClaim": { "claimName": "c" },
                        "image": { "reference": "i" } });
    refused(with("/spec/model/source", three), "exactly one of");
    check(with("/spec/model/source", json!({ "persistentVolumeClaim": { "claimName": "c" } }))).unwrap();
    check(with("/spec/model/source", json!({ "image": { "reference": "example.org/m:1" } }))).unwrap();
}

#[test]
fn host_path_must_be_absolute_and_stay_where_it_is() {
    refused(with("/spec/model/source/hostPath/path", json!("models/nano")), "path must be absolute");
    refused(with("/spec/model/source/hostPath/path", json!("/models/../etc")), "without '..'");
    check(with("/spec/model/source/hostPath/path", json!("/models/..nano"))).unwrap();
}

#[test]
fn path_in_a_volume_must_be_relative_and_stay_inside() {
    let claim = |path| json!({ "persistentVolumeClaim": { "claimName": "c", "path": path } });
    check(with("/spec/model/source", claim("v4/flash"))).unwrap();
    refused(with("/spec/model/source", claim("/v4")), "relative to the volume");
    refused(with("/spec/model/source", claim("v4/../..")), "without '..'");
    let image = |path| json!({ "image": { "reference": "i", "path": path } });
    check(with("/spec/model/source", image("v4"))).unwrap();
    refused(with("/spec/model/source", image("/v4")), "relative to the image");
    refused(with("/spec/model/source", image("../v4")), "without '..'");
}

#[test]
fn ranks_of_a_group_are_bounded() {
    check(with("/spec/group", json!({ "workers": 128, "device": "CPU", "devicesPerWorker": 8 }))).unwrap();
    refused(
        with("/spec/group", json!({ "workers": 129, "device": "CPU", "devicesPerWorker": 8 })),
        "number of ranks of a group",
    );
}

#[test]
fn variables_of_the_operator_must_not_be_set() {
    let env = |name: &str| json!([{ "name": "RUST_LOG", "value": "info" }, { "name": name, "value": "x" }]);
    check(with("/spec/group/template", json!({ "env": env("MINE") }))).unwrap();
    for name in RESERVED_ENV {
        refused(with("/spec/group/template", json!({ "env": env(name) })), "that the operator sets");
    }
}

/// The API server reads the same schema: names of values, ranges and forms of texts are in it.
#[test]
fn settings_of_the_engine_are_bounded_by_the_schema() {
    let group = json!({ "device": "CPU", "cache": { "memory": "8Gi", "format": "BF16", "prefix": "Disabled" },
                        "speculation": { "draftTokens": 3 } });
    check(with("/spec/group", group)).unwrap();
    let chat = json!({ "encoding": "V0731", "defaultThinking": "Enabled" });
    check(with("/spec/model/chat", chat)).unwrap();
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let field = |path: &str| spec.pointer(path).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(field("/group/properties/cache/properties/format/enum"), &json!(["F32", "BF16", "FP8"]));
    assert_eq!(field("/group/properties/cache/properties/prefix/enum"), &json!(["Enabled", "Disabled"]));
    let pattern = field("/group/properties/cache/properties/memory/pattern");
    assert_eq!(pattern, &json!("^[1-9][0-9]{0,17}(k|M|G|T|Ki|Mi|Gi|Ti)?$"));
    let draft = field("/group/properties/speculation/properties/draftTokens");
    assert_eq!((&draft["minimum"], &draft["maximum"]), (&json!(0.0), &json!(3.0)));
    let chat = "/model/properties/chat/properties";
    assert_eq!(field(&format!("{chat}/encoding/enum")), &json!(["April", "V0731"]));
    assert_eq!(field(&format!("{chat}/defaultThinking/enum")), &json!(["Enabled", "Disabled"]));
}

#[test]
fn surge_and_unavailable_must_not_both_be_zero() {
    let rollout = |surge: Value, unavailable: Value| {
        with("/spec/rollout", json!({ "maxSurge": surge, "maxUnavailable": unavailable }))
    };
    for (surge, unavailable) in [(json!(1), json!(0)), (json!(0), json!(1)), (json!("25%"), json!("0%"))] {
        check(rollout(surge, unavailable)).unwrap();
    }
    for (surge, unavailable) in
        [(json!(0), json!(0)), (json!("0%"), json!(0)), (json!(0), json!("0%")), (json!("0%"), json!("0%"))]
    {
        refused(rollout(surge, unavailable), "must not both be 0");
    }
}

#[test]
fn copies_of_experts_are_on_different_workers() {
    let experts = |copies: i32| with("/spec/experts", json!({ "minCopies": copies, "redundant": 4 }));
    check(experts(2)).unwrap();
    refused(experts(3), "experts.minCopies must be at most group.workers");
    let mut alone = good();
    alone["spec"]["group"] = json!({ "device": "CPU" });
    check(alone.clone()).unwrap();
    alone["spec"]["experts"] = json!({ "minCopies": 2 });
    refused(alone, "experts.minCopies must be at most group.workers");
}

#[test]
fn settings_of_experts_are_bounded_by_the_schema() {
    let group = json!({ "device": "CPU", "expertMemory": "64Gi", "fabric": { "rowFormat": "BF16" } });
    check(with("/spec/group", group)).unwrap();
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let field = |path: &str| spec.pointer(path).unwrap_or_else(|| panic!("no {path}"));
    let bounds =
        |path: &str| (field(path)["minimum"].as_f64().unwrap(), field(path)["maximum"].as_f64().unwrap());
    assert_eq!(bounds("/experts/properties/minCopies"), (1.0, 256.0));
    assert_eq!(bounds("/experts/properties/redundant"), (0.0, 4096.0));
    let rebalance = "/experts/properties/rebalance/properties";
    assert_eq!(bounds(&format!("{rebalance}/thresholdPercent")), (101.0, 10000.0));
    assert_eq!(bounds(&format!("{rebalance}/minIntervalSeconds")), (5.0, 86400.0));
    assert_eq!(field(&format!("{rebalance}/policy/enum")), &json!(["Off", "OnImbalance", "Manual"]));
    let pattern = field("/group/properties/expertMemory/pattern");
    assert_eq!(pattern, &json!("^[1-9][0-9]{0,17}(k|M|G|T|Ki|Mi|Gi|Ti)?$"));
    let format = field("/group/properties/fabric/properties/rowFormat/enum");
    assert_eq!(format, &json!(["F32", "BF16", "FP8"]));
}

#[test]
fn bounds_of_autoscaling_make_sense() {
    let autoscaling = |value: Value| with("/spec/autoscaling", value);
    check(autoscaling(json!({ "maxReplicas": 4 }))).unwrap();
    check(autoscaling(json!({ "minReplicas": 4, "maxReplicas": 4 }))).unwrap();
    refused(
        autoscaling(json!({ "minReplicas": 5, "maxReplicas": 4 })),
        "autoscaling.minReplicas must be at most",
    );
    check(autoscaling(json!({ "minReplicas": 0, "maxReplicas": 4, "idleSecondsToZero": 60 }))).unwrap();
    refused(
        autoscaling(json!({ "maxReplicas": 4, "idleSecondsToZero": 60 })),
        "needs autoscaling.minReplicas 0",
    );
}

#[test]
fn windows_of_the_schedule_have_bounds_that_make_sense() {
    let schedule = |windows: Value| {
        with("/spec/autoscaling", json!({ "minReplicas": 2, "maxReplicas": 4, "schedule": windows }))
    };
    let window = |min: Option<i32>, max: Option<i32>| {
        let mut window = json!({ "days": ["Monday"], "start": "07:30", "durationMinutes": 60, "timeZone": "Europe/Berlin" });
        min.into_iter().for_each(|min| window["minReplicas"] = json!(min));
        max.into_iter().for_each(|max| window["maxReplicas"] = json!(max));
        window
    };
    check(schedule(json!([window(Some(4), None), window(None, Some(2)), window(Some(8), Some(9))]))).unwrap();
    refused(schedule(json!([window(None, None)])), "must set minReplicas or maxReplicas");
    for (min, max) in [(Some(5), None), (None, Some(1)), (Some(9), Some(8))] {
        refused(
            schedule(json!([window(Some(3), None), window(min, max)])),
            "autoscaling.schedule: minReplicas must be at most",
        );
    }
}

#[test]
fn settings_of_autoscaling_are_bounded_by_the_schema() {
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let field = |path: &str| {
        spec.pointer(&format!("/autoscaling/properties/{path}")).unwrap_or_else(|| panic!("no {path}"))
    };
    assert_eq!(spec.pointer("/autoscaling/required"), Some(&json!(["maxReplicas"])));
    assert_eq!(field("minReplicas/default"), &json!(1));
    assert_eq!(field("mode/enum"), &json!(["Automatic", "Report"]));
    assert_eq!(field("duringRollout/enum"), &json!(["Continue", "Hold"]));
    assert_eq!(field("schedule/maxItems"), &json!(32));
    let window = "schedule/items/properties";
    assert_eq!(field(&format!("{window}/start/pattern")), &json!("^([01][0-9]|2[0-3]):[0-5][0-9]$"));
    let rules = "behavior/properties/scaleDown/properties";
    assert_eq!(field(&format!("{rules}/selectPolicy/enum")), &json!(["Max", "Min", "Disabled"]));
    assert_eq!(field(&format!("{rules}/policies/items/properties/type/enum")), &json!(["Groups", "Percent"]));
    assert_eq!(field(&format!("{rules}/policies/items/properties/periodSeconds/maximum")), &json!(1800.0));
}

#[test]
fn defaults_of_the_schema_are_those_of_the_types() {
    let deployment: ModelDeployment = serde_json::from_value(good()).unwrap();
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    assert_eq!(schema.pointer("/replicas/default"), Some(&json!(deployment.spec.replicas)));
    assert_eq!(
        schema.pointer("/rollout/default"),
        Some(&serde_json::to_value(&deployment.spec.rollout).unwrap())
    );
    let experts = serde_json::to_value(&deployment.spec.experts).unwrap();
    assert_eq!(schema.pointer("/experts/default"), Some(&experts));
    let documented = json!({ "minCopies": 1, "redundant": 0,
        "rebalance": { "policy": "OnImbalance", "thresholdPercent": 130, "minIntervalSeconds": 300 } });
    assert_eq!(experts, documented);
}

/// `kubectl explain` prints the descriptions: a field without one is not finished.
#[test]
fn every_field_is_documented() {
    fn walk(path: &str, schema: &Value, missing: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                missing.push(path.clone());
            }
            walk(&path, property, missing);
            walk(&path, &property["items"], missing);
        }
    }
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
    let mut missing = vec![];
    for part in ["spec", "status"] {
        walk(part, &schema["properties"][part], &mut missing);
    }
    assert!(missing.is_empty(), "fields without description: {missing:?}");
}

/// API conventions: no floats, and no formats that an API server does not know.
#[test]
fn schema_has_no_floats_and_no_unsigned_formats() {
    fn walk(path: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                assert_ne!(map.get("type"), Some(&json!("number")), "{path}");
                if let Some(format) = map.get("format").and_then(Value::as_str) {
                    assert!(["int32", "int64", "date-time"].contains(&format), "{path}: {format}");
                }
                map.iter().for_each(|(key, value)| walk(&format!("{path}/{key}"), value));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(path, value)),
            _ => {}
        }
    }
    walk("", &serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap());
}

fn rollout(value: Value) -> Value {
    with("/spec/rollout", value)
}

#[test]
fn parts_of_a_rollout_go_with_their_strategy() {
    let canary = json!({ "steps": [{ "weightPercent": 10 }] });
    check(rollout(json!({ "strategy": "Canary", "canary": canary, "analysis": {} }))).unwrap();
    check(rollout(json!({ "strategy": "Canary" }))).unwrap();
    check(rollout(json!({ "strategy": "BlueGreen", "blueGreen": {}, "analysis": {} }))).unwrap();
    refused(rollout(json!({ "canary": canary })), "canary goes with strategy Canary only");
    refused(
        rollout(json!({ "strategy": "BlueGreen", "canary": canary })),
        "canary goes with strategy Canary only",
    );
    refused(
        rollout(json!({ "strategy": "Canary", "blueGreen": {} })),
        "blueGreen goes with strategy BlueGreen only",
    );
    refused(rollout(json!({ "analysis": {} })), "it goes with strategy Canary or BlueGreen");
    refused(
        rollout(json!({ "strategy": "Canary", "partition": 1 })),
        "partition goes with strategy RollingUpdate only",
    );
    let no_surge = json!({ "strategy": "Canary", "maxSurge": "0%", "maxUnavailable": 1 });
    refused(rollout(no_surge), "a canary is a group more");
}

#[test]
fn shares_of_a_canary_grow() {
    let steps = |percents: &[i32]| {
        let steps: Vec<Value> = percents.iter().map(|percent| json!({ "weightPercent": percent })).collect();
        rollout(json!({ "strategy": "Canary", "canary": { "steps": steps } }))
    };
    check(steps(&[5, 25, 100])).unwrap();
    refused(steps(&[25, 5]), "weightPercent must grow from step to step");
    refused(steps(&[5, 5]), "weightPercent must grow from step to step");
}

#[test]
fn a_query_has_a_bound() {
    let query = |bounds: Value| {
        let mut query = json!({ "name": "Refunds", "address": "http://prometheus:9090", "query": "up" });
        query.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        rollout(json!({ "strategy": "Canary", "analysis": { "queries": [query] } }))
    };
    check(query(json!({ "max": "0.5" }))).unwrap();
    refused(query(json!({})), "min or max must be set");
}

/// A group on NPUs, with more fields.
fn ascend(group: Value) -> Value {
    let mut object = good();
    let mut whole =
        json!({ "workers": 2, "device": "Ascend", "devicesPerWorker": 16, "ascend": { "chip": "A3" } });
    whole.as_object_mut().unwrap().extend(group.as_object().unwrap().clone());
    object["spec"]["group"] = whole;
    object
}

#[test]
fn ascend_goes_with_its_device_and_nothing_else() {
    check(ascend(json!({}))).unwrap();
    check(ascend(json!({ "deviceResource": "huawei.com/ascend-1980" }))).unwrap();
    refused(ascend(json!({ "device": "CPU" })), "ascend goes with device Ascend");
    let mut without = ascend(json!({}));
    without["spec"]["group"].as_object_mut().unwrap().remove("ascend");
    refused(without, "device Ascend needs ascend.chip");
    let cpu = json!({ "device": "CPU", "deviceResource": "huawei.com/Ascend910" });
    refused(with("/spec/group", cpu), "deviceResource goes with device Ascend only");
    refused(with("/spec/deviceFaults", json!({})), "deviceFaults goes with group.device Ascend only");
    let mut faults = ascend(json!({}));
    faults["spec"]["deviceFaults"] = json!({ "separateNPU": "Drain", "subHealthFault": "Ignore" });
    check(faults).unwrap();
}

#[test]
fn what_npus_do_not_multiply_or_keep_is_refused() {
    for (chip, weights) in [("A2", "W4A8"), ("A3", "W4A8"), ("Ascend950PR", "W8A8"), ("Ascend950DT", "BF16")]
    {
        check(ascend(json!({ "ascend": { "chip": chip, "weights": weights } }))).unwrap();
    }
    let four = json!({ "ascend": { "chip": "Ascend950DT", "weights": "W4A8" } });
    refused(ascend(four), "ascend.weights W4A8 goes with A2 and A3 only");
    check(ascend(json!({ "cache": { "format": "BF16" } }))).unwrap();
    refused(
        ascend(json!({ "cache": { "format": "FP8" } })),
        "cache.format must be F32 or BF16 with device Ascend",
    );
    check(with("/spec/group", json!({ "device": "CPU", "cache": { "format": "FP8" } }))).unwrap();
}

#[test]
fn cards_of_two_devices_are_given_whole() {
    for devices in [1, 2, 8, 16] {
        check(ascend(json!({ "devicesPerWorker": devices }))).unwrap();
    }
    for devices in [3, 15] {
        refused(ascend(json!({ "devicesPerWorker": devices })), "must be 1 or even with ascend.chip A3");
        check(ascend(json!({ "devicesPerWorker": devices, "ascend": { "chip": "A2" } }))).unwrap();
    }
}

#[test]
fn devices_are_asked_for_in_one_way() {
    let claim = json!({ "chip": "A3", "resourceClaimTemplateName": "npus" });
    check(ascend(json!({ "ascend": claim }))).unwrap();
    refused(
        ascend(json!({ "ascend": claim, "deviceResource": "huawei.com/Ascend910" })),
        "exclude each other",
    );
    let mut volcano = claim;
    volcano["scheduling"] = json!({ "scheduler": "Volcano" });
    refused(ascend(json!({ "ascend": volcano })), "does not go with scheduler Volcano");
}

#[test]
fn settings_of_volcano_go_with_volcano() {
    let scheduling =
        |scheduling: Value| ascend(json!({ "ascend": { "chip": "A3", "scheduling": scheduling } }));
    check(scheduling(json!({}))).unwrap();
    check(scheduling(json!({ "scheduler": "Gang" }))).unwrap();
    refused(scheduling(json!({ "scheduler": "Gang", "queue": "q" })), "go with scheduler Volcano only");
    check(scheduling(json!({ "scheduler": "Volcano", "queue": "q", "policy": "chip2-node16-sp" }))).unwrap();
    for setting in
        [json!({ "queue": "q" }), json!({ "policy": "multilevel" }), json!({ "superPodDevices": 16 })]
    {
        refused(scheduling(setting), "go with scheduler Volcano only");
    }
    let on_950 =
        |scheduling: Value| ascend(json!({ "ascend": { "chip": "Ascend950DT", "scheduling": scheduling } }));
    check(on_950(json!({ "scheduler": "Volcano", "policy": "chip8-node8" }))).unwrap();
    refused(on_950(json!({ "scheduler": "Volcano" })), "policy must be set for 950");
    for devices in [16, 32] {
        check(scheduling(json!({ "scheduler": "Volcano", "superPodDevices": devices }))).unwrap();
    }
    for devices in [8, 24, 48, 64] {
        refused(
            scheduling(json!({ "scheduler": "Volcano", "superPodDevices": devices })),
            "superPodDevices must be a multiple of devicesPerWorker",
        );
    }
}

#[test]
fn settings_of_ascend_are_bounded_by_the_schema() {
    let crd = serde_json::to_value(<ModelDeployment as kube::CustomResourceExt>::crd()).unwrap();
    let spec = crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let field = |path: &str| spec.pointer(path).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(field("/group/properties/device/enum"), &json!(["CPU", "Ascend"]));
    let ascend = "/group/properties/ascend/properties";
    assert_eq!(field("/group/properties/ascend/required"), &json!(["chip"]));
    let chips = json!(["A2", "A3", "Ascend950PR", "Ascend950DT"]);
    assert_eq!(field(&format!("{ascend}/chip/enum")), &chips);
    assert_eq!(field(&format!("{ascend}/runtime/enum")), &json!(["Ascend", "Mounts"]));
    assert_eq!(field(&format!("{ascend}/network/enum")), &json!(["Pod", "Host"]));
    let scheduler = field(&format!("{ascend}/scheduling/properties/scheduler/enum"));
    assert_eq!(scheduler, &json!(["Default", "Gang", "Volcano"]));
    let levels = field("/deviceFaults/properties").as_object().unwrap();
    assert_eq!(levels.len(), 9);
    for (level, schema) in levels {
        assert_eq!(schema["enum"], json!(["Ignore", "Drain", "Replace"]), "{level}");
    }
    let pattern = field("/group/properties/deviceResource/pattern").as_str().unwrap();
    assert!(pattern.contains('/'), "an extended resource has a domain: {pattern}");
}
