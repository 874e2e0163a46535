//! What a changed spec changes: pure.
use serde::Serialize;
use serde_json::Value;

/// Parts of the spec that reach pods: a change of them makes a new revision.
const REACHES_PODS: [&str; 2] = ["spec.model", "spec.group"];

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Its path, as `spec.group.workers`.
    pub field: String,
    /// What it was; null if it was not set.
    pub old: Value,
    /// What it is to be; null if it is not set any more.
    pub new: Value,
    /// Whether it reaches pods, so that groups are replaced.
    pub reaches_pods: bool,
}

/// The fields in which two specs differ, by path.
pub fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found = vec![];
    walk("spec".to_owned(), old, new, &mut found);
    found
}

fn walk(field: String, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    if old == new {
        return;
    }
    if let (Some(old), Some(new)) = (members(old), members(new)) {
        let keys = old.iter().map(|(key, _)| key).chain(new.iter().map(|(key, _)| key));
        let mut keys: Vec<&String> = keys.collect();
        keys.sort();
        keys.dedup();
        let of = |list: &[(String, Value)], wanted: &str| {
            list.iter().find(|(key, _)| key == wanted).map_or(Value::Null, |(_, value)| value.clone())
        };
        for key in keys {
            walk(format!("{field}{key}"), &of(&old, key), &of(&new, key), found);
        }
        return;
    }
    let within =
        |part: &str| field.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let reaches_pods = REACHES_PODS.into_iter().any(within);
    found.push(Difference { field, old: old.clone(), new: new.clone(), reaches_pods });
}

/// Members of an object, or of a list whose members have names, each with how a path goes on to it. What is not set
/// counts as empty beside something that has members.
fn members(value: &Value) -> Option<Vec<(String, Value)>> {
    match value {
        Value::Object(fields) => {
            Some(fields.iter().map(|(key, value)| (format!(".{key}"), value.clone())).collect())
        }
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| {
                let name = item.get("name").and_then(Value::as_str)?;
                Some((format!("[{name}]"), item.clone()))
            })
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_by_their_paths() {
        let old = json!({
            "replicas": 2, "rollout": {"maxSurge": 1},
            "group": {"workers": 2, "template": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}},
        });
        let new = json!({
            "replicas": 3, "rollout": {"maxSurge": 1},
            "group": {"workers": 2, "template": {
                "image": "worker:2", "env": [{"name": "B", "value": "3"}, {"name": "A", "value": "1"}],
            }},
        });
        let told: Vec<_> =
            differences(&old, &new).into_iter().map(|d| (d.field, d.old, d.new, d.reaches_pods)).collect();
        assert_eq!(
            told,
            [
                ("spec.group.template.env[B].value".to_owned(), json!("2"), json!("3"), true),
                ("spec.group.template.image".to_owned(), Value::Null, json!("worker:2"), true),
                ("spec.replicas".to_owned(), json!(2), json!(3), false),
            ]
        );
        assert!(differences(&new, &new).is_empty());
    }

    #[test]
    fn what_comes_or_goes_whole_is_told_whole() {
        let (none, some) = (json!({"group": {}}), json!({"group": {"cache": {"memory": "8Gi"}}}));
        let told = differences(&none, &some);
        assert_eq!((told[0].field.as_str(), &told[0].new), ("spec.group.cache", &json!({"memory": "8Gi"})));
        assert_eq!(differences(&some, &none)[0].new, Value::Null);
    }
}
