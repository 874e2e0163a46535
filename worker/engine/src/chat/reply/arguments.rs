//! The JSON text of a call's arguments, written as the parameters come.

use std::collections::{HashMap, HashSet};

use serde::de::IgnoredAny;

use super::events::{Events, ReplyEvent};

/// Names under which models send all arguments in one.
const WRAPPERS: [&str; 2] = ["arguments", "input"];

/// Arguments of one call.
#[derive(Debug)]
pub struct Arguments {
    /// Which call.
    index: usize,
    /// What the schema knows, if it is known.
    known: Option<HashSet<String>>,
    /// Whether a parameter is out.
    has_any: bool,
    /// The parameter whose value is open, or a wrapper that waits for whether others follow.
    parameter: Option<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    is_string: bool,
    /// It may be a wrapper: nothing of it is out.
    may_wrap: bool,
    /// What is not out yet: JSON is not before it is whole.
    text: String,
}

impl Arguments {
    pub fn new(index: usize, known: Option<HashSet<String>>) -> Self {
        Self { index, known, has_any: false, parameter: None }
    }

    /// Begins a parameter.
    pub fn begin(&mut self, name: &str, is_string: bool, events: &mut Events) {
        if let Some(wrapper) = self.parameter.take() {
            self.write(&wrapper, events);
        }
        let is_unknown = self.known.as_ref().is_some_and(|known| !known.contains(name));
        let may_wrap = !self.has_any && is_unknown && WRAPPERS.contains(&name);
        let parameter = Parameter { name: name.into(), is_string, may_wrap, text: String::new() };
        if !may_wrap {
            self.write_name(name, events);
            if is_string {
                events.arguments(self.index, "\"");
            }
        }
        self.parameter = Some(parameter);
    }

    /// More text of the value. Strings go on at once.
    pub fn value(&mut self, text: &str, events: &mut Events) {
        match &mut self.parameter {
            Some(parameter) if parameter.is_string && !parameter.may_wrap => {
                events.arguments(self.index, &escaped(text));
            }
            Some(parameter) => parameter.text.push_str(text),
            None => {}
        }
    }

    /// The value is complete.
    pub fn end_value(&mut self, events: &mut Events) {
        match self.parameter.take() {
            Some(parameter) if parameter.may_wrap => self.parameter = Some(parameter),
            Some(parameter) if parameter.is_string => events.arguments(self.index, "\""),
            Some(parameter) => events.arguments(self.index, &json_or_text(&parameter.text)),
            None => {}
        }
    }

    /// The call is complete, with an open value if the model left out its closing tag.
    pub fn end(mut self, events: &mut Events) {
        self.end_value(events);
        match self.parameter.take() {
            Some(wrapper) => match self.unwrapped(&wrapper) {
                Some(arguments) => events.arguments(self.index, &arguments),
                None => {
                    self.write(&wrapper, events);
                    events.arguments(self.index, "}");
                }
            },
            None if self.has_any => events.arguments(self.index, "}"),
            None => events.arguments(self.index, "{}"),
        }
        events.push(ReplyEvent::ToolCallEnd { index: self.index });
    }

    /// The reply was cut within the call.
    pub fn cut(mut self, events: &mut Events) {
        let Some(parameter) = self.parameter.take() else { return };
        if parameter.may_wrap {
            self.write_name(&parameter.name, events);
            events.arguments(self.index, if parameter.is_string { "\"" } else { "" });
        }
        let text = if parameter.is_string { escaped(&parameter.text) } else { parameter.text };
        events.arguments(self.index, &text);
    }

    /// Writes a wrapper that turned out to be a parameter like any other.
    fn write(&mut self, parameter: &Parameter, events: &mut Events) {
        self.write_name(&parameter.name, events);
        let text = &parameter.text;
        let value = if parameter.is_string { quoted(text) } else { json_or_text(text) };
        events.arguments(self.index, &value);
    }

    fn write_name(&mut self, name: &str, events: &mut Events) {
        let opening = if std::mem::replace(&mut self.has_any, true) { ", " } else { "{" };
        events.arguments(self.index, &format!("{opening}{}: ", quoted(name)));
    }

    /// The object in a wrapper, if all its keys are parameters of the tool.
    fn unwrapped(&self, wrapper: &Parameter) -> Option<String> {
        let text = match serde_json::from_str::<String>(&wrapper.text) {
            Ok(text) if !wrapper.is_string => text,
            _ => wrapper.text.clone(),
        };
        let keys: HashMap<String, IgnoredAny> = serde_json::from_str(&text).ok()?;
        let known = self.known.as_ref()?;
        keys.keys().all(|key| known.contains(key)).then(|| text.trim().to_owned())
    }
}

/// JSON as it stands, anything else as a string.
fn json_or_text(text: &str) -> String {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => text.trim().to_owned(),
        Err(_) => quoted(text),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// A part of a JSON string. Each character is written for itself, so parts can be joined.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
