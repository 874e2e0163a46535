//! The decoder: what was encoded comes back; nothing else panics or takes memory that was not sent.
#![allow(clippy::unwrap_used, reason = "tests")]

use belay_backend::Route;
use belay_fabric::RowFormat;
use belay_fabric::wire::{
    self, Ask, Failure, HEADER_BYTES, Header, Hello, Kind, Purpose, WireError, WireIdentity, Word,
};
use proptest::prelude::*;

const HIDDEN: usize = 6;
const FORMAT: RowFormat = RowFormat::F32;

fn header(bytes: &[u8]) -> Result<Header, WireError> {
    match bytes.first_chunk::<HEADER_BYTES>() {
        Some(raw) => wire::parse_header(raw),
        None => Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Header and body of one whole frame.
fn split(frame: &[u8]) -> Result<(Header, &[u8]), WireError> {
    let header = header(frame)?;
    match frame.get(HEADER_BYTES..HEADER_BYTES + header.body as usize) {
        Some(body) => Ok((header, body)),
        None => Err(WireError::Io(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// An ask as the server takes it in: head, routes, then rows.
fn parse_ask(header: &Header, body: &[u8], ask: &mut Ask) -> Result<(), WireError> {
    let head = wire::parse_ask_head(header, body, FORMAT, HIDDEN)?;
    ask.layer = head.layer;
    let (routes, rows) = body[16..].split_at(head.routes as usize * 12);
    wire::read_ask_routes(header, &head, routes, ask)?;
    for row in rows.chunks_exact(FORMAT.row_bytes(HIDDEN)) {
        let first = ask.x.len();
        ask.x.resize(first + HIDDEN, 0.0);
        FORMAT.decode(row, &mut ask.x[first..]);
    }
    Ok(())
}

/// Reads any frame as its kind says, and returns how many bytes of buffers that left behind.
fn decode(bytes: &[u8], routes: usize) -> Result<usize, WireError> {
    let (header, body) = split(bytes)?;
    let reserved = match header.kind {
        Kind::Hello => wire::parse_hello(&header, body).map(|_| 0)?,
        Kind::Welcome => wire::parse_welcome(&header, body).map(|_| 0)?,
        Kind::Refuse => wire::parse_refuse(&header, body).map(|text| text.capacity())?,
        Kind::Prove => wire::parse_prove(&header, body).map(|_| 0)?,
        Kind::Failed => match wire::parse_failed(&header, body)? {
            Failure::NotResident { experts, .. } => experts.capacity() * 4,
            Failure::Other(text) => text.capacity(),
        },
        Kind::Ping | Kind::Pong => wire::parse_pulse(&header, body)?.map_or(0, |pairs| pairs.capacity() * 8),
        Kind::Ask => {
            let mut ask = Ask::default();
            parse_ask(&header, body, &mut ask)?;
            ask.x.capacity() * 4 + ask.routes.capacity() * size_of::<Route>() + ask.adopt.capacity() * 4
        }
        Kind::Result => wire::check_result(&header, body, FORMAT, HIDDEN, routes).map(|()| 0)?,
        Kind::Admitted => 0,
        Kind::Word => match wire::parse_word(&header, body)? {
            Word::Offer { members, root, .. } => members.capacity() * 4 + root.capacity(),
            Word::Decline { reason, .. } | Word::Break { reason, .. } => reason.capacity(),
            Word::Agree { .. } | Word::Join { .. } | Word::Ring { .. } => 0,
        },
    };
    assert!(reserved <= 4 * bytes.len() + 512 * 1024, "{reserved} bytes for {}", bytes.len());
    Ok(reserved)
}

fn identity() -> impl Strategy<Value = WireIdentity> {
    let numbers = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>());
    (".{0,40}", ".{0,12}", "[0-9a-f]{0,64}", ".{0,40}", numbers).prop_map(
        |(group, revision, digest, uid, (worker, epoch, next_epoch, hidden, format))| WireIdentity {
            group,
            revision,
            digest,
            worker,
            uid,
            epoch,
            next_epoch,
            hidden,
            format,
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

/// A whole ask: what the encoder makes, and the rows that it leaves to the sender.
fn encode_ask(
    id: u64,
    layer: u32,
    x: &[f32],
    routes: &[Route],
    picked: &[u32],
    adopt: fn(u32) -> bool,
) -> (Vec<u8>, usize) {
    let (mut frame, mut rows) = (Vec::new(), Vec::new());
    wire::encode_ask(&mut frame, &mut rows, id, layer, (FORMAT, HIDDEN), routes, picked, adopt);
    for &row in &rows {
        FORMAT.encode(&x[row as usize * HIDDEN..][..HIDDEN], HIDDEN, &mut frame);
    }
    (frame, rows.len())
}

/// One valid frame of each kind that has a body.
fn frames(identity: &WireIdentity, x: &[f32], routes: &[Route]) -> Vec<Vec<u8>> {
    let picked: Vec<u32> = (0..routes.len() as u32).collect();
    let hello = Hello {
        from: identity.clone(),
        to_worker: 1,
        to_uid: "uid".into(),
        purpose: Purpose::Asks,
        nonce: [7; 32],
    };
    let mut frames = vec![encode_ask(1, 0, x, routes, &picked, |expert| expert % 2 == 0).0];
    let mut add = |make: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        make(&mut frame);
        frames.push(frame);
    };
    add(&|out| wire::encode_hello(out, &hello));
    add(&|out| wire::encode_welcome(out, identity, &[1; 32], |_| [2; 32]));
    add(&|out| wire::encode_prove(out, &[3; 32]));
    add(&|out| wire::encode_refuse(out, 1, "not yet"));
    add(&|out| wire::encode_result(out, 5, FORMAT, HIDDEN, &x[..HIDDEN]));
    add(&|out| wire::encode_pulse(out, Kind::Pong, 3, Some(&[(1, 2), (3, 4)])));
    let failure = Failure::NotResident { layer: 2, experts: vec![1, 5], reason: "no room".into() };
    add(&|out| wire::encode_failed(out, 5, &failure));
    frames
}

proptest! {
    #[test]
    fn an_ask_keeps_every_bit_and_sends_a_row_once((x, routes) in exchange(), keep in any::<u64>()) {
        let picked: Vec<u32> = (0..routes.len() as u32).filter(|i| keep >> (i % 64) & 1 == 1).collect();
        let (frame, rows) = encode_ask(7, 3, &x, &routes, &picked, |expert| expert % 3 == 0);
        let mut distinct: Vec<u32> = picked.iter().map(|&i| routes[i as usize].row).collect();
        distinct.dedup();
        prop_assert_eq!(rows, distinct.len());

        let (header, body) = split(&frame).unwrap();
        prop_assert_eq!((header.kind, header.id), (Kind::Ask, 7));
        prop_assert_eq!(HEADER_BYTES + body.len(), frame.len(), "nothing is left over");
        let mut ask = Ask::default();
        parse_ask(&header, body, &mut ask).unwrap();
        prop_assert_eq!(ask.layer, 3);
        prop_assert_eq!(ask.routes.len(), picked.len());
        let mut adopt: Vec<u32> = picked.iter().map(|&i| routes[i as usize].expert).filter(|e| e % 3 == 0).collect();
        adopt.sort_unstable();
        adopt.dedup();
        prop_assert_eq!(&ask.adopt, &adopt);
        for (found, &index) in ask.routes.iter().zip(&picked) {
            let sent = routes[index as usize];
            prop_assert_eq!(found.expert, sent.expert);
            prop_assert_eq!(found.weight.to_bits(), sent.weight.to_bits());
            let bits = |rows: &[f32], row: u32| -> Vec<u32> {
                rows[row as usize * HIDDEN..][..HIDDEN].iter().map(|v| v.to_bits()).collect()
            };
            prop_assert_eq!(bits(&ask.x, found.row), bits(&x, sent.row));
        }
    }

    #[test]
    fn a_result_keeps_every_bit(bits in prop::collection::vec(any::<u32>(), HIDDEN * 5)) {
        let sent: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
        let mut frame = Vec::new();
        wire::encode_result(&mut frame, 9, FORMAT, HIDDEN, &sent);
        let (header, body) = split(&frame).unwrap();
        wire::check_result(&header, body, FORMAT, HIDDEN, 5).unwrap();
        let mut y = [0.0; HIDDEN];
        for (row, bits) in body[wire::RESULT_PREFIX..].chunks_exact(4 * HIDDEN).zip(bits.chunks_exact(HIDDEN)) {
            FORMAT.decode(row, &mut y);
            let found = y.map(f32::to_bits);
            prop_assert_eq!(&found[..], bits);
        }
        prop_assert!(wire::check_result(&header, body, FORMAT, HIDDEN, 4).is_err(), "another number of routes");
        prop_assert!(wire::check_result(&header, body, RowFormat::Bf16, HIDDEN, 5).is_err(), "another format");
    }

    #[test]
    fn small_frames_come_back(
        from in identity(), to_worker in any::<u32>(), to_uid in ".{0,40}", nonce in any::<[u8; 32]>(),
        pairs in prop::collection::vec(any::<(u32, u32)>(), 0..50),
    ) {
        let hello = Hello { from: from.clone(), to_worker, to_uid: to_uid.clone(), purpose: Purpose::Pings, nonce };
        let mut frame = Vec::new();
        wire::encode_hello(&mut frame, &hello);
        let (header, body) = split(&frame).unwrap();
        prop_assert_eq!(wire::parse_hello(&header, body).unwrap(), hello);

        let mut proved = Vec::new();
        wire::encode_welcome(&mut frame, &from, &nonce, |body| { proved.extend_from_slice(body); [9; 32] });
        let (header, body) = split(&frame).unwrap();
        let welcome = wire::parse_welcome(&header, body).unwrap();
        prop_assert_eq!((&welcome.from, welcome.nonce, welcome.proof), (&from, nonce, [9; 32]));
        prop_assert_eq!(&body[..body.len() - 32], &proved[..]);

        wire::encode_prove(&mut frame, &nonce);
        let (header, body) = split(&frame).unwrap();
        prop_assert_eq!(wire::parse_prove(&header, body).unwrap(), nonce);

        for adopted in [None, Some(pairs.clone())] {
            wire::encode_pulse(&mut frame, Kind::Ping, 4, adopted.as_deref());
            let (header, body) = split(&frame).unwrap();
            prop_assert_eq!(wire::parse_pulse(&header, body).unwrap(), adopted);
        }
        let experts = pairs.iter().map(|pair| pair.0).collect();
        let failures = [Failure::NotResident { layer: to_worker, experts, reason: to_uid.clone() }, Failure::Other(to_uid)];
        for failure in failures {
            wire::encode_failed(&mut frame, 1, &failure);
            let (header, body) = split(&frame).unwrap();
            prop_assert_eq!(wire::parse_failed(&header, body).unwrap(), failure);
        }
    }

    #[test]
    fn words_come_back(
        circle in any::<u64>(), round in any::<u64>(), reason in ".{0,40}",
        members in prop::collection::vec(any::<u32>(), 0..200), root in prop::collection::vec(any::<u8>(), 0..4200),
    ) {
        let words = [
            Word::Offer { circle, members, root },
            Word::Agree { circle },
            Word::Decline { circle, reason: reason.clone() },
            Word::Join { circle },
            Word::Ring { circle, round },
            Word::Break { circle, reason },
        ];
        let mut frame = Vec::new();
        for word in words {
            wire::encode_word(&mut frame, &word);
            let (header, body) = split(&frame).unwrap();
            prop_assert_eq!((header.kind, word.circle()), (Kind::Word, circle));
            prop_assert_eq!(wire::parse_word(&header, body).unwrap(), word);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes, 3);
    }

    #[test]
    fn a_valid_header_before_random_bytes_never_panics_or_takes_memory(
        kind in 0u8..12, rest in prop::collection::vec(any::<u8>(), 0..300), lie in any::<u32>(), honest in any::<bool>(),
    ) {
        let mut frame = Vec::new();
        wire::encode_empty(&mut frame, Kind::Ping, 0);
        frame[6] = kind;
        let body = if honest { rest.len() as u32 } else { lie };
        frame[16..20].copy_from_slice(&body.to_le_bytes());
        frame.extend_from_slice(&rest);
        let _ = decode(&frame, 3);
    }

    #[test]
    fn a_changed_or_cut_frame_of_any_kind_never_panics(
        from in identity(), (x, routes) in exchange(), which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>(),
    ) {
        let all = frames(&from, &x, &routes);
        let mut frame = which.get(&all).clone();
        prop_assert!(decode(&frame, 1).is_ok());
        let kept = cut.index(frame.len());
        prop_assert!(decode(&frame[..kept], 1).is_err(), "a cut frame is an error");
        let at = at.index(frame.len());
        frame[at] ^= flip;
        let _ = decode(&frame, 1);
        // the length tells of the cut: the body's own counts are wrong instead
        frame[at] ^= flip;
        if kept >= HEADER_BYTES {
            frame.truncate(kept);
            frame[16..20].copy_from_slice(&((kept - HEADER_BYTES) as u32).to_le_bytes());
            let _ = decode(&frame, 1);
        }
    }
}

#[test]
fn a_lying_length_is_refused() {
    let (frame, _) = encode_ask(1, 0, &[0.0; HIDDEN], &[], &[], |_| false);
    let header = header(&frame).unwrap();
    let lie = |rows: u32, routes: u32, channels: u32, body: u32| {
        let prefix: Vec<u8> =
            [0, rows, routes, channels].iter().flat_map(|n: &u32| n.to_le_bytes()).collect();
        wire::parse_ask_head(&Header { body, ..header }, &prefix, FORMAT, HIDDEN)
    };
    assert!(lie(1, 0, HIDDEN as u32, 16 + 4 * HIDDEN as u32).is_ok());
    assert!(lie(2, 0, HIDDEN as u32, 16 + 4 * HIDDEN as u32).is_err());
    assert!(lie(1, 0, HIDDEN as u32 + 1, 16 + 4 * HIDDEN as u32).is_err());
    // sizes whose product overflows 32 bits
    assert!(lie(u32::MAX, u32::MAX, HIDDEN as u32, 16).is_err());
    assert!(wire::parse_ask_head(&header, &[0; 3], FORMAT, HIDDEN).is_err());
}

#[test]
fn an_exchange_of_any_size_fits_after_splitting() {
    for format in RowFormat::ALL {
        for hidden in [1, 128, 4096, 7168] {
            for bytes in [0, 1000, wire::LARGE_BODY, u32::MAX] {
                let routes = wire::routes_per_ask(bytes, format, hidden);
                assert!(routes >= 1);
                if routes > 1 {
                    let limit = bytes.min(wire::LARGE_BODY) as usize;
                    assert!(16 + routes * (format.row_bytes(hidden) + 12) <= limit, "ask of {hidden}");
                    assert!(8 + routes * format.row_bytes(hidden) <= limit, "result of {hidden}");
                }
            }
        }
    }
}
