//! How many tokens each session feeds in the next step. Pure.

/// Plans a step. `pending[i]` is how many tokens session i has not fed yet (at least 1), sessions in the order in which
/// they were admitted; the answer is how many of them it feeds now.
///
/// A session with one token pending (as every session that is decoding) always feeds it, so a long prompt never holds
/// up others' tokens for more than one bounded step. Longer prompts share `prefill_tokens` in order: the first one
/// gets on as fast as it can.
#[must_use]
pub fn plan(pending: &[usize], prefill_tokens: usize) -> Vec<usize> {
    let mut left = prefill_tokens.max(1);
    pending
        .iter()
        .map(|&pending| {
            if pending <= 1 {
                return pending;
            }
            let chunk = pending.min(left);
            left -= chunk;
            chunk
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_always_runs_and_prefill_stays_in_its_budget(
            pending in prop::collection::vec(1usize..50, 0..20), budget in 0usize..60,
        ) {
            let plan = plan(&pending, budget);
            prop_assert_eq!(plan.len(), pending.len());
            let mut prefill = 0;
            for (&chunk, &pending) in plan.iter().zip(&pending) {
                prop_assert!(chunk <= pending);
                if pending == 1 {
                    prop_assert_eq!(chunk, 1);
                } else {
                    prefill += chunk;
                }
            }
            prop_assert!(prefill <= budget.max(1));
        }

        #[test]
        fn prompts_get_on_in_order_and_all_end(mut pending in prop::collection::vec(1usize..50, 1..20), budget in 0usize..60) {
            let total: usize = pending.iter().sum();
            for _ in 0..total {
                let plan = plan(&pending, budget);
                if let Some(first) = pending.iter().position(|&pending| pending > 1) {
                    prop_assert!(plan[first] > 0);
                }
                for (pending, chunk) in pending.iter_mut().zip(plan) {
                    *pending -= chunk;
                }
                pending.retain(|&pending| pending > 0);
            }
            prop_assert!(pending.is_empty());
        }
    }
}
