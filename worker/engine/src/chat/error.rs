/// A conversation that has no prompt. Every message begins with the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// There is nothing to answer.
    #[error("messages: must not be empty")]
    Empty,
    /// The role is not one of the format's.
    #[error(
        "messages[{index}].role: {role:?} is unknown; expected system, developer, user, assistant, tool or latest_reminder"
    )]
    UnknownRole {
        /// Position in the list.
        index: usize,
        /// What was found.
        role: String,
    },
    /// The last message leaves nothing for the model to say.
    #[error(
        "messages[{index}].role: the last message is the assistant's and not marked as a prefix to go on with"
    )]
    AlreadyAnswered {
        /// Position in the list.
        index: usize,
    },
    /// The format has no cue for a reply after this.
    #[error("messages: the last message must come from user, developer, tool or system, found {role}")]
    NoCue {
        /// Role of the last message.
        role: String,
    },
    /// `prefix` on a message that is not the assistant's last one.
    #[error("messages[{index}].prefix: only the last message, by the assistant, can be a prefix")]
    MisplacedPrefix {
        /// Position in the list.
        index: usize,
    },
    /// A field of a message that only other roles have.
    #[error("messages[{index}].{field}: only {roles} messages can have it")]
    Misplaced {
        /// Position in the list.
        index: usize,
        /// Name of the field.
        field: &'static str,
        /// Who can have it.
        roles: &'static str,
    },
    /// A tool that is not a function with a name.
    #[error("{place}[{index}].{message}")]
    Tool {
        /// `tools`, or those of a message.
        place: String,
        /// Position in the list.
        index: usize,
        /// The field within, and what is wrong.
        message: &'static str,
    },
    /// `tool_choice` names a tool that is not there.
    #[error("tool_choice: {name:?} is not one of the tools")]
    UnknownTool {
        /// What was asked for.
        name: String,
    },
    /// `tool_choice` asks for a call, and there are no tools.
    #[error("tool_choice: there are no tools to call")]
    NoTools,
    /// A field of an OpenAI request is not of its form.
    #[error("{field}: {message}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
}
