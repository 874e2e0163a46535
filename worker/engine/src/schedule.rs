//! How many tokens each sequence feeds in the next step. Pure.

/// What the plan needs to know of a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Lower values are served first.
    pub priority: i32,
    /// Tokens not fed yet; at least 1. One that decodes has exactly 1.
    pub pending: usize,
    /// Most of them that can be fed in one step: up to where a snapshot is wanted.
    pub most: usize,
    /// Most guesses to check behind them; 0 while more than one is pending.
    pub drafts: usize,
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Tokens to feed; 0: it sits this step out.
    pub tokens: usize,
    /// Guesses to check behind them.
    pub drafts: usize,
}

/// Plans a step for sequences in the order of their rank: priority, then arrival.
///
/// - Whoever decodes feeds its token in every step, so a long prompt never holds up others' tokens for more than one
///   step, and a step never has more than `budget` rows, or those of decoding and a quarter of `budget`.
/// - A quarter of the budget is for prompts, and what decoding leaves. Guesses are checked with what prompts cannot take.
/// - Prompts of a better priority go first. Among equals, the first one gets half, so that it always gets on; the
///   other half goes to the shortest ones, so that a short prompt does not wait for a long one.
#[must_use]
pub fn plan(candidates: &[Candidate], budget: usize) -> Vec<Turn> {
    let budget = budget.max(1);
    let mut turns = vec![Turn::default(); candidates.len()];
    let (decoding, prompts): (Vec<usize>, Vec<usize>) =
        (0..candidates.len()).partition(|&index| candidates[index].pending <= 1);
    for &index in &decoding {
        turns[index].tokens = candidates[index].pending;
    }
    let quarter = (budget / 4).max(1);
    let wanted: usize =
        prompts.iter().map(|&index| candidates[index].pending.min(candidates[index].most)).sum();
    let mut spare = budget.saturating_sub(decoding.len() + wanted.min(quarter));
    let mut left = budget.saturating_sub(decoding.len());
    for &index in &decoding {
        let drafts = candidates[index].drafts.min(spare);
        turns[index].drafts = drafts;
        spare -= drafts;
        left -= drafts;
    }
    left = left.max(quarter);
    for class in prompts.chunk_by(|&a, &b| candidates[a].priority == candidates[b].priority) {
        share(candidates, class, &mut left, &mut turns);
    }
    turns
}

/// Shares what is left among prompts of one priority.
fn share(candidates: &[Candidate], class: &[usize], left: &mut usize, turns: &mut [Turn]) {
    let mut give = |index: usize, most: usize, left: &mut usize| {
        let Candidate { pending, most: cut, .. } = candidates[index];
        let tokens = (pending.min(cut) - turns[index].tokens).min(most).min(*left);
        turns[index].tokens += tokens;
        *left -= tokens;
    };
    let Some((&first, others)) = class.split_first() else { return };
    give(first, left.div_ceil(2), left);
    let mut others = others.to_vec();
    others.sort_by_key(|&index| candidates[index].pending);
    for index in others {
        give(index, usize::MAX, left);
    }
    give(first, usize::MAX, left);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt(pending: usize) -> Candidate {
        Candidate { priority: 0, pending, most: usize::MAX, drafts: 0 }
    }

    fn decoding(drafts: usize) -> Candidate {
        Candidate { priority: 0, pending: 1, most: 1, drafts }
    }

    fn tokens(candidates: &[Candidate], budget: usize) -> Vec<usize> {
        plan(candidates, budget).iter().map(|turn| turn.tokens).collect()
    }

    #[test]
    fn a_short_prompt_overtakes_within_the_budget() {
        assert_eq!(tokens(&[prompt(1000), prompt(900), prompt(20)], 100), [50, 30, 20]);
        assert_eq!(tokens(&[prompt(30), prompt(900)], 100), [30, 70]);
    }

    #[test]
    fn a_prompt_alone_gets_everything_up_to_its_cut() {
        assert_eq!(tokens(&[prompt(1000)], 100), [100]);
        let cut = Candidate { most: 24, ..prompt(1000) };
        assert_eq!(tokens(&[cut, prompt(1000)], 100), [24, 76]);
    }

    #[test]
    fn a_better_priority_goes_first() {
        let urgent = Candidate { priority: -1, ..prompt(80) };
        assert_eq!(tokens(&[urgent, prompt(5), prompt(1000)], 100), [80, 5, 15]);
    }

    #[test]
    fn guesses_take_what_prompts_leave() {
        let turns = plan(&[decoding(3), decoding(3), decoding(3)], 10);
        assert_eq!(turns.iter().map(|turn| turn.drafts).collect::<Vec<_>>(), [3, 3, 1]);
        let turns = plan(&[decoding(3), decoding(3), prompt(100)], 8);
        assert_eq!(
            turns.iter().map(|turn| (turn.tokens, turn.drafts)).collect::<Vec<_>>(),
            [(1, 3), (1, 1), (2, 0)]
        );
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0i32..3, prop_oneof![Just(1usize), 2usize..50], 1usize..30, 0usize..4).prop_map(
            |(priority, pending, most, drafts)| Candidate {
                priority,
                pending,
                most,
                drafts: if pending == 1 { drafts } else { 0 },
            },
        );
        prop::collection::vec(one, 0..20).prop_map(|mut all| {
            all.sort_by_key(|candidate| candidate.priority);
            all
        })
    }

    proptest! {
        #[test]
        fn decoding_always_runs_and_a_step_stays_in_its_bounds(candidates in candidates(), budget in 0usize..60) {
            let turns = plan(&candidates, budget);
            prop_assert_eq!(turns.len(), candidates.len());
            let budget = budget.max(1);
            let mut rows = 0;
            for (turn, candidate) in turns.iter().zip(&candidates) {
                prop_assert!(turn.drafts <= candidate.drafts);
                prop_assert!(turn.tokens <= candidate.pending);
                if candidate.pending == 1 {
                    prop_assert_eq!(turn.tokens, 1);
                } else {
                    prop_assert!(turn.tokens <= candidate.most);
                }
                rows += turn.tokens + turn.drafts;
            }
            let decoding = candidates.iter().filter(|candidate| candidate.pending == 1).count();
            prop_assert!(rows <= budget.max(decoding + (budget / 4).max(1)), "{} rows", rows);
        }

        #[test]
        fn the_first_prompt_of_the_best_priority_always_gets_on(candidates in candidates(), budget in 1usize..60) {
            let turns = plan(&candidates, budget);
            if let Some(first) = candidates.iter().position(|candidate| candidate.pending > 1) {
                let Candidate { pending, most, .. } = candidates[first];
                let quarter = (budget / 4).max(1);
                prop_assert!(turns[first].tokens >= pending.min(most).min(quarter.div_ceil(2)));
            }
        }

        #[test]
        fn nothing_of_the_budget_is_wasted_while_a_prompt_could_use_it(candidates in candidates(), budget in 1usize..60) {
            let turns = plan(&candidates, budget);
            let rows: usize = turns.iter().map(|turn| turn.tokens + turn.drafts).sum();
            let all_fed = turns.iter().zip(&candidates).all(|(turn, c)| turn.tokens == c.pending.min(c.most.max(1)));
            prop_assert!(rows >= budget || all_fed, "{} of {}", rows, budget);
        }
    }
}
