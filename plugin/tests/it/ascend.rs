//! `kubectl belay plan` on nodes with NPUs: the examples, and what is not promised.
use belay_proto::admin::ModelCard;
use kube::ResourceExt as _;
use kubectl_belay::preflight::{
    documents,
    report::{ChangeKind, Verdict},
};
use serde_json::{Value, json};

use crate::preflight::{Case, card, plain};

/// An example and the nodes that it is meant for, as files.
fn example(name: &str, nodes: &str) -> Case {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let text = read(format!("{root}/../examples/ascend/{name}.yaml"));
    let (documents, others) = documents::read(&text, name).unwrap();
    assert_eq!((documents.len(), others.len()), (1, 0));
    let inventory = read(format!("{root}/tests/fixtures/ascend/{nodes}.yaml"));
    let mut inventory: Value = serde_saphyr::from_str(&inventory).unwrap();
    let nodes = serde_json::from_value(inventory["items"].take()).unwrap();
    Case { present: None, groups: 0, wanted: documents[0]["spec"].clone(), nodes, on: vec![], card: None }
}

#[test]
fn examples_for_npus_fit_the_nodes_that_they_name_and_no_fewer() {
    for (name, nodes, workers, devices) in [
        ("flash-a2", "a2", 1, 8),
        ("flash-a3", "a3", 1, 16),
        ("pro-w4a8-a2", "a2", 4, 32),
        ("pro-w4a8-a3", "a3", 2, 32),
        ("flash-950", "950", 1, 8),
    ] {
        let mut case = example(name, nodes);
        let report = case.judged();
        assert_eq!(
            (report.verdict, report.change.kind),
            (Verdict::Fits, ChangeKind::Creation),
            "{}",
            plain(&report)
        );
        let resource = if nodes == "950" { "huawei.com/npu" } else { "huawei.com/Ascend910" };
        assert_eq!(report.demand.group[resource], devices, "{name}");
        assert_eq!(report.course.unwrap().rounds[0].placed.len(), workers, "{name}");

        // as many NPU nodes as workers, less one
        case.nodes.truncate(workers);
        let report = case.judged();
        assert_eq!(report.verdict, Verdict::DoesNotFit, "{name}");
        let reason = &report.reasons[0];
        assert!(reason.contains("without the labels"), "{reason}");
        assert!(workers == 1 || reason.contains(&format!("too little {resource}")), "{reason}");

        // a device that is unhealthy is not allocatable any more
        let mut case = example(name, nodes);
        for node in case.nodes.iter_mut().filter(|node| node.labels().contains_key("accelerator")) {
            let allocatable = node.status.as_mut().unwrap().allocatable.as_mut().unwrap();
            allocatable.get_mut(resource).unwrap().0 = "7".into();
        }
        let report = case.judged();
        assert!(report.reasons[0].contains("at most 7 free"), "{:?}", report.reasons);
    }
}

#[test]
fn what_the_scheduler_of_npus_decides_is_not_promised() {
    let judged = |ascend: Value| {
        let mut case = example("pro-w4a8-a3", "a3");
        case.wanted["group"]["ascend"] = ascend;
        case.judged()
    };
    let claim = judged(json!({"chip": "A3", "resourceClaimTemplateName": "npus"}));
    assert_eq!(claim.verdict, Verdict::Unknown);
    assert!(claim.reasons[0].contains("ResourceClaimTemplate npus"), "{:?}", claim.reasons);
    let superpod = judged(json!({"chip": "A3", "scheduling": {"scheduler": "Volcano"}}));
    assert_eq!(superpod.verdict, Verdict::Unknown);
    assert!(superpod.reasons[0].contains("32 devices in one superpod"), "{:?}", superpod.reasons);
}

/// The limit of the container is the host's memory: weights are not there.
#[test]
fn memory_of_npus_is_not_that_of_the_container() {
    let mut case = example("flash-a2", "a2");
    case.present = Some(case.wanted.clone());
    (case.groups, case.on) = (1, vec!["a2-0"]);
    case.card = Some(ModelCard { expert_bytes: 8 << 30, ..card() });
    case.wanted["group"]["template"]["resources"]["limits"]["memory"] = "512Gi".into();
    let report = case.judged();
    let memory = report.memory.as_ref().unwrap();
    assert!(memory.total_bytes > 512 << 30);
    assert_eq!((memory.limit_bytes, &memory.problem), (None, &None));
    case.wanted["group"]["expertMemory"] = "64Gi".into();
    let report = case.judged();
    assert!(report.memory.unwrap().problem.unwrap().fatal, "what the spec itself allows counts");
}
