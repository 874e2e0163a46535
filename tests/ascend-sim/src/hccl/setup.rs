//! Making communicators.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::context::current;
use crate::failure::{Outcome, fail};
use crate::hccl::address;
use crate::hccl::codes::{self, runtime};
use crate::hccl::comm::{Comm, Parts};
use crate::hccl::mesh::Door;
use crate::hccl::message::Limit;
use crate::hccl::rank_table::RankTable;
use crate::hccl::root::{self, Hello, MOST_RANKS, ROOT_INFO_BYTES, RootInfo};
use crate::hccl::settings::Settings;
use crate::lock;
use crate::machine::{Device, Machine, machine};

static PROCESS: LazyLock<u64> = LazyLock::new(random);

// the standard library seeds its hashers from the system's random numbers
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn base_port() -> Outcome<Option<u16>> {
    let Ok(text) = std::env::var("HCCL_IF_BASE_PORT") else { return Ok(None) };
    match text.parse() {
        Ok(port @ 1024..) => Ok(Some(port)),
        _ => fail(codes::PARA, format!("HCCL_IF_BASE_PORT {text:?} is out of range")),
    }
}

/// Opens a meeting in this process and answers the bytes that the ranks come to it with.
pub fn root_info() -> Outcome<[u8; ROOT_INFO_BYTES]> {
    let device = runtime(current())?.device.clone();
    runtime(device.check())?;
    let settings = Settings::from_env()?;
    let listener = root::bind(address::host()?, base_port()?)?;
    let address = listener
        .local_addr()
        .or_else(|error| fail(codes::SYSCALL, format!("the listener's address: {error}")))?;
    let id = format!("{:016x}{:016x}", random(), random());
    let name = format!("{}%sim_{}_{}_{}", address.ip(), address.port(), device.id, &id[..16]);
    root::open(listener, id.clone(), name, settings.connect);
    RootInfo { address, id }.encode()
}

/// Who joins a meeting.
struct Guest {
    machine: Arc<Machine>,
    device: Arc<Device>,
    settings: Settings,
    rank: u32,
    ranks: u32,
}

impl Guest {
    fn here(settings: Settings, rank: u32, ranks: u32) -> Outcome<Self> {
        let context = runtime(current())?;
        Self::on(context.machine.clone(), context.device.clone(), settings, rank, ranks)
    }

    fn on(
        machine: Arc<Machine>,
        device: Arc<Device>,
        settings: Settings,
        rank: u32,
        ranks: u32,
    ) -> Outcome<Self> {
        if ranks == 0 || ranks > MOST_RANKS || rank >= ranks {
            return fail(codes::PARA, format!("rank {rank} of {ranks}"));
        }
        runtime(device.check())?;
        Ok(Self { machine, device, settings, rank, ranks })
    }

    fn join(self, meeting: SocketAddr, id: &str, patient: bool) -> Outcome<Arc<Comm>> {
        let device = self.device.clone();
        let alive = move || runtime(device.check());
        let limit = Limit { until: Instant::now() + self.settings.connect, alive: &alive };
        let listener = root::bind(address::host()?, None)?;
        let address = listener
            .local_addr()
            .or_else(|error| fail(codes::SYSCALL, format!("the listener's address: {error}")))?;
        let hello = Hello {
            id: id.into(),
            ranks: self.ranks,
            rank: self.rank,
            place: (*PROCESS, self.device.id as u32),
            buffer_mb: self.settings.buffer_mb,
            name: self.settings.name.clone(),
            address,
        };
        let answer = root::join(meeting, &hello, patient, &limit)?;
        let mut door = Door::new(listener);
        let links = door.connect(id, self.rank as usize, &answer.addresses, &limit)?;
        let parts = Parts {
            name: answer.name,
            id: id.into(),
            rank: self.rank as usize,
            addresses: answer.addresses,
            device: self.device,
            machine: self.machine,
            settings: self.settings,
            is_sub: false,
        };
        Ok(Comm::new(parts, door, links))
    }
}

/// Joins the ranks that were given the same root info.
pub fn by_root(ranks: u32, info: &[u8], rank: u32, settings: Settings) -> Outcome<Arc<Comm>> {
    let info = RootInfo::decode(info)?;
    Guest::here(settings, rank, ranks)?.join(info.address, &info.id, false)
}

