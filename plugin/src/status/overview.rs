//! One line for each deployment.
use jiff::Timestamp;
use serde::Serialize;

use super::{grow::conditions, tree::ConditionView};
use crate::{
    cluster::Deployment,
    picture::units::seconds,
    terminal::line::{Line, Style},
};

/// A deployment in short. Field names are those of `-o json`: they stay.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Groups that are wanted.
    pub desired: i64,
    /// Groups that are complete.
    pub ready: i64,
    /// Groups of the newest revision.
    pub updated: i64,
    /// The newest revision.
    pub revision: String,
    /// What is wrong, else what goes on: `Type=Status Reason`.
    pub state: String,
    /// Whether something is wrong.
    pub trouble: bool,
    /// Seconds since it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
}

impl Overview {
    /// Of a deployment.
    pub fn of(deployment: &Deployment, now: Timestamp) -> Self {
        let conditions = conditions(deployment);
        let order = ["Degraded", "Available", "ExpertsCovered"];
        let rank = |condition: &&ConditionView| order.iter().position(|kind| *kind == condition.kind);
        let trouble = conditions.iter().filter(|condition| condition.is_trouble()).min_by_key(rank);
        let moving = conditions.iter().find(|condition| condition.kind == "Progressing");
        let state = match (trouble, moving) {
            (Some(trouble), _) => format!("{}={} {}", trouble.kind, trouble.status, trouble.reason),
            (None, Some(moving)) => moving.reason.clone(),
            (None, None) => "not seen by the operator yet".to_owned(),
        };
        let age = deployment.created.map(|created| now.as_second() - created.as_second());
        Self {
            namespace: deployment.namespace.clone(),
            name: deployment.name.clone(),
            desired: deployment.number("/spec/replicas").unwrap_or(1),
            ready: deployment.number("/status/readyReplicas").unwrap_or(0),
            updated: deployment.number("/status/updatedReplicas").unwrap_or(0),
            revision: deployment.word("/status/updatedRevision").to_owned(),
            state,
            trouble: trouble.is_some(),
            age_seconds: age.and_then(|age| u64::try_from(age).ok()),
        }
    }
}

/// A table, with the namespace where several are looked at.
pub fn render(list: &[Overview], everywhere: bool, width: usize) -> Vec<Line> {
    let longest = |head: &str, of: fn(&Overview) -> &str| {
        list.iter().map(|one| of(one).chars().count()).max().unwrap_or(0).max(head.len())
    };
    let (spaces, names) = (longest("NAMESPACE", |one| &one.namespace), longest("NAME", |one| &one.name));
    let row = |namespace: &str, name: &str, rest: [&str; 4], state: &str, style: Style| {
        let mut text = String::new();
        if everywhere {
            text += &format!("{namespace:<spaces$}  ");
        }
        let [ready, updated, revision, age] = rest;
        text += &format!("{name:<names$}  {ready:<7}{updated:<9}{revision:<10}{age:<12}");
        Line::default().with(text, Style::PLAIN).with(state, style)
    };
    let head = row("NAMESPACE", "NAME", ["READY", "UPDATED", "REVISION", "AGE"], "STATE", Style::PLAIN);
    let rows = list.iter().map(|one| {
        let Overview { ready, desired, updated, .. } = one;
        let style = match (one.trouble, one.ready >= one.desired) {
            (true, _) => Style::BAD,
            (false, true) => Style::GOOD,
            (false, false) => Style::NOTE,
        };
        let age = one.age_seconds.map_or_else(String::new, seconds);
        let rest = [&*format!("{ready}/{desired}"), &*updated.to_string(), &*one.revision, &*age];
        row(&one.namespace, &one.name, rest, &one.state, style)
    });
    std::iter::once(head).chain(rows).map(|line| line.clipped(width)).collect()
}
