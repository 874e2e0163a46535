/// Arithmetic of an arena: addresses that only go up until they are set back to a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bump {
    start: usize,
    capacity: usize,
    used: usize,
    highest: usize,
}

impl Bump {
    pub(super) fn new(start: usize, capacity: usize) -> Self {
        Self { start, capacity, used: 0, highest: 0 }
    }

    /// Offset of `bytes` bytes at a multiple of `alignment`, a power of two; `None` if they do not fit.
    pub(super) fn take(&mut self, bytes: usize, alignment: usize) -> Option<usize> {
        let address = self.start.checked_add(self.used)?.checked_next_multiple_of(alignment)?;
        let offset = address - self.start;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.capacity)?;
        self.used = end;
        self.highest = self.highest.max(end);
        Some(offset)
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn highest(&self) -> usize {
        self.highest
    }

    pub(super) fn available(&self) -> usize {
        self.capacity - self.used
    }

    /// Gives back all that was taken since `used` was what it is set to; more than is used changes nothing.
    pub(super) fn set_back(&mut self, used: usize) {
        self.used = self.used.min(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize),
        Mark,
        Back,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..3000).prop_map(Step::Take),
            1 => Just(Step::Mark),
            1 => Just(Step::Back),
        ]
    }

    proptest! {
        #[test]
        fn parts_are_aligned_inside_and_apart(
            start in 1usize..1 << 40,
            capacity in 0usize..1 << 15,
            power in 5u32..12,
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let alignment = 1usize << power;
            let mut bump = Bump::new(start, capacity);
            let mut live: Vec<(usize, usize)> = Vec::new();
            let mut marks: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(bytes) => match bump.take(bytes, alignment) {
                        Some(offset) => {
                            prop_assert_eq!((start + offset) % alignment, 0);
                            prop_assert!(offset + bytes <= capacity);
                            let apart = live.iter().all(|(at, len)| offset >= at + len);
                            prop_assert!(apart, "{offset} is inside of an earlier part");
                            live.push((offset, bytes));
                        }
                        None => prop_assert!(bump.available() < bytes + alignment),
                    },
                    Step::Mark => marks.push((bump.used(), live.len())),
                    Step::Back => if let Some((used, parts)) = marks.pop() {
                        bump.set_back(used);
                        live.truncate(parts);
                        prop_assert_eq!(bump.used(), used);
                    },
                }
                prop_assert!(bump.used() <= bump.highest() && bump.highest() <= capacity);
            }
        }
    }

    #[test]
    fn sizes_near_the_end_of_the_address_space_do_not_wrap() {
        let mut bump = Bump::new(usize::MAX - 1000, 900);
        assert_eq!(bump.take(usize::MAX, 512), None);
        assert!(bump.take(300, 512).is_some());
        let mut bump = Bump::new(usize::MAX - 10, 900);
        assert_eq!(bump.take(1, 512), None);
    }

    #[test]
    fn setting_back_to_more_than_is_used_changes_nothing() {
        let mut bump = Bump::new(0, 100);
        assert_eq!(bump.take(10, 1), Some(0));
        bump.set_back(50);
        assert_eq!(bump.used(), 10);
    }
}
