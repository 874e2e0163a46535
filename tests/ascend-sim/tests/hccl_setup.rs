//! Making communicators: who comes, who does not, with what configuration and at which address.

mod common;

use std::time::{Duration, Instant};

use common::ranks::*;
use common::*;

const MACHINE: &str = r#"{"devices":8,"memory_bytes":4194304}"#;

const PARA: i32 = 1;
const PTR: i32 = 2;
const TIMEOUT: i32 = 9;

fn destroy(comm: Handle) {
    // SAFETY: handles are looked up.
    ok(unsafe { HcclCommDestroy(comm) });
}

#[test]
fn setting_up_fails_in_time() {
    let _sim = sim(MACHINE);
    let _variables = Variables::set(&[("HCCL_CONNECT_TIMEOUT", "0.4")]);
    let start = Instant::now();
    let info = root();
    assert_eq!(join(2, &info, 0), Err(TIMEOUT), "the other rank never comes");
    assert!((300..20_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(join(2, &info, 0), Err(11), "nobody listens there any more");
    assert_eq!(join(2, &[7; ROOT_INFO_BYTES], 0), Err(PARA));
    let info = root();
    assert_eq!(join(2, &info, 2), Err(PARA));
    assert_eq!(join(0, &info, 0), Err(PARA));
    let info = root();
    let codes = devices(2, |rank| join(2, &info, rank / 2).unwrap_err());
    assert_eq!(codes, [PARA; 2], "rank 0 is there twice");
    let info = root();
    let codes = devices(2, |rank| join(2 + rank, &info, rank).unwrap_err());
    assert_eq!(codes, [PARA; 2], "they don't agree on their number");
    let info = root();
    let codes = devices(2, |rank| join_with(2, &info, rank, &config(rank as u32 + 1, "")).unwrap_err());
    assert_eq!(codes, [PARA; 2], "they don't agree on the buffer");
    let info = root();
    let (one, two) = std::thread::scope(|scope| {
        let join = |rank| {
            // SAFETY: takes a number.
            ok(unsafe { aclrtSetDevice(1) });
            join(2, &info, rank).unwrap_err()
        };
        let other = scope.spawn(move || join(1));
        (join(0), other.join().unwrap())
    });
    assert_eq!((one, two), (PARA, PARA), "a device can't be two ranks");
    let mut comm = NULL;
    // SAFETY: null pointers are refused.
    unsafe {
        assert_eq!(HcclGetRootInfo(NULL), PTR);
        assert_eq!(HcclCommInitRootInfo(2, NULL, 0, &mut comm), PTR);
        assert_eq!(HcclCommInitRootInfo(2, info.as_ptr().cast(), 0, std::ptr::null_mut()), PTR);
        assert_eq!(HcclCommInitRootInfoConfig(2, info.as_ptr().cast(), 0, NULL, &mut comm), PTR);
    }
    assert_eq!(live("comm"), 0);
    std::thread::spawn(|| {
        let mut info = [0u8; ROOT_INFO_BYTES];
        // SAFETY: the bytes are writable.
        assert_eq!(unsafe { HcclGetRootInfo(info.as_mut_ptr().cast()) }, 15, "no device is set");
    })
    .join()
    .unwrap();
}

#[test]
fn configurations() {
    let _sim = sim(MACHINE);
    let try_config = |config: &[u8]| {
        let info = root();
        join_with(1, &info, 0, config)
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut config = config(10, "x");
        config[at..at + bytes.len()].copy_from_slice(bytes);
        try_config(&config)
    };
    assert_eq!(with(8, &[0]), Err(PARA), "magic");
    assert_eq!(with(12, &[0]), Err(PARA), "version");
    assert_eq!(with(0, &[20]), Err(PARA), "size");
    assert_eq!(with(24, &[0; 4]), Err(PARA), "a buffer of nothing");
    assert_eq!(with(28, &[3, 0, 0, 0]), Err(PARA), "deterministic");
    assert_eq!(with(32, &[b'a'; 128]), Err(PARA), "a name without end");
    let named = |config: &[u8], expected: Option<&str>| {
        let comm = try_config(config).unwrap();
        match expected {
            Some(expected) => assert_eq!(name(comm), expected),
            None => assert!(name(comm).contains("%sim_"), "{}", name(comm)),
        }
        comm
    };
    let comm = named(&config(10, "mine"), Some("mine"));
    assert_eq!(try_config(&config(10, "mine")), Err(PARA), "a name is used once");
    destroy(comm);
    // an older version has no name, a shorter one has no room for it, a newer one has more
    let mut old = config(10, "mine");
    old[12] = 2;
    destroy(named(&old, None));
    let mut short = config(10, "mine");
    short[0] = 32;
    destroy(named(&short[..32], None));
    let mut newer = config(10, "mine");
    newer.resize(2248, 0xFF);
    newer[..8].copy_from_slice(&2248u64.to_le_bytes());
    newer[12] = 11;
    destroy(named(&newer, Some("mine")));
    let _variables = Variables::set(&[("HCCL_BUFFSIZE", "none")]);
    let info = root_fails();
    assert_eq!(info, PARA);
}

fn root_fails() -> i32 {
    let mut info = [0u8; ROOT_INFO_BYTES];
    // SAFETY: the bytes are writable.
    unsafe { HcclGetRootInfo(info.as_mut_ptr().cast()) }
}

#[test]
fn the_address() {
    use belay_ascend_sim::hccl::address::choose;
    let ip = |text: &str| text.parse().unwrap();
    let all: Vec<(String, std::net::IpAddr)> = [
        ("lo", "127.0.0.1"),
        ("docker0", "172.17.0.1"),
        ("eth1", "10.0.0.2"),
        ("eth0", "fd00::1"),
        ("eth0", "10.0.0.1"),
        ("enp1", "10.1.0.1"),
    ]
    .map(|(name, address)| (name.to_owned(), ip(address)))
    .to_vec();
    let chosen = |names| choose(&all, names);
    assert_eq!(chosen(None), Some(ip("10.1.0.1")), "the first by name that is not special");
    assert_eq!(chosen(Some("eth")), Some(ip("10.0.0.1")));
    assert_eq!(chosen(Some("=eth1")), Some(ip("10.0.0.2")));
    assert_eq!(chosen(Some("=eth")), None);
    assert_eq!(chosen(Some("^e")), Some(ip("172.17.0.1")));
    assert_eq!(chosen(Some("^=enp1,eth0")), Some(ip("10.0.0.2")));
    assert_eq!(choose(&all[..2], None), Some(ip("172.17.0.1")), "docker's before the loopback");
    assert_eq!(choose(&all[..1], None), Some(ip("127.0.0.1")));
    let _sim = sim(MACHINE);
    let _variables = Variables::set(&[("HCCL_IF_IP", "127.0.0.1")]);
    group(2, |rank| assert!(name(rank.comm).starts_with("127.0.0.1%"), "{}", name(rank.comm)));
    let _variables = Variables::set(&[("HCCL_IF_IP", "here")]);
    assert_eq!(root_fails(), PARA);
}

#[test]
fn error_strings() {
    let _sim = sim(MACHINE);
    let text = |code| {
        // SAFETY: takes a number; the text is constant.
        unsafe { std::ffi::CStr::from_ptr(HcclGetErrorString(code)) }.to_str().unwrap()
    };
    assert_eq!([text(0), text(9), text(21), text(-5)], ["no error", "timeout", "error cqe", "unknown error"]);
}

#[test]
fn strangers_are_not_ranks() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let _sim = sim(MACHINE);
    let info = root();
    let address = belay_ascend_sim::hccl::root::RootInfo::decode(&info).unwrap().address;
    let _silent = TcpStream::connect(address).unwrap();
    let mut loud = TcpStream::connect(address).unwrap();
    loud.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let codes = devices(2, |rank| {
        let comm = join(2, &info, rank).unwrap();
        let stream = stream();
        let sum = sum_on(comm, stream, 3);
        destroy(comm);
        // SAFETY: handles are looked up.
        ok(unsafe { aclrtDestroyStream(stream) });
        sum
    });
    assert_eq!(codes, [Ok(6); 2]);
    // what was sent to it is not answered but the connection is closed
    assert!(matches!(loud.read(&mut [0; 8]), Ok(0) | Err(_)));
}
