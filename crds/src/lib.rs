//! API types of serving.belay.dev: spec, status, CEL rules, conditions and reasons, label keys.
#![forbid(unsafe_code)]