/// Joins the ranks of a rank table. Rank 0's host is where they meet.
pub fn by_table(path: &str, rank: u32, settings: Settings) -> Outcome<Arc<Comm>> {
    let chip = runtime(machine())?.chip;
    let json = std::fs::read_to_string(path)
        .or_else(|error| fail(codes::OPEN_FILE, format!("rank table {path:?}: {error}")))?;
    let table = RankTable::parse(&json, chip)?;
    let id = format!("{:016x}", fingerprint(json.as_bytes()));
    let guest = Guest::here(settings, rank, table.ranks)?;
    let meeting = table.meeting(base_port()?);
    if rank == 0 {
        // exactly this port: the others know no other
        let listener = std::net::TcpListener::bind(meeting)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .or_else(|error| fail(codes::TCP_CONNECT, format!("rank 0 at {meeting}: {error}")))?;
        root::open(listener, id.clone(), "hccl_world_group".into(), guest.settings.connect);
    }
    guest.join(meeting, &id, true)
}

// FNV-1a: the same in all processes
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Makes the communicators of several devices of this process, the ranks in the order of the devices.
pub fn all(devices: &[i32]) -> Outcome<Vec<Arc<Comm>>> {
    let machine = runtime(machine())?;
    let settings = Settings::from_env()?;
    let chosen = devices
        .iter()
        .map(|device| runtime(machine.device(*device)).cloned())
        .collect::<Outcome<Vec<_>>>()?;
    let ranks = devices.len() as u32;
    let guests = (0..)
        .zip(chosen)
        .map(|(rank, device)| Guest::on(machine.clone(), device, settings.clone(), rank, ranks))
        .collect::<Outcome<Vec<_>>>()?;
    let listener = root::bind(address::host()?, base_port()?)?;
    let meeting = listener
        .local_addr()
        .or_else(|error| fail(codes::SYSCALL, format!("the listener's address: {error}")))?;
    let id = format!("{:016x}{:016x}", random(), random());
    let name = format!("{}%sim_{}_all_{}", meeting.ip(), meeting.port(), &id[..16]);
    root::open(listener, id.clone(), name, settings.connect);
    let joins: Vec<_> = guests
        .into_iter()
        .map(|guest| {
            let id = id.clone();
            std::thread::spawn(move || guest.join(meeting, &id, false))
        })
        .collect();
    let joined: Vec<_> = joins
        .into_iter()
        .map(|join| {
            join.join()
                .unwrap_or_else(|_| fail(codes::INTERNAL, "the simulator panicked: see its standard error"))
        })
        .collect();
    joined.into_iter().collect()
}

/// Splits a communicator: those of its ranks, by number, that are in the new one.
pub fn split(parent: &Comm, ranks: &[u32], id: u64, rank: u32, settings: Settings) -> Outcome<Arc<Comm>> {
    if parent.is_sub {
        return fail(codes::NOT_SUPPORT, "a communicator that was split can't be split again");
    }
    let count = ranks.len() as u32;
    let guest = Guest::on(parent.machine.clone(), parent.device.clone(), settings, rank, count)?;
    let ordered = ranks.windows(2).all(|pair| pair[0] < pair[1]);
    let known = ranks.last().is_some_and(|last| (*last as usize) < parent.size());
    if !ordered || !known || ranks[rank as usize] as usize != parent.rank {
        return fail(codes::PARA, format!("ranks {ranks:?}, of which rank {} is number {rank}", parent.rank));
    }
    let addresses: Vec<_> = ranks.iter().map(|rank| parent.addresses[*rank as usize]).collect();
    let name = guest.settings.name.clone().unwrap_or_else(|| format!("{}_sub_{id}", parent.name));
    let id = format!("{}/{name}/{ranks:?}", parent.id);
    let device = parent.device.clone();
    let alive = move || runtime(device.check());
    let limit = Limit { until: Instant::now() + guest.settings.connect, alive: &alive };
    let links = lock(parent.door()).connect(&id, rank as usize, &addresses, &limit)?;
    let parts = Parts {
        name,
        id,
        rank: rank as usize,
        addresses,
        device: guest.device,
        machine: guest.machine,
        settings: guest.settings,
        is_sub: true,
    };
    // it is never split itself, so its own door leads nowhere
    Ok(Comm::new(parts, Door::new(root::bind(address::host()?, None)?), links))
}
