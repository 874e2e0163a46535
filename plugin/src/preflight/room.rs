//! What nodes have left, and which pods they take: pure, by the rules of the scheduler.
use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use kube::ResourceExt as _;

use super::demand::{self, Amounts, BadQuantity, add, amounts, take};

/// Taint that stands for a cordon.
const CORDON: &str = "node.kubernetes.io/unschedulable";

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Room {
    /// Its name.
    pub node: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints that keep pods away; a cordon is one of them.
    pub taints: Vec<Taint>,
    /// What it can give to pods altogether.
    pub allocatable: Amounts,
    /// What its pods have asked for.
    pub used: Amounts,
}

/// Why a node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// It is cordoned.
    Cordoned,
    /// It lacks labels that the pod selects.
    Labels,
    /// It has a taint that the pod does not tolerate.
    Taint(String),
    /// Too little of a resource is left.
    Insufficient(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("cordoned"),
            Self::Labels => f.write_str("without the labels of nodeSelector or affinity"),
            Self::Taint(taint) => write!(f, "with the taint {taint}, which is not tolerated"),
            Self::Insufficient(resource) if resource == "pods" => f.write_str("full of pods"),
            Self::Insufficient(resource) => write!(f, "with too little {resource}"),
        }
    }
}

impl Room {
    /// Of a node and all pods of the cluster.
    ///
    /// # Errors
    /// If a quantity is none.
    pub fn of(node: &Node, pods: &[Pod]) -> Result<Self, BadQuantity> {
        let name = node.name_any();
        let status = node.status.as_ref();
        let spec = node.spec.as_ref();
        let mut used = Amounts::new();
        for pod in pods.iter().filter(|pod| is_on(pod, &name)) {
            add(&mut used, &demand::of_pod(pod)?);
        }
        let repels = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
        let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let mut taints: Vec<Taint> = taints.iter().filter(repels).cloned().collect();
        let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        if cordoned && !taints.iter().any(|taint| taint.key == CORDON) {
            taints.insert(
                0,
                Taint { key: CORDON.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() },
            );
        }
        Ok(Self {
            labels: node.labels().clone(),
            taints,
            allocatable: amounts(status.and_then(|status| status.allocatable.as_ref()))?,
            used,
            node: name,
        })
    }

    /// What is left; below zero where more is used than there is.
    pub fn free(&self) -> Amounts {
        let mut free = self.allocatable.clone();
        take(&mut free, &self.used);
        free
    }

    /// What keeps a pod that asks for so much from it.
    pub fn obstacles(&self, pod: &Pod, asked: &Amounts) -> Vec<Obstacle> {
        let mut obstacles = self.rules(pod);
        let free = self.free();
        let short = asked.iter().filter(|(resource, amount)| {
            **amount > 0 && free.get(*resource).copied().unwrap_or(0) < **amount
        });
        obstacles.extend(short.map(|(resource, _)| Obstacle::Insufficient(resource.clone())));
        obstacles
    }

    /// The same without regard to how much is left.
    fn rules(&self, pod: &Pod) -> Vec<Obstacle> {
        let Some(spec) = pod.spec.as_ref() else { return vec![] };
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let mut obstacles = vec![];
        let selected = spec
            .node_selector
            .iter()
            .flatten()
            .all(|(key, value)| self.labels.get(key).is_some_and(|label| label == value));
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let wanted = required
            .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| self.matches(term)));
        if !(selected && wanted) {
            obstacles.push(Obstacle::Labels);
        }
        let untolerated = |taint: &&Taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint));
        obstacles.extend(self.taints.iter().filter(untolerated).map(|taint| match taint.key.as_str() {
            CORDON => Obstacle::Cordoned,
            key => Obstacle::Taint(match &taint.value {
                Some(value) => format!("{key}={value}"),
                None => key.to_owned(),
            }),
        }));
        obstacles
    }

    /// A term without anything to match matches nothing.
    fn matches(&self, term: &NodeSelectorTerm) -> bool {
        let labels = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let name = |key: &str| (key == "metadata.name").then_some(self.node.as_str());
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(|rule| fulfils(rule, self.labels.get(&rule.key).map(String::as_str)))
            && fields.iter().all(|rule| fulfils(rule, name(&rule.key)))
    }

    /// Gives it a pod.
    pub fn put(&mut self, asked: &Amounts) {
        add(&mut self.used, asked);
    }

    /// Takes a pod from it.
    pub fn clear(&mut self, asked: &Amounts) {
        take(&mut self.used, asked);
    }
}

/// Whether a pod holds what it asked for of this node.
fn is_on(pod: &Pod, node: &str) -> bool {
    let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    here && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn fulfils(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let ordered = |order: fn(&i64, &i64) -> bool| {
        let wanted = number(values.first().map(String::as_str));
        number(value).zip(wanted).is_some_and(|(value, wanted)| order(&value, &wanted))
    };
    match rule.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => ordered(i64::gt),
        "Lt" => ordered(i64::lt),
        // of a later version: nobody knows what it means, so nothing is promised
        _ => false,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().filter(|effect| !effect.is_empty());
    if effect.is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    let value = |text: &Option<String>| text.clone().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        "Equal" => key == taint.key && value(&toleration.value) == value(&taint.value),
        _ => false,
    }
}
