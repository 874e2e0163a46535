//! The decoder: what was encoded comes back; nothing else panics or takes memory that was not sent.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Cursor, Read};

use belay_backend::Route;
use belay_fabric::wire::{self, Ask, Failure, Hello, Kind, WireError, WireIdentity};
use proptest::prelude::*;

const HIDDEN: usize = 6;

/// Reads any frame as its kind says, and returns how many bytes of buffers that left behind.
fn decode(bytes: &[u8], routes: usize) -> Result<usize, WireError> {
    let mut reader = Cursor::new(bytes);
    let header = wire::read_header(&mut reader)?;
    let reader = &mut reader;
    Ok(match header.kind {
        Kind::Hello => wire::read_hello(reader, &header).map(|_| 0)?,
        Kind::Welcome => wire::read_welcome(reader, &header).map(|_| 0)?,
        Kind::Refuse => wire::read_refuse(reader, &header).map(|_| 0)?,
        Kind::Failed => wire::read_failed(reader, &header).map(|_| 0)?,
        Kind::Ask => {
            let mut ask = Ask::default();
            let read = wire::read_ask(reader, &header, HIDDEN, &mut ask);
            let reserved = ask.x.capacity() * 4 + ask.routes.capacity() * size_of::<Route>();
            assert!(reserved <= 4 * bytes.len() + 512 * 1024, "{reserved} bytes for {}", bytes.len());
            read.map(|()| reserved)?
        }
        Kind::Result => {
            let mut y = Vec::new();
            let read = wire::read_result(reader, &header, HIDDEN, routes, &mut y);
            assert!(y.capacity() * 4 <= 4 * bytes.len() + 512 * 1024);
            read.map(|()| y.len())?
        }
        Kind::Ping | Kind::Pong => 0,
    })
}

fn identity() -> impl Strategy<Value = WireIdentity> {
    (".{0,40}", ".{0,12}", "[0-9a-f]{0,64}", any::<u32>(), ".{0,40}", any::<u64>(), any::<u32>()).prop_map(
        |(group, revision, digest, worker, uid, epoch, hidden)| WireIdentity {
            group,
            revision,
            digest,
            worker,
            uid,
            epoch,
            hidden,
        },
    )
}

prop_compose! {
    fn exchange()(rows in 1usize..9)(
        bits in prop::collection::vec(any::<u32>(), rows * HIDDEN),
        mut routes in prop::collection::vec((0..rows as u32, 0..50u32, any::<u32>()), 1..40),
    ) -> (Vec<f32>, Vec<Route>) {
        routes.sort_unstable();
        let routes = routes.into_iter().map(|(row, expert, weight)| Route { row, expert, weight: f32::from_bits(weight) });
        (bits.into_iter().map(f32::from_bits).collect(), routes.collect())
    }
}

