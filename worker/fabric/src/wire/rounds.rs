//! How workers come together for rounds, and call each other to one.

use super::{Fields, Header, Kind, WireError, begin_frame, end_frame, put_str, put_u32};

/// Bytes of a root that fit into a frame.
const MAX_ROOT: usize = 6 * 1024;
/// Workers of a circle at most.
const MAX_MEMBERS: usize = 256;

/// What one worker tells another about a circle, which the first number names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The sender, the first of `members`, would like to have a circle with them; `root` is what its ranks find each other by.
    Offer {
        /// Number of the circle.
        circle: u64,
        /// Workers, ascending.
        members: Vec<u32>,
        /// Opaque.
        root: Vec<u8>,
    },
    /// The sender is ready to join.
    Agree {
        /// Number of the circle.
        circle: u64,
    },
    /// The sender won't join.
    Decline {
        /// Number of the circle.
        circle: u64,
        /// For people.
        reason: String,
    },
    /// All have agreed: everybody joins now.
    Join {
        /// Number of the circle.
        circle: u64,
    },
    /// Rounds up to this one are wanted, counted from 1.
    Ring {
        /// Number of the circle.
        circle: u64,
        /// Number of the round.
        round: u64,
    },
    /// The circle is of no more use.
    Break {
        /// Number of the circle.
        circle: u64,
        /// For people.
        reason: String,
    },
}

impl Word {
    fn code(&self) -> u32 {
        match self {
            Self::Offer { .. } => 0,
            Self::Agree { .. } => 1,
            Self::Decline { .. } => 2,
            Self::Join { .. } => 3,
            Self::Ring { .. } => 4,
            Self::Break { .. } => 5,
        }
    }

    /// The circle that it is about.
    #[must_use]
    pub fn circle(&self) -> u64 {
        match self {
            Self::Offer { circle, .. }
            | Self::Agree { circle }
            | Self::Decline { circle, .. }
            | Self::Join { circle }
            | Self::Ring { circle, .. }
            | Self::Break { circle, .. } => *circle,
        }
    }
}

/// Encodes a word. Members and roots beyond what a frame takes are cut; those of a group and of HCCL are far smaller.
pub fn encode_word(out: &mut Vec<u8>, word: &Word) {
    begin_frame(out, Kind::Word, 0);
    put_u32(out, word.code());
    out.extend_from_slice(&word.circle().to_le_bytes());
    match word {
        Word::Offer { members, root, .. } => {
            let (members, root) =
                (&members[..members.len().min(MAX_MEMBERS)], &root[..root.len().min(MAX_ROOT)]);
            put_u32(out, members.len() as u32);
            members.iter().for_each(|member| put_u32(out, *member));
            put_u32(out, root.len() as u32);
            out.extend_from_slice(root);
        }
        Word::Decline { reason, .. } | Word::Break { reason, .. } => put_str(out, reason),
        Word::Ring { round, .. } => out.extend_from_slice(&round.to_le_bytes()),
        Word::Agree { .. } | Word::Join { .. } => {}
    }
    end_frame(out);
}

/// Reads a word.
///
/// # Errors
/// [`WireError`] if the body is malformed.
pub fn parse_word(header: &Header, body: &[u8]) -> Result<Word, WireError> {
    let mut fields = Fields::new(header, body);
    let (code, circle) = (fields.u32()?, fields.u64()?);
    let word = match code {
        0 => {
            let count = fields.u32()? as usize;
            if count > MAX_MEMBERS {
                return Err(header.malformed(format!("{count} members of a circle")));
            }
            let members = (0..count).map(|_| fields.u32()).collect::<Result<_, _>>()?;
            let bytes = fields.u32()? as usize;
            Word::Offer { circle, members, root: fields.take(bytes)?.to_vec() }
        }
        1 => Word::Agree { circle },
        2 => Word::Decline { circle, reason: fields.str()? },
        3 => Word::Join { circle },
        4 => Word::Ring { circle, round: fields.u64()? },
        5 => Word::Break { circle, reason: fields.str()? },
        other => return Err(header.malformed(format!("unknown word {other}"))),
    };
    fields.end()?;
    Ok(word)
}
