//! What a rank sends in a round and what it gets, as numbers. Pure.

use belay_backend::{RoundAsk, Route};

use crate::{Error, Result};

/// Numbers of a header: layer, routes, rows, and 1 if the sender asks anything of anybody.
pub(super) const HEADER: usize = 4;
/// Numbers of a route: its row among those of the parcel, its expert, the bits of its weight.
pub(super) const ROUTE: usize = 3;

/// Parcels for every rank of a circle.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// A header for each rank.
    pub headers: Vec<i32>,
    /// The routes of all ranks.
    pub routes: Vec<i32>,
    /// Rows of the asker that are sent, in this order; one that several routes to a rank have is sent once.
    pub rows: Vec<u32>,
    /// By rank.
    pub route_counts: Vec<u64>,
    pub row_counts: Vec<u64>,
}

impl Outgoing {
    pub(super) fn of(ask: Option<&RoundAsk>, ranks: usize) -> Self {
        let mut made = Self::default();
        for rank in 0..ranks {
            let (first, before) = (made.rows.len(), made.routes.len());
            let routes = ask.and_then(|ask| ask.routes.get(rank)).map_or(&[][..], Vec::as_slice);
            let mut places = std::collections::HashMap::new();
            for route in routes {
                let place = *places.entry(route.row).or_insert_with(|| {
                    made.rows.push(route.row);
                    (made.rows.len() - 1 - first) as i32
                });
                made.routes.extend([place, route.expert as i32, route.weight.to_bits() as i32]);
            }
            let (routes, rows) = ((made.routes.len() - before) / ROUTE, made.rows.len() - first);
            let layer = ask.map_or(0, |ask| ask.layer as i32);
            made.headers.extend([layer, routes as i32, rows as i32, i32::from(ask.is_some())]);
            made.route_counts.push(routes as u64);
            made.row_counts.push(rows as u64);
        }
        made
    }
}

/// What one rank sent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parcel {
    pub layer: u32,
    pub routes: usize,
    pub rows: usize,
    pub asks: bool,
}

/// The parcels of all ranks.
#[derive(Debug)]
pub(super) struct Incoming {
    pub parcels: Vec<Parcel>,
}

impl Incoming {
    pub(super) fn of(headers: &[i32]) -> Result<Self> {
        let parcel = |header: &[i32]| {
            let count = |number: i32| usize::try_from(number).ok();
            let (layer, routes, rows) = (count(header[0])?, count(header[1])?, count(header[2])?);
            Some(Parcel { layer: layer as u32, routes, rows, asks: header[3] != 0 })
        };
        let parcels = headers.chunks_exact(HEADER).map(parcel).collect::<Option<_>>();
        let broken = || Error::Shape { operation: "round", cause: "a header has negative counts".into() };
        Ok(Self { parcels: parcels.ok_or_else(broken)? })
    }

    /// Whether anybody asks anything of anybody.
    pub(super) fn is_any(&self) -> bool {
        self.parcels.iter().any(|parcel| parcel.asks)
    }

    pub(super) fn rows(&self) -> usize {
        self.parcels.iter().map(|parcel| parcel.rows).sum()
    }

    pub(super) fn routes(&self) -> usize {
        self.parcels.iter().map(|parcel| parcel.routes).sum()
    }

    /// By sender, how many times `numbers` there are for each of its routes or rows.
    pub(super) fn counts(&self, of: impl Fn(&Parcel) -> usize, numbers: usize) -> Vec<u64> {
        self.parcels.iter().map(|parcel| (of(parcel) * numbers) as u64).collect()
    }

