//! Log-probabilities in the shapes of the two endpoints.
use belay_proto::inference::TokenLogprobs;
use serde_json::{Map, Value, json};

/// Stands for minus infinity, which JSON has not.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> Value {
    json!(logprob.max(LEAST))
}

/// What a token stands for, with U+FFFD for bytes that are part of a character.
fn token(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The `logprobs` of a chat choice.
pub fn chat(tokens: &[TokenLogprobs]) -> Value {
    let entry = |logprob: f32, bytes: &[u8]| json!({ "token": token(bytes), "logprob": number(logprob), "bytes": bytes });
    let content = tokens.iter().map(|chosen| {
        let mut object = entry(chosen.logprob, &chosen.bytes);
        let top = chosen.top.iter().map(|likely| entry(likely.logprob, &likely.bytes));
        object["top_logprobs"] = top.collect();
        object
    });
    json!({ "content": content.collect::<Value>(), "refusal": null })
}

/// The `logprobs` of the choices of a completion, which say where in the text each token begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    /// Characters that have begun so far.
    characters: usize,
}

impl Places {
    /// The next tokens of one choice; `prompt` those of the prompt, whose very first has no probability.
    pub fn completion(&mut self, prompt: &[TokenLogprobs], tokens: &[TokenLogprobs]) -> Value {
        let mut lists: [Vec<Value>; 4] = Default::default();
        let [texts, logprobs, tops, offsets] = &mut lists;
        for (index, chosen) in prompt.iter().chain(tokens).enumerate() {
            let text = token(&chosen.bytes);
            offsets.push(json!(self.place(&chosen.bytes)));
            if index == 0 && !prompt.is_empty() {
                logprobs.push(Value::Null);
                tops.push(Value::Null);
            } else {
                logprobs.push(number(chosen.logprob));
                let likely = chosen.top.iter().map(|likely| (token(&likely.bytes), number(likely.logprob)));
                let mut top: Map<String, Value> = likely.collect();
                top.entry(text.as_str()).or_insert_with(|| number(chosen.logprob));
                tops.push(top.into());
            }
            texts.push(text.into());
        }
        let [tokens, token_logprobs, top_logprobs, text_offset] = lists;
        json!({ "tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": top_logprobs,
                "text_offset": text_offset })
    }

    /// The character in which a token begins; then passes the token.
    fn place(&mut self, bytes: &[u8]) -> usize {
        let is_continuation = |byte: &u8| byte & 0xC0 == 0x80;
        let begins_within = bytes.first().is_some_and(is_continuation);
        let place = self.characters.saturating_sub(usize::from(begins_within));
        self.characters += bytes.iter().filter(|byte| !is_continuation(byte)).count();
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::inference::TokenLogprob;

    fn chosen(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> TokenLogprobs {
        let likely = |(bytes, logprob): &(&[u8], f32)| TokenLogprob {
            id: 0,
            logprob: *logprob,
            bytes: bytes.to_vec(),
        };
        TokenLogprobs { id: 0, logprob, bytes: bytes.to_vec(), top: top.iter().map(likely).collect() }
    }

    #[test]
    fn chat_shape() {
        let tokens = [chosen(b"a", -0.5, &[(b"a", -0.5), (b"\xc3", f32::NEG_INFINITY)])];
        let top = json!([{"token": "a", "logprob": -0.5, "bytes": [97]},
                         {"token": "\u{fffd}", "logprob": -9999.0, "bytes": [195]}]);
        let expected = json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top}],
                              "refusal": null});
        assert_eq!(chat(&tokens), expected);
    }

    #[test]
    fn completion_shape_with_places_of_split_characters() {
        let mut places = Places::default();
        let prompt = [chosen("né".as_bytes(), 0.0, &[]), chosen(b"b", -1.0, &[])];
        let first = places.completion(&prompt, &[chosen(b"\xc3", -2.0, &[(b"x", -0.25)])]);
        assert_eq!(first["tokens"], json!(["né", "b", "\u{fffd}"]));
        assert_eq!(first["token_logprobs"], json!([null, -1.0, -2.0]));
        assert_eq!(first["top_logprobs"], json!([null, {"b": -1.0}, {"x": -0.25, "\u{fffd}": -2.0}]));
        assert_eq!(first["text_offset"], json!([0, 2, 3]));
        let second = places.completion(&[], &[chosen(b"\xa9", -1.0, &[]), chosen(b"z", -1.0, &[])]);
        assert_eq!(second["text_offset"], json!([3, 4]), "the second half is where its character is");
        assert_eq!(second["token_logprobs"], json!([-1.0, -1.0]));
    }
}