proptest! {
    #[test]
    fn an_ask_keeps_every_bit_and_sends_a_row_once((x, routes) in exchange(), keep in any::<u64>()) {
        let picked: Vec<u32> = (0..routes.len() as u32).filter(|i| keep >> (i % 64) & 1 == 1).collect();
        let mut frame = Vec::new();
        let rows = wire::encode_ask(&mut frame, 7, 3, HIDDEN, &x, &routes, &picked);
        let mut distinct: Vec<u32> = picked.iter().map(|&i| routes[i as usize].row).collect();
        distinct.dedup();
        prop_assert_eq!(rows as usize, distinct.len());

        let mut reader = Cursor::new(&frame);
        let header = wire::read_header(&mut reader).unwrap();
        prop_assert_eq!((header.kind, header.id), (Kind::Ask, 7));
        let mut ask = Ask::default();
        wire::read_ask(&mut reader, &header, HIDDEN, &mut ask).unwrap();
        prop_assert_eq!(ask.layer, 3);
        prop_assert_eq!(ask.routes.len(), picked.len());
        for (found, &index) in ask.routes.iter().zip(&picked) {
            let sent = routes[index as usize];
            prop_assert_eq!(found.expert, sent.expert);
            prop_assert_eq!(found.weight.to_bits(), sent.weight.to_bits());
            let bits = |rows: &[f32], row: u32| -> Vec<u32> {
                rows[row as usize * HIDDEN..][..HIDDEN].iter().map(|v| v.to_bits()).collect()
            };
            prop_assert_eq!(bits(&ask.x, found.row), bits(&x, sent.row));
        }
        prop_assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nothing is left over");
    }

    #[test]
    fn a_result_keeps_every_bit(bits in prop::collection::vec(any::<u32>(), HIDDEN * 5)) {
        let sent: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
        let mut frame = Vec::new();
        wire::encode_result(&mut frame, 9, HIDDEN, &sent);
        let mut reader = Cursor::new(&frame);
        let header = wire::read_header(&mut reader).unwrap();
        let mut y = Vec::new();
        wire::read_result(&mut reader, &header, HIDDEN, 5, &mut y).unwrap();
        prop_assert_eq!(y.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), bits);
        let mut again = Cursor::new(&frame[wire::HEADER_BYTES..]);
        prop_assert!(wire::read_result(&mut again, &header, HIDDEN, 4, &mut y).is_err(), "another number of routes");
    }

    #[test]
    fn handshake_and_failure_frames_come_back(from in identity(), to_worker in any::<u32>(), to_uid in ".{0,40}") {
        let hello = Hello { from: from.clone(), to_worker, to_uid: to_uid.clone() };
        let mut frame = Vec::new();
        wire::encode_hello(&mut frame, &hello);
        let mut reader = Cursor::new(&frame);
        let header = wire::read_header(&mut reader).unwrap();
        prop_assert_eq!(wire::read_hello(&mut reader, &header).unwrap(), hello);

        wire::encode_welcome(&mut frame, &from);
        let mut reader = Cursor::new(&frame);
        let header = wire::read_header(&mut reader).unwrap();
        prop_assert_eq!(wire::read_welcome(&mut reader, &header).unwrap(), from);

        for failure in [Failure::NotResident { layer: to_worker, expert: 4 }, Failure::Other(to_uid)] {
            wire::encode_failed(&mut frame, 1, &failure);
            let mut reader = Cursor::new(&frame);
            let header = wire::read_header(&mut reader).unwrap();
            prop_assert_eq!(wire::read_failed(&mut reader, &header).unwrap(), failure);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, 3);
    }

    #[test]
    fn a_valid_header_before_random_bytes_never_panics_or_takes_memory(
        kind in 0u8..10, body in any::<u32>(), scale in 0u32..33, rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut frame = Vec::new();
        wire::encode_empty(&mut frame, Kind::Ping);
        frame[6] = kind;
        frame[16..20].copy_from_slice(&(u64::from(body) >> scale).to_le_bytes()[..4]);
        frame.extend_from_slice(&rest);
        let _ = decode(&frame, 3);
    }

    #[test]
    fn a_flipped_byte_or_a_cut_never_panics(
        (x, routes) in exchange(), at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>(),
    ) {
        let picked: Vec<u32> = (0..routes.len() as u32).collect();
        let mut frame = Vec::new();
        wire::encode_ask(&mut frame, 1, 0, HIDDEN, &x, &routes, &picked);
        prop_assert!(decode(&frame[..cut.index(frame.len())], 1).is_err(), "a cut frame is an error");
        let at = at.index(frame.len());
        frame[at] ^= flip;
        let _ = decode(&frame, 1);
    }
}

#[test]
fn an_announced_size_costs_the_sender_the_bytes() {
    let mut frame = Vec::new();
    wire::encode_ask(&mut frame, 1, 0, HIDDEN, &[0.0; HIDDEN], &[], &[]);
    // claims 64 MiB of rows and sends none of them
    let rows = (wire::LARGE_BODY - 16) / (4 * HIDDEN as u32);
    frame[16..20].copy_from_slice(&(16 + rows * 4 * HIDDEN as u32).to_le_bytes());
    frame[28..32].copy_from_slice(&rows.to_le_bytes());
    assert!(matches!(decode(&frame, 1), Err(WireError::Io(_))));
    // sizes whose product overflows 32 bits
    frame[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    frame[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode(&frame, 1), Err(WireError::Malformed { .. })));
}

#[test]
fn an_exchange_of_any_size_fits_after_splitting() {
    for hidden in [1, 128, 4096, 7168] {
        let routes = wire::routes_per_ask(hidden);
        assert!(16 + routes * (hidden * 4 + 12) <= wire::LARGE_BODY as usize, "ask of {hidden}");
        assert!(8 + routes * hidden * 4 <= wire::LARGE_BODY as usize, "result of {hidden}");
    }
}