    /// Routes of all senders by their layer, with the place of their results; rows are counted over all parcels.
    /// `missing[sender]` says which sender gets nothing: the first expert that `holds` denies.
    pub(super) fn work(
        &self,
        numbers: &[i32],
        holds: impl Fn(u32, u32) -> bool,
    ) -> Result<(Vec<(u32, Vec<(u32, Route)>)>, Vec<Option<u32>>)> {
        let broken = |cause: &str| Error::Shape { operation: "round", cause: cause.to_owned() };
        let mut layers: Vec<(u32, Vec<(u32, Route)>)> = Vec::new();
        let mut missing = Vec::with_capacity(self.parcels.len());
        let (mut first_row, mut place) = (0usize, 0u32);
        let mut routes = numbers.chunks_exact(ROUTE);
        for parcel in &self.parcels {
            let mut wanted = Vec::with_capacity(parcel.routes);
            let mut lacks = None;
            for _ in 0..parcel.routes {
                let route = routes.next().ok_or_else(|| broken("fewer routes than were announced"))?;
                let row = usize::try_from(route[0]).ok().filter(|row| *row < parcel.rows);
                let row = row.ok_or_else(|| broken("a route names a row that was not sent"))? + first_row;
                let expert = u32::try_from(route[1]).map_err(|_| broken("a negative expert"))?;
                if lacks.is_none() && !holds(parcel.layer, expert) {
                    lacks = Some(expert);
                }
                let weight = f32::from_bits(route[2] as u32);
                wanted.push((place, Route { row: row as u32, expert, weight }));
                place += 1;
            }
            first_row += parcel.rows;
            missing.push(lacks);
            if lacks.is_some() || wanted.is_empty() {
                continue;
            }
            match layers.iter_mut().find(|(layer, _)| *layer == parcel.layer) {
                Some((_, list)) => list.extend(wanted),
                None => layers.push((parcel.layer, wanted)),
            }
        }
        Ok((layers, missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(row: u32, expert: u32) -> Route {
        Route { row, expert, weight: 0.5 + expert as f32 }
    }

    #[test]
    fn what_is_sent_is_what_comes() {
        let ask = |layer, routes| RoundAsk { layer, x: Vec::new(), routes };
        let asks = [
            Some(ask(3, vec![vec![route(1, 4), route(2, 4), route(1, 9)], vec![route(2, 7)]])),
            Some(ask(3, vec![vec![route(0, 4)], vec![]])),
        ];
        let sent: Vec<Outgoing> = asks.iter().map(|ask| Outgoing::of(ask.as_ref(), 2)).collect();
        assert_eq!(sent[0].rows, [1, 2, 2], "row 1 goes to rank 0 once, row 2 to both");
        assert_eq!((&sent[0].route_counts[..], &sent[0].row_counts[..]), (&[3, 1][..], &[2, 1][..]));
        // rank 0 gets the first parcel of both
        let headers = [&sent[0].headers[..HEADER], &sent[1].headers[..HEADER]].concat();
        let incoming = Incoming::of(&headers).unwrap();
        assert_eq!((incoming.rows(), incoming.routes(), incoming.is_any()), (3, 4, true));
        let numbers = [&sent[0].routes[..3 * ROUTE], &sent[1].routes[..ROUTE]].concat();
        let (work, missing) = incoming.work(&numbers, |_, _| true).unwrap();
        let expected =
            vec![(0, route(0, 4)), (1, route(1, 4)), (2, route(0, 9)), (3, Route { row: 2, ..route(0, 4) })];
        assert_eq!((work, missing), (vec![(3, expected)], vec![None, None]), "one layer, one piece of work");
        let (work, missing) = incoming.work(&numbers, |_, expert| expert != 9).unwrap();
        assert_eq!(missing, [Some(9), None]);
        assert_eq!(work[0].1, [(3, Route { row: 2, ..route(0, 4) })]);
    }

    #[test]
    fn who_asks_nothing_takes_part() {
        let sent = Outgoing::of(None, 3);
        assert_eq!((sent.headers.len(), sent.rows.len()), (3 * HEADER, 0));
        let incoming = Incoming::of(&sent.headers).unwrap();
        assert!(!incoming.is_any());
        assert_eq!(incoming.work(&[], |_, _| false).unwrap().1, [None, None, None]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Incoming::of(&[0, -1, 0, 1]).is_err());
        let incoming = Incoming::of(&[0, 1, 1, 1]).unwrap();
        for numbers in [&[1, 0, 0][..], &[-1, 0, 0], &[0, -1, 0], &[]] {
            assert!(incoming.work(numbers, |_, _| true).is_err(), "{numbers:?}");
        }
    }
}
