//! What a message is like.

use belay_backend::Route;
use belay_fabric::RowFormat;

/// Experts of the one layer; all of them are at the other process.
pub const EXPERTS: u32 = 6;

/// Header and prefix of an ask, and of a result.
const ASK_HEAD: usize = 24 + 16;
const RESULT_HEAD: usize = 24 + 8;
const ROUTE_BYTES: usize = 12;

/// Rows that go and come in one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// For people.
    pub name: &'static str,
    /// Form of the rows.
    pub format: RowFormat,
    /// Channels of a row.
    pub hidden: usize,
    /// Rows that go.
    pub rows: usize,
    /// Experts of each row: rows that come for it.
    pub experts: usize,
}

impl Shape {
    /// What is measured: results of 48 KB, for one row and for as many bytes.
    pub const ALL: [Self; 4] = [
        Self { name: "bf16, 8 KB to 48 KB", format: RowFormat::Bf16, hidden: 4096, rows: 1, experts: 6 },
        Self { name: "bf16, 48 KB to 48 KB", format: RowFormat::Bf16, hidden: 4096, rows: 6, experts: 1 },
        Self { name: "f32, 48 KB to 48 KB", format: RowFormat::F32, hidden: 4096, rows: 3, experts: 1 },
        Self { name: "fp8, 4 KB to 24 KB", format: RowFormat::Fp8, hidden: 4096, rows: 1, experts: 6 },
    ];

    /// Routes of a message.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.rows * self.experts
    }

    /// Bytes of the frame that goes.
    #[must_use]
    pub fn ask_bytes(&self) -> usize {
        ASK_HEAD + self.routes() * ROUTE_BYTES + self.rows * self.format.row_bytes(self.hidden)
    }

    /// Bytes of the frame that comes.
    #[must_use]
    pub fn result_bytes(&self) -> usize {
        RESULT_HEAD + self.routes() * self.format.row_bytes(self.hidden)
    }

    /// Routes of `messages` messages, one after the other.
    #[must_use]
    pub fn exchange(&self, messages: usize) -> Vec<Route> {
        let rows = (0..(messages * self.rows) as u32).map(|row| (row, row % EXPERTS));
        let experts = self.experts as u32;
        rows.flat_map(|(row, first)| {
            (0..experts).map(move |at| Route {
                row,
                expert: (first * (experts % 2) + at) % EXPERTS,
                weight: 1.0,
            })
        })
        .collect()
    }

    /// Limit of an ask with which an exchange is cut into messages of this shape.
    #[must_use]
    pub fn limit(&self) -> u32 {
        (16 + self.routes() * (self.format.row_bytes(self.hidden) + ROUTE_BYTES)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_fabric::wire;

    #[test]
    fn bytes_are_those_of_the_wire() {
        for shape in Shape::ALL {
            let routes = shape.exchange(1);
            let picked: Vec<u32> = (0..routes.len() as u32).collect();
            let (mut frame, mut rows) = (Vec::new(), Vec::new());
            let form = (shape.format, shape.hidden);
            wire::encode_ask(&mut frame, &mut rows, 1, 0, form, &routes, &picked, |_| false);
            assert_eq!(frame.len() + rows.len() * shape.format.row_bytes(shape.hidden), shape.ask_bytes());
            let y = vec![0.0; routes.len() * shape.hidden];
            wire::encode_result(&mut frame, 1, shape.format, shape.hidden, &y);
            assert_eq!(frame.len(), shape.result_bytes());
            assert_eq!(wire::routes_per_ask(shape.limit(), shape.format, shape.hidden), shape.routes());
            assert!(shape.exchange(9).iter().all(|route| route.expert < EXPERTS));
        }
    }
}
