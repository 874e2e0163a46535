//! Text to token ids and token ids to bytes, as the checkpoint's `tokenizer.json` says.
//!
//! Encoding adds nothing: the prompt text holds its special tokens written out, and added tokens are matched
//! literally before anything else. Decoding goes through a table of the bytes of every token, so that a stream can be
//! decoded one token at a time without looking back (see [`crate::Detokenizer`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;

use crate::constraint::Vocabulary;

/// Closes the reasoning of a reply.
const THINK_END: &str = "</think>";
/// Tags of a reply's text. They are text even where a vocabulary marks them as special.
const TAGS: [&str; 3] = ["<think>", THINK_END, "｜DSML｜"];
/// Ends a reply, if no configuration names another token.
const EOS: &str = "<｜end▁of▁sentence｜>";

/// A tokenizer as loaded from a checkpoint directory.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    eos: Vec<u32>,
    think_end: Option<u32>,
    /// Made when the first constraint needs it.
    vocabulary: OnceLock<Result<Vocabulary, String>>,
    longest: usize,
}

/// Why a tokenizer could not be loaded, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or not readable.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {cause}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The text could not be split into tokens.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a checkpoint directory, and the end-of-sequence ids from `generation_config.json`
    /// or else `config.json`.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file: missing, unreadable, not JSON, not a byte-level BPE tokenizer, or
    /// without an end-of-sequence token.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let text = read(&path)?;
        let malformed = |cause: String| TokenizerError::Malformed { path: path.clone(), cause };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(&text).map_err(|error| malformed(error.to_string()))?;
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(malformed("decoder: only ByteLevel is supported".into()));
        }
        // A truncated or padded prompt would be a silent half answer.
        inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
        inner.with_padding(None);

        let pieces = Pieces::of(&inner);
        let eos = match configured_eos(dir)? {
            Some(ids) => ids,
            None => vec![inner.token_to_id(EOS).ok_or_else(|| {
                malformed(format!(
                    "no eos_token_id in generation_config.json or config.json, and no token {EOS}"
                ))
            })?],
        };
        if let Some(id) = eos.iter().find(|&&id| pieces.is_unknown(id)) {
            return Err(malformed(format!("eos_token_id {id} is not a token of this vocabulary")));
        }
        let think_end = inner.token_to_id(THINK_END);
        let mut tokenizer = Self { inner, pieces, eos, think_end, longest: 1, vocabulary: OnceLock::new() };
        let lengths = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.spelling(id).len());
        tokenizer.longest = lengths.max().unwrap_or(1).max(1);
        Ok(tokenizer)
    }

    /// Token ids of a text. Nothing is added.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] with the library's reason.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of a finished sequence: bytes that are not UTF-8 become U+FFFD, special tokens are left out.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Bytes that a token adds to the text. None for an unknown id, and none for an added token marked as special
    /// (begin, end of sequence, padding): like vLLM, text never shows those. Other added tokens are text, and the tags of
    /// a reply (`<think>`, `</think>`, the DSML marker) always.
    #[must_use]
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// Bytes of a token as a prompt would spell it: as [`Self::bytes`], but special tokens are written out.
    #[must_use]
    pub fn spelling(&self, id: u32) -> Vec<u8> {
        match self.bytes(id) {
            [] => self.inner.id_to_token(id).unwrap_or_default().into_bytes(),
            bytes => bytes.to_vec(),
        }
    }

    /// Most bytes that one token is spelt with; at least 1. A text has at least its length over this many tokens.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Tokens that end a reply.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The token `</think>`, if the vocabulary has it.
    #[must_use]
    pub fn think_end(&self) -> Option<u32> {
        self.think_end
    }

    /// The tokens as grammars see them. The first call takes a moment.
    ///
    /// # Errors
    /// Why no constraint can be followed.
    pub(crate) fn vocabulary(self: &Arc<Self>) -> Result<&Vocabulary, &str> {
        self.vocabulary.get_or_init(|| Vocabulary::new(self)).as_ref().map_err(String::as_str)
    }

    /// One more than the highest token id.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.known.len()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })
}

/// End-of-sequence ids of the first configuration file that names any.
fn configured_eos(dir: &Path) -> Result<Option<Vec<u32>>, TokenizerError> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let malformed = |cause: String| TokenizerError::Malformed { path: path.clone(), cause };
        let config: Value =
            serde_json::from_slice(&read(&path)?).map_err(|error| malformed(error.to_string()))?;
        let ids = match config.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) if !ids.is_empty() => ids.iter().map(token_id).collect(),
            Some(id) => token_id(id).map(|id| vec![id]),
        };
        return ids.map(Some).ok_or_else(|| {
            malformed(format!(
                "eos_token_id: expected a token id or a list of them, found {}",
                config["eos_token_id"]
            ))
        });
    }
    Ok(None)
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Bytes of every token, back to back.
struct Pieces {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
    known: Vec<bool>,
}

impl Pieces {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let vocab = tokenizer.get_vocab(true);
        let size = vocab.values().map(|&id| id as usize + 1).max().unwrap_or(0);
        let mut tokens: Vec<Option<&str>> = vec![None; size];
        for (token, &id) in &vocab {
            tokens[id as usize] = Some(token);
        }
        let alphabet = ByteAlphabet::new();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(size);
        for (id, token) in (0u32..).zip(&tokens) {
            match (added.get(&id), token) {
                (Some(added), _) if added.special && !TAGS.contains(&added.content.as_str()) => {}
                (Some(added), _) => bytes.extend_from_slice(added.content.as_bytes()),
                (None, Some(token)) => alphabet.decode(token, &mut bytes),
                (None, None) => {}
            }
            ends.push(bytes.len());
        }
        Self { bytes, ends, known: tokens.iter().map(Option::is_some).collect() }
    }

    fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    fn is_unknown(&self, id: u32) -> bool {
        !self.known.get(id as usize).copied().unwrap_or(false)
    }
}

/// The byte-level BPE alphabet of GPT-2: each byte is written as one printable character. Bytes that are printable
/// in Latin-1 stand for themselves, the others are numbered from U+0100.
struct ByteAlphabet {
    byte_of: [Option<u8>; 0x200],
}

impl ByteAlphabet {
    fn new() -> Self {
        let mut byte_of = [None; 0x200];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { usize::from(byte) } else { next };
            next += usize::from(!printable);
            byte_of[code] = Some(byte);
        }
        Self { byte_of }
    }

    /// A token with a character outside the alphabet is its own text, as in the library's decoder.
    fn decode(&self, token: &str, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        for c in token.chars() {
            match self.byte_of.get(c as usize).copied().flatten() {
                Some(byte) => bytes.push(byte),
                None => {
                    bytes.truncate(start);
                    bytes.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}
