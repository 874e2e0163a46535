//! From a request's grammar to one that can be followed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::pool::Pool;
use crate::request::{Grammar, SubmitError};
use crate::tokenizer::Tokenizer;

/// Bytes of a schema, a grammar and a regular expression, as text. A grammar holds the schemas of many tools.
const MAX_SCHEMA_BYTES: usize = 512 << 10;
const MAX_LARK_BYTES: usize = 1 << 20;
/// Rules call each other, and compiling a chain of them takes time as its square: some seconds for so many.
const MAX_LARK_LINES: usize = 8192;
const MAX_REGEX_BYTES: usize = 144 << 10;
/// Levels of lists and objects in a schema.
const MAX_DEPTH: usize = 128;
/// Fields of an object of a schema: compiling optional properties takes time as the square of their number, and with
/// more, a row of the parser is too long anyway.
const MAX_FIELDS: usize = 1024;
/// What llguidance's limits leave takes far less on a machine that is not overloaded.
const DEADLINE: Duration = Duration::from_secs(20);
/// When it is worth asking again if too many wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Grammars that wait to be compiled.
const MAX_WAITING: usize = 64;

/// Two, so that one client's monster does not hold up everybody.
static COMPILERS: LazyLock<Pool> = LazyLock::new(|| Pool::new("belay-grammar", 2, MAX_WAITING));

/// Compiles a grammar on a thread of its own kind, and waits for it.
///
/// # Errors
/// [`SubmitError::Invalid`] if it is no grammar, admits nothing, or is too large or too complex;
/// [`SubmitError::Overloaded`] if too many others are being compiled.
pub fn compile(grammar: &Grammar, tokenizer: &Arc<Tokenizer>) -> Result<Matcher, SubmitError> {
    let field = match grammar {
        Grammar::JsonObject | Grammar::JsonSchema(_) => "response_format",
        Grammar::Regex(_) => "regex",
        Grammar::Lark(_) => "grammar",
    };
    let invalid = |message: String| SubmitError::Invalid { field, message };
    let program = program(grammar).map_err(invalid)?;
    let tokenizer = tokenizer.clone();
    let has_started = Arc::new(AtomicBool::new(false));
    let starts = has_started.clone();
    let overloaded = || SubmitError::Overloaded { queued: MAX_WAITING, retry_after: RETRY_AFTER };
    let result = COMPILERS.run(move || {
        starts.store(true, Ordering::Relaxed);
        let vocabulary = tokenizer.vocabulary().map_err(|error| {
            SubmitError::Unavailable(format!("its tokenizer cannot be used with constraints: {error}"))
        })?;
        let invalid = |message| SubmitError::Invalid { field, message };
        let mut matcher = vocabulary.matcher(program).map_err(invalid)?;
        // The first mask shows whether anything can be said at all; the lexer keeps most of the work.
        matcher
            .compute_mask_or_eos()
            .map_err(|error| invalid(super::vocabulary::plain(&error.to_string())))?;
        Ok(matcher)
    });
    match result.ok_or_else(overloaded)?.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(error) if error.is_disconnected() => Err(invalid("cannot be compiled".into())),
        Err(_) if has_started.load(Ordering::Relaxed) => {
            Err(invalid(format!("takes longer than {} s to compile", DEADLINE.as_secs())))
        }
        Err(_) => Err(overloaded()),
    }
}

/// The grammar in llguidance's terms, if its size is within bounds.
fn program(grammar: &Grammar) -> Result<TopLevelGrammar, String> {
    match grammar {
        Grammar::JsonObject => {
            Ok(TopLevelGrammar::from_json_schema(bounded_schema(&json!({"type": "object"}))))
        }
        Grammar::JsonSchema(schema) => {
            check_shape(schema, MAX_DEPTH)?;
            check_size("the schema", schema.to_string().len(), MAX_SCHEMA_BYTES)?;
            Ok(TopLevelGrammar::from_json_schema(bounded_schema(schema)))
        }
        Grammar::Regex(regex) => {
            check_size("the expression", regex.len(), MAX_REGEX_BYTES)?;
            Ok(TopLevelGrammar::from_regex(regex))
        }
        Grammar::Lark(text) => {
            check_size("the grammar", text.len(), MAX_LARK_BYTES)?;
            let lines = text.lines().count();
            if lines > MAX_LARK_LINES {
                return Err(format!("the grammar has {lines} lines, at most {MAX_LARK_LINES} are taken"));
            }
            check_schemas_inside(text)?;
            Ok(TopLevelGrammar::from_lark(text.clone()))
        }
    }
}

fn check_size(what: &str, bytes: usize, most: usize) -> Result<(), String> {
    if bytes <= most { Ok(()) } else { Err(format!("{what} has {bytes} bytes, at most {most} are taken")) }
}

/// Whether no list or object of a schema is too deep, and no object has too many fields.
fn check_shape(value: &Value, levels: usize) -> Result<(), String> {
    let too_deep = || format!("the schema is nested more than {MAX_DEPTH} levels deep");
    match value {
        Value::Array(items) => {
            let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
            items.iter().try_for_each(|item| check_shape(item, levels))
        }
        Value::Object(fields) if fields.len() > MAX_FIELDS => Err(format!(
            "an object of the schema has {} fields, at most {MAX_FIELDS} are taken",
            fields.len()
        )),
        Value::Object(fields) => {
            let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
            fields.values().try_for_each(|field| check_shape(field, levels))
        }
        _ => Ok(()),
    }
}

/// The same of the schemas inside a grammar. Text that only looks like one does no harm.
fn check_schemas_inside(grammar: &str) -> Result<(), String> {
    const KEYWORD: &str = "%json";
    let mut rest = grammar;
    while let Some(start) = rest.find(KEYWORD) {
        rest = &rest[start + KEYWORD.len()..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        if let Some(Ok(schema)) = values.next() {
            check_shape(&schema, MAX_DEPTH)?;
            rest = &rest[values.byte_offset()..];
        }
    }
    Ok(())
}

/// The schema with what llguidance is to know beside it (`x-guidance`; a client's own is dropped): between two tokens of
/// JSON there may be one space, or one line break with an indentation. So a model that likes spaces best cannot go on
/// with them for ever.
///
/// For schemas inside a Lark grammar (`%json {…}`) as well.
#[must_use]
pub fn bounded_schema(schema: &Value) -> Value {
    let options = json!({"whitespace_pattern": r" |\r?\n[ \t]{0,32}"});
    let mut schema = if *schema == Value::Bool(true) { json!({}) } else { schema.clone() };
    if let Value::Object(fields) = &mut schema {
        fields.insert("x-guidance".into(), options);
    }
    schema
}
