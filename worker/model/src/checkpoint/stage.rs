//! Which draft stage a checkpoint has, and whether it is used.

use std::str::FromStr;

use super::{Checkpoint, CheckpointError, layout};

/// The tensor by which a classic stage is known.
const ENTRY: &str = "mtp.0.e_proj.weight";
/// Parts that only DSpark, the three-stage drafter of later releases, has.
const DSPARK_PARTS: [&str; 3] = [".main_proj.", ".markov_head.", ".confidence_head."];

/// How many tokens the classic MTP stage may guess ahead of the confirmed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drafting(Wish);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Tokens(usize),
    Auto,
}

/// A text that is no [`Drafting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 0 to {} or auto", Drafting::MOST)]
pub struct DraftingError;

impl Drafting {
    /// Most tokens. The one stage was trained to guess one; each further one is right less often.
    pub const MOST: usize = 3;
    /// The stage's tensors are skipped.
    pub const OFF: Self = Self(Wish::Tokens(0));
    /// One token if the checkpoint has a classic stage, else [`Self::OFF`].
    pub const AUTO: Self = Self(Wish::Auto);

    /// So many tokens; 0 is [`Self::OFF`].
    ///
    /// # Errors
    /// More than [`Self::MOST`].
    pub fn tokens(count: usize) -> Result<Self, DraftingError> {
        if count > Self::MOST {
            return Err(DraftingError);
        }
        Ok(Self(Wish::Tokens(count)))
    }
}

/// `auto` or a number.
impl FromStr for Drafting {
    type Err = DraftingError;

    fn from_str(text: &str) -> Result<Self, DraftingError> {
        if text == "auto" {
            return Ok(Self::AUTO);
        }
        Self::tokens(text.parse().map_err(|_| DraftingError)?)
    }
}

/// What a checkpoint holds under `mtp.`.
enum Stage<'a> {
    None,
    Classic,
    /// A tensor that gives it away.
    Dspark(&'a str),
}

impl Checkpoint {
    /// The number of draft tokens that `drafting` comes to.
    pub(super) fn draft_tokens(&self, drafting: Drafting) -> Result<usize, CheckpointError> {
        let stage = self.stage();
        let name = match stage {
            Stage::None => "none",
            Stage::Classic => "classic",
            Stage::Dspark(_) => "DSpark",
        };
        let refuse = |tensor: &str, problem, asked| {
            let (file, tensor) = (self.file_name(tensor).to_owned(), tensor.to_owned());
            Err(CheckpointError::DraftStage { file, tensor, problem, asked })
        };
        let count = match (drafting.0, stage) {
            (Wish::Tokens(0), _) => 0,
            (Wish::Tokens(count), Stage::Classic) => count,
            (Wish::Tokens(asked), Stage::None) => return refuse(ENTRY, "is missing", asked),
            (Wish::Tokens(asked), Stage::Dspark(tensor)) => {
                return refuse(tensor, "belongs to a DSpark drafter, which is not supported", asked);
            }
            (Wish::Auto, Stage::Classic) => 1,
            (Wish::Auto, Stage::None | Stage::Dspark(_)) => 0,
        };
        tracing::info!(stage = name, draft_tokens = count, "draft stage");
        Ok(count)
    }

    fn stage(&self) -> Stage<'_> {
        let names = self.tensors.keys().map(String::as_str);
        let dspark = names
            .filter(|name| name.starts_with(layout::MTP_PREFIX) && !name.ends_with(".scale"))
            .filter(|name| DSPARK_PARTS.iter().any(|part| name.contains(part)))
            .min();
        match dspark {
            Some(tensor) => Stage::Dspark(tensor),
            None if self.tensors.contains_key(ENTRY) => Stage::Classic,
            None => Stage::None,
        }
    }
}
