//! What is under way somewhere: requests, and the tokens that they have still to do.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Work;

/// Of a worker, of a model, of a waiting room.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU64,
    tokens: AtomicU64,
}

impl Load {
    /// Requests now.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Tokens that they have still to do: an estimate.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }
}

/// One request's part in some loads, until dropped. It shrinks as the request gets on.
#[derive(Debug)]
pub struct Burden<const N: usize> {
    loads: [Arc<Load>; N],
    left: Work,
}

impl<const N: usize> Burden<N> {
    /// Adds a request to all of `loads`.
    pub fn new(loads: [Arc<Load>; N], work: Work) -> Self {
        for load in &loads {
            load.requests.fetch_add(1, Ordering::Relaxed);
            load.tokens.fetch_add(work.total(), Ordering::Relaxed);
        }
        Self { loads, left: work }
    }

    /// So many tokens came: the prompt is done as well.
    pub fn produced(&mut self, tokens: u64) {
        if tokens == 0 {
            return;
        }
        let done = Work { prompt: self.left.prompt, output: tokens.min(self.left.output) };
        self.left = Work { prompt: 0, output: self.left.output - done.output };
        self.relieve(done);
    }

    fn relieve(&self, done: Work) {
        for load in &self.loads {
            load.tokens.fetch_sub(done.total(), Ordering::Relaxed);
        }
    }
}

impl<const N: usize> Drop for Burden<N> {
    fn drop(&mut self) {
        self.relieve(self.left);
        for load in &self.loads {
            load.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burden_shrinks_and_goes() {
        let load = Arc::new(Load::default());
        let mut burden = Burden::new([load.clone()], Work { prompt: 100, output: 10 });
        assert_eq!((load.requests(), load.tokens()), (1, 110));
        burden.produced(3);
        assert_eq!((load.requests(), load.tokens()), (1, 7));
        burden.produced(30);
        assert_eq!((load.requests(), load.tokens()), (1, 0));
        drop(burden);
        assert_eq!((load.requests(), load.tokens()), (0, 0));
    }

    proptest! {
        #[test]
        fn nothing_is_left_whatever_happened(
            burdens in prop::collection::vec((0u64..2000, 0u64..2000, prop::collection::vec(0u64..300, 0..9)), 0..9)
        ) {
            let (one, two) = (Arc::new(Load::default()), Arc::new(Load::default()));
            let mut held = Vec::new();
            for (prompt, output, produced) in burdens {
                let mut burden = Burden::new([one.clone(), two.clone()], Work { prompt, output });
                produced.into_iter().for_each(|tokens| burden.produced(tokens));
                held.push(burden);
            }
            prop_assert_eq!(one.tokens(), two.tokens());
            drop(held);
            prop_assert_eq!((one.requests(), one.tokens(), two.tokens()), (0, 0, 0));
        }
    }
}
