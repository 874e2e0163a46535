//! Proof that both sides of a connection know the group's key.
//!
//! Each proof is HMAC-SHA256 over a word for the side that proves, and over hello and welcome as they went over the
//! wire: both identities and both nonces. So a proof can neither be sent back to its maker nor used a second time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 32;
/// Bytes of a proof.
pub(crate) const PROOF_BYTES: usize = 32;
/// Block of SHA-256.
const BLOCK_BYTES: usize = 64;

/// Who proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Asker,
    Server,
}

/// A key, as HMAC takes it. Knowledge of the empty key proves nothing.
#[derive(Clone)]
pub(crate) struct Key([u8; BLOCK_BYTES]);

impl Key {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut block = [0; BLOCK_BYTES];
        if bytes.len() > BLOCK_BYTES {
            let digest = Sha256::digest(bytes);
            block[..digest.len()].copy_from_slice(&digest);
        } else {
            block[..bytes.len()].copy_from_slice(bytes);
        }
        Self(block)
    }

    fn mac(&self, side: Side, hello: &[u8], welcome: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.0.into());
        mac.update(match side {
            Side::Asker => b"belay fabric asker",
            Side::Server => b"belay fabric server",
        });
        // the length keeps a byte of one message from counting as one of the other
        mac.update(&(hello.len() as u64).to_le_bytes());
        mac.update(hello);
        mac.update(welcome);
        mac
    }

    /// Proof over the bodies of hello and welcome, the latter without the server's proof.
    pub(crate) fn prove(&self, side: Side, hello: &[u8], welcome: &[u8]) -> [u8; PROOF_BYTES] {
        self.mac(side, hello, welcome).finalize().into_bytes().into()
    }

    /// Whether the other side's proof is right; takes the same time whatever is wrong with it.
    pub(crate) fn accepts(
        &self,
        side: Side,
        hello: &[u8],
        welcome: &[u8],
        proof: &[u8; PROOF_BYTES],
    ) -> bool {
        self.mac(side, hello, welcome).verify_slice(proof).is_ok()
    }
}

/// Random bytes that are used once.
pub(crate) fn nonce() -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    for half in nonce.as_chunks_mut::<16>().0 {
        *half = uuid::Uuid::new_v4().into_bytes();
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_hmac_sha256() {
        let key = Key::new(b"Jefe");
        let mut whole = b"belay fabric asker".to_vec();
        whole.extend_from_slice(&4u64.to_le_bytes());
        whole.extend_from_slice(b"what do ya");
        let mut plain = <Hmac<Sha256> as KeyInit>::new_from_slice(b"Jefe").unwrap();
        plain.update(&whole);
        let expected: [u8; 32] = plain.finalize().into_bytes().into();
        assert_eq!(key.prove(Side::Asker, b"what", b" do ya"), expected);
        let long = [7u8; 100];
        let mut plain = <Hmac<Sha256> as KeyInit>::new_from_slice(&long).unwrap();
        plain.update(b"belay fabric server");
        plain.update(&0u64.to_le_bytes());
        let expected: [u8; 32] = plain.finalize().into_bytes().into();
        assert_eq!(Key::new(&long).prove(Side::Server, b"", b""), expected);
    }

    #[test]
    fn another_key_side_or_message_is_refused() {
        let key = Key::new(b"secret");
        let proof = key.prove(Side::Asker, b"hello", b"welcome");
        assert!(key.accepts(Side::Asker, b"hello", b"welcome", &proof));
        assert!(!key.accepts(Side::Server, b"hello", b"welcome", &proof), "a reflected proof");
        assert!(!key.accepts(Side::Asker, b"hellow", b"elcome", &proof), "a moved boundary");
        assert!(!key.accepts(Side::Asker, b"hello", b"Welcome", &proof));
        assert!(!Key::new(b"").accepts(Side::Asker, b"hello", b"welcome", &proof));
        assert_ne!(nonce(), nonce());
    }
}
