//! Where the rows of a frame are put: read straight to their place if they travel as they lie there.

use std::io::{self, IoSliceMut, Read};

use crate::RowFormat;
use crate::socket::Inbox;

/// Pieces of one vectored read.
const SLICES: usize = 64;

/// Rows that come one after the other, and their places in a matrix.
pub(crate) struct Landing<'a> {
    pub format: RowFormat,
    pub hidden: usize,
    /// `[_, hidden]`.
    pub to: &'a mut [f32],
    /// Index in `to` of each row that comes; `None`: the first, the second, and so on.
    pub places: Option<&'a [u32]>,
}

impl Landing<'_> {
    fn place(&self, number: usize) -> usize {
        self.places.map_or(number, |places| places[number] as usize)
    }

    /// Puts what the inbox has of the bytes `done..end` of the rows to its places; returns how many bytes that were.
    pub(crate) fn take(&mut self, inbox: &mut Inbox, done: usize, end: usize) -> usize {
        let row_bytes = self.format.row_bytes(self.hidden);
        let mut at = done;
        while at < end {
            let (number, offset) = (at / row_bytes, at % row_bytes);
            let start = self.place(number) * self.hidden;
            let row = &mut self.to[start..start + self.hidden];
            let here = inbox.some(row_bytes - offset);
            let taken = match self.format {
                RowFormat::F32 => {
                    let bytes: &mut [u8] = bytemuck::cast_slice_mut(row);
                    bytes[offset..offset + here.len()].copy_from_slice(here);
                    here.len()
                }
                format if here.len() == row_bytes => {
                    format.decode(here, row);
                    row_bytes
                }
                _ => 0,
            };
            if taken == 0 {
                break;
            }
            inbox.consume(taken);
            at += taken;
        }
        at - done
    }

    /// One read, when [`Self::take`] has left nothing to take: of the bytes `done..end` to their places, as far as that
    /// is possible, and beyond to the inbox. Returns how many bytes are in their places.
    ///
    /// # Errors
    /// As [`Inbox::fill`].
    pub(crate) fn read(
        &mut self,
        inbox: &mut Inbox,
        reader: &mut impl Read,
        done: usize,
        end: usize,
    ) -> io::Result<usize> {
        let row_bytes = self.format.row_bytes(self.hidden);
        if self.format != RowFormat::F32 || !inbox.is_empty() {
            return inbox.fill(reader, row_bytes).map(|()| 0);
        }
        let (first, mut offset) = (done / row_bytes, done % row_bytes);
        let numbers = first..end / row_bytes;
        let mut pieces: [IoSliceMut<'_>; SLICES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut used = 0;
        // what is left of the matrix, and the byte at which it begins
        let places = self.places;
        let (mut rest, mut base): (&mut [u8], usize) = (bytemuck::cast_slice_mut(self.to), 0);
        let mut next = numbers.start;
        while next < numbers.end && used < SLICES {
            let place = |number: usize| places.map_or(number, |places| places[number] as usize);
            let mut run = 1;
            while next + run < numbers.end && place(next + run) == place(next) + run {
                run += 1;
            }
            let start = place(next) * row_bytes + offset;
            if start < base {
                break; // places that do not ascend: another read
            }
            let length = run * row_bytes - offset;
            let (_, tail) = rest.split_at_mut(start - base);
            let (piece, tail) = tail.split_at_mut(length);
            (rest, base) = (tail, start + length);
            pieces[used] = IoSliceMut::new(piece);
            (next, offset, used) = (next + run, 0, used + 1);
        }
        let is_all = next == numbers.end;
        inbox.read_beyond(reader, pieces, used, is_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most so many bytes at a time.
    struct Pieces<'a>(&'a [u8], Vec<usize>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = self.1.pop().unwrap_or(7).max(1);
            let count = most.min(buffer.len()).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }

        fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            let mut left = self.1.pop().unwrap_or(7).max(1);
            let mut done = 0;
            for buffer in buffers {
                let count = left.min(buffer.len()).min(self.0.len());
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                (left, done) = (left - count, done + count);
            }
            Ok(done)
        }
    }

    proptest! {
        /// Rows come to their places, and what follows them stays, however the bytes are cut.
        #[test]
        fn rows_find_their_places(
            hidden in 1usize..40, mut places in proptest::collection::vec(0u32..200, 1..150),
            shuffled in any::<bool>(), cuts in proptest::collection::vec(1usize..9000, 0..40), early in 0usize..50,
        ) {
            places.sort_unstable();
            places.dedup();
            if shuffled {
                places.reverse();
            }
            for format in RowFormat::ALL {
                let sent: Vec<f32> = (0..places.len() * hidden).map(|i| (i % 61) as f32 * 0.25).collect();
                let mut bytes = b"head".to_vec();
                format.encode(&sent, hidden, &mut bytes);
                let end = bytes.len() - 4;
                bytes.extend_from_slice(b"next");
                let mut reader = Pieces(&bytes, cuts.clone());
                let mut inbox = Inbox::default();
                inbox.fill_at_most(&mut reader, 4, 4 + early).unwrap();
                while inbox.peek(4).is_none() {
                    inbox.fill_at_most(&mut reader, 4, 4).unwrap();
                }
                inbox.consume(4);
                let mut matrix = vec![-1.0f32; 200 * hidden];
                let mut landing = Landing { format, hidden, to: &mut matrix, places: Some(&places) };
                let mut done = 0;
                loop {
                    done += landing.take(&mut inbox, done, end);
                    if done == end {
                        break;
                    }
                    done += landing.read(&mut inbox, &mut reader, done, end).unwrap();
                }
                let mut expected = vec![-1.0f32; 200 * hidden];
                let mut rounded = sent.clone();
                format.round(&mut rounded, hidden);
                for (&place, row) in places.iter().zip(rounded.chunks(hidden)) {
                    expected[place as usize * hidden..][..hidden].copy_from_slice(row);
                }
                prop_assert_eq!(&matrix, &expected);
                while inbox.peek(4).is_none() {
                    inbox.fill(&mut reader, 4).unwrap();
                }
                prop_assert_eq!(inbox.peek(4), Some(&b"next"[..]));
            }
        }
    }
}
