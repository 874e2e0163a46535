//! The fixed texts of the format, to the letter: the model was trained on them.
//!
//! They are constants of DeepSeek's `encoding/encoding_dsv4.py` (MIT licence), published with the checkpoints:
//! `deepseek-ai/DeepSeek-V4-Flash` for April, `deepseek-ai/DeepSeek-V4-Flash-0731` for July.

use super::{Effort, Encoding};

pub const BOS: &str = "<｜begin▁of▁sentence｜>";
pub const EOS: &str = "<｜end▁of▁sentence｜>";
pub const USER: &str = "<｜User｜>";
pub const ASSISTANT: &str = "<｜Assistant｜>";
pub const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
pub const THINK: &str = "<think>";
pub const THINK_END: &str = "</think>";

/// In every tag of calls, and one token of the vocabulary.
pub const MARKER: &str = "｜DSML｜";
pub const CALLS: &str = "<｜DSML｜tool_calls>";
pub const CALLS_END: &str = "</｜DSML｜tool_calls>";
pub const INVOKE: &str = "<｜DSML｜invoke name=\"";
/// Closes a call; as a stop string it ends a reply behind its first one.
pub const INVOKE_END: &str = "</｜DSML｜invoke>";
pub const PARAMETER: &str = "<｜DSML｜parameter name=\"";
pub const PARAMETER_END: &str = "</｜DSML｜parameter>";

pub const RESPONSE_FORMAT: &str =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";
/// Before the tools' schemas, one a line.
pub const TOOLS_HEAD: &str = include_str!("tools_head.txt");
/// After them.
pub const TOOLS_TAIL: &str = include_str!("tools_tail.txt");

const EFFORT_ABSOLUTE: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n\
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n\
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

const EFFORT_BEYOND: &str = "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n\
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than any surface symptom.\n\
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no assumption remains unchecked and no error remains undiscovered.\n\n";

/// What stands in front of a conversation with thinking.
pub fn effort(encoding: Encoding, effort: Effort) -> &'static str {
    match (encoding, effort) {
        (Encoding::April, Effort::Low | Effort::High) | (Encoding::July, Effort::Low) => "",
        (Encoding::April, Effort::Max) | (Encoding::July, Effort::High) => EFFORT_ABSOLUTE,
        (Encoding::July, Effort::Max) => EFFORT_BEYOND,
    }
}
