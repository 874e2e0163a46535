//! What the schemas of the callable tools say about their parameters.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

/// The callable tools by name.
#[derive(Clone, Debug, Default)]
pub struct Tools(HashMap<String, HashSet<String>>);

impl Tools {
    /// Of OpenAI tool objects; those without a name are left out.
    pub fn of(tools: &[&Value]) -> Self {
        let named = tools.iter().filter_map(|tool| {
            let function = tool.get("function")?;
            let names = properties(function).into_iter().flat_map(Map::keys).cloned().collect();
            Some((function.get("name")?.as_str()?.to_owned(), names))
        });
        Self(named.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Names of a tool's parameters; `None` if the tool is unknown or its schema names none.
    pub fn parameters(&self, name: &str) -> Option<&HashSet<String>> {
        self.0.get(name).filter(|names| !names.is_empty())
    }
}

/// Properties of a function's parameters.
pub fn properties(function: &Value) -> Option<&Map<String, Value>> {
    function.pointer("/parameters/properties")?.as_object()
}
