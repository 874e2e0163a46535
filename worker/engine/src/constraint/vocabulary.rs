//! The vocabulary as grammars see it: a trie of the bytes of all tokens.

use std::sync::{Arc, Weak};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};

use crate::tokenizer::Tokenizer;

/// Longest token that a grammar can use; the trie holds no longer ones.
const MAX_TOKEN_BYTES: usize = 1000;
/// A state of the lexer takes 1 to 2 KiB; llguidance's own limit of 250 000 would be half a gigabyte for one request.
const MAX_LEXER_STATES: usize = 20_000;
/// Nodes of the expressions of all terminals. Some of what llguidance does with a long one takes time as the square of
/// its nodes; its own limit of a million lets that be hours.
const MAX_LEXER_NODES: u64 = 100_000;

/// What all grammars over a tokenizer share. Built once; takes a moment, and some tens of bytes for each token.
pub struct Vocabulary {
    factory: ParserFactory,
}

impl Vocabulary {
    /// Text, that of added tokens too, can be matched by any grammar. Special tokens (see [`Tokenizer::bytes`]) are
    /// not text: they are admitted only where a Lark grammar names them, as `<name>` or `<[id]>`, and end-of-sequence
    /// where a text may end.
    ///
    /// # Errors
    /// What llguidance says.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, String> {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).map_err(|error| error.to_string())?;
        let words: Vec<Vec<u8>> = ids.clone().map(|id| word(tokenizer, id)).collect();
        let eos = tokenizer.eos();
        let info = TokRxInfo::new(ids.end, *eos.first().ok_or("there is no end-of-sequence token")?);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer: Arc::downgrade(tokenizer) });
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, capabilities, &slices).map_err(|error| format!("{error:#}"))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.initial_lexer_fuel = MAX_LEXER_NODES;
        limits.verbose_errors = false;
        Ok(Self { factory })
    }

    /// At the start of a text.
    ///
    /// # Errors
    /// What is wrong with the grammar.
    pub fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        self.factory
            .create_parser(grammar)
            .map(|parser| Matcher::new(Ok(parser)))
            .map_err(|error| plain(&format!("{error:#}")))
    }
}

/// Bytes of a token as the trie knows it: empty if no grammar can use it; a special token is its name behind a byte that
/// no text has.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let mut word = tokenizer.bytes(id).to_vec();
    if word.is_empty() {
        word = tokenizer.spelling(id);
        if !word.is_empty() {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
    }
    if word.len() <= MAX_TOKEN_BYTES { word } else { Vec::new() }
}

/// An error of llguidance's without what it adds for its own developers.
pub fn plain(error: &str) -> String {
    const LONGEST: usize = 500;
    let end =
        ["\n<backtrace>", "\n<non-verbose/>", "\n<state>"].iter().filter_map(|mark| error.find(mark)).min();
    let text = match error[..end.unwrap_or(error.len())].trim_end() {
        "NoExtensionBias" => "no text satisfies it".to_owned(),
        text => text.replace("panic: ", "cannot be handled: "),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// How llguidance asks for the tokens that the model would write a forced text with.
struct Environment {
    trie: TokTrie,
    /// The tokenizer owns the vocabulary.
    tokenizer: Weak<Tokenizer>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.upgrade().and_then(|tokenizer| tokenizer.encode(text).ok());
            // A text that spells a special token would become that token, which is not the text.
            ids.filter(|ids| self.trie.decode_raw(ids) == text.as_bytes())
                .unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}
