//! The documents of a file, and how they are asked for without being stored: pure.
use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// Annotation that `kubectl apply` keeps what it applied in.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

const API_VERSION: &str = "serving.belay.dev/v1alpha1";
const KIND: &str = "ModelDeployment";

/// Fields that only the API server sets.
const OF_THE_SERVER: [&str; 5] =
    ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"];

/// The ModelDeployments of a YAML or JSON text, and what else is in it, as `kind name`.
///
/// # Errors
/// If it can't be read, or has none.
pub fn read(text: &str, file: &str) -> Result<(Vec<Value>, Vec<String>)> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| file.to_owned())?;
    let mut items = vec![];
    for document in documents {
        match document.get("items").and_then(Value::as_array) {
            Some(list) if document["kind"] == "List" => items.extend(list.iter().cloned()),
            _ if document.is_null() => (),
            _ => items.push(document),
        }
    }
    let is_ours = |document: &Value| {
        let version = document["apiVersion"].as_str().unwrap_or_default();
        document["kind"] == KIND && version.starts_with("serving.belay.dev/")
    };
    let (ours, others): (Vec<Value>, Vec<Value>) = items.into_iter().partition(is_ours);
    let others: Vec<String> = others
        .iter()
        .map(|other| {
            let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            format!("{} {}", word(&other["kind"]), word(&other["metadata"]["name"]))
        })
        .collect();
    if ours.is_empty() {
        bail!("{file}: there is no ModelDeployment in it");
    }
    for document in &ours {
        if document["apiVersion"] != API_VERSION {
            bail!("{file}: apiVersion {}: this program knows {API_VERSION}", document["apiVersion"]);
        }
        if document["metadata"]["name"].as_str().is_none_or(str::is_empty) {
            bail!("{file}: a ModelDeployment without metadata.name");
        }
    }
    Ok((ours, others))
}

/// What a document asks for, without what only the server sets.
pub fn clean(mut document: Value, namespace: &str) -> Value {
    if let Some(fields) = document.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !OF_THE_SERVER.contains(&key.as_str()));
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    document
}

/// The patch that `kubectl apply` makes on the client: what is asked for, and nulls for what was applied last and is not asked
/// for any more.
pub fn merge_patch(last: &Value, wanted: &Value) -> Value {
    let (Some(before), Some(now)) = (last.as_object(), wanted.as_object()) else { return wanted.clone() };
    let mut patch = Map::new();
    for (key, value) in now {
        patch.insert(key.clone(), merge_patch(before.get(key).unwrap_or(&Value::Null), value));
    }
    for key in before.keys().filter(|key| !now.contains_key(*key)) {
        // these were never the file's to decide
        if !matches!(key.as_str(), "status" | "creationTimestamp") {
            patch.insert(key.clone(), json!(null));
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_a_file() {
        let text = "apiVersion: serving.belay.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: a}\n---\n\
                    apiVersion: v1\nkind: Service\nmetadata: {name: b}\n---\n";
        let (ours, others) = read(text, "f.yaml").unwrap();
        assert_eq!((ours.len(), others.as_slice()), (1, &["Service b".to_owned()][..]));
        let list = json!({"kind": "List", "apiVersion": "v1", "items": ours}).to_string();
        assert_eq!(read(&list, "-").unwrap().0.len(), 1, "JSON, and a list");
        for (text, why) in [
            ("kind: Service", "there is no ModelDeployment in it"),
            ("kind: ModelDeployment\napiVersion: serving.belay.dev/v2\nmetadata: {name: a}", "v2"),
            ("kind: ModelDeployment\napiVersion: serving.belay.dev/v1alpha1", "without metadata.name"),
            ("a: [", "f.yaml"),
        ] {
            let error = format!("{:#}", read(text, "f.yaml").unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_not_asked_for_any_more_is_taken_away() {
        let last = json!({"spec": {"replicas": 1, "group": {"workers": 2, "template": {"image": "a"}}}});
        let wanted = json!({"spec": {"replicas": 2, "group": {"workers": 2}}});
        assert_eq!(
            merge_patch(&last, &wanted),
            json!({"spec": {"replicas": 2, "group": {"workers": 2, "template": null}}})
        );
    }

    #[test]
    fn what_only_the_server_sets_is_not_asked_for() {
        let exported =
            json!({"metadata": {"name": "a", "uid": "1", "managedFields": []}, "status": {}, "spec": {}});
        assert_eq!(
            clean(exported, "models"),
            json!({"metadata": {"name": "a", "namespace": "models"}, "spec": {}})
        );
    }
}
