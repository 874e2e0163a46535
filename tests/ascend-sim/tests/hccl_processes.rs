//! Collectives between processes: this test starts itself as the ranks and tells them what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a failed step ends the test")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::ranks::*;
use common::*;

const ROLE: &str = "BELAY_SIM_TEST_RANK";

/// A process with one rank. It answers each line that it is given.
struct Process {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    fn start(machine: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rank", "--ignored", "--nocapture"])
            .env(ROLE, "1")
            .env("BELAY_ASCEND_SIM", machine)
            .env("HCCL_IF_IP", "127.0.0.1")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                // the test harness of the child writes lines too
                if let Some((_, answer)) = line.split_once('@')
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, input, answers }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    #[track_caller]
    fn answer(&self) -> String {
        self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer within a minute")
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process was started by this test and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // one that has ended is waited for all the same
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(size: usize, machine: &str, variables: &[(&str, &str)]) -> Vec<Process> {
    (0..size).map(|_| Process::start(machine, variables)).collect()
}

/// Tells all, and only then waits for the answers.
#[track_caller]
fn ask_all(all: &mut [Process], line: impl Fn(usize) -> String) -> Vec<String> {
    all.iter_mut().enumerate().for_each(|(rank, process)| process.tell(&line(rank)));
    all.iter().map(Process::answer).collect()
}

/// Makes a communicator of the processes.
#[track_caller]
fn connect(all: &mut [Process], name: &str) {
    let info = all[0].ask("root");
    let size = all.len();
    let codes = ask_all(all, |rank| format!("join {name} {size} {rank} {info}"));
    assert!(codes.iter().all(|code| code == "0"), "{codes:?}");
}

#[track_caller]
fn same(answers: &[String], expected: &str) {
    assert!(answers.iter().all(|answer| answer == expected), "{answers:?}, expected {expected}");
}

const MACHINE: &str = r#"{"devices":2,"memory_bytes":67108864}"#;

#[test]
fn all_collectives_between_processes() {
    let mut all = start(4, MACHINE, &[("HCCL_BUFFSIZE", "1")]);
    connect(&mut all, "x");
    for seed in 0..6 {
        for op in ["allreduce", "reducescatter", "allgather", "broadcast", "alltoall", "alltoallv", "ring"] {
            same(&ask_all(&mut all, |_| format!("{op} x {seed}")), "0");
        }
    }
    // two communicators beside each other, then one after the other
    connect(&mut all, "y");
    same(&ask_all(&mut all, |_| "both x y".into()), "0");
    same(&ask_all(&mut all, |_| "destroy x".into()), "0");
    same(&ask_all(&mut all, |_| "alltoallv y 9".into()), "0");
    same(&ask_all(&mut all, |_| "destroy y".into()), "0");
    let before = ask_all(&mut all, |_| "resources".into());
    for _ in 0..5 {
        connect(&mut all, "z");
        same(&ask_all(&mut all, |_| "allreduce z 1".into()), "0");
        same(&ask_all(&mut all, |_| "destroy z".into()), "0");
    }
    assert_eq!(ask_all(&mut all, |_| "resources".into()), before);
}

#[test]
fn a_killed_process() {
    let mut all = start(4, MACHINE, &[]);
    connect(&mut all, "x");
    for ranks in (2..=4).rev() {
        same(&ask_all(&mut all, |_| "allreduce x 1".into()), "0");
        // the others are in a collective when the last one dies
        all[..ranks - 1].iter_mut().for_each(|process| process.tell("allreduce x 2"));
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        all[ranks - 1].signal(libc::SIGKILL);
        let codes: Vec<String> = all[..ranks - 1].iter().map(Process::answer).collect();
        same(&codes, "507057");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        all.truncate(ranks - 1);
        same(&ask_all(&mut all, |_| "error x".into()), "21");
        same(&ask_all(&mut all, |_| "destroy x".into()), "0");
        connect(&mut all, "x");
        same(&ask_all(&mut all, |_| "alltoallv x 3".into()), "0");
    }
}

#[test]
fn a_stopped_process() {
    let mut all = start(3, MACHINE, &[("HCCL_EXEC_TIMEOUT", "1")]);
    connect(&mut all, "x");
    same(&ask_all(&mut all, |_| "allreduce x 1".into()), "0");
    all[2].signal(libc::SIGSTOP);
    let start = Instant::now();
    let codes = ask_all(&mut all[..2], |_| "allreduce x 2".into());
    same(&codes, "107020");
    assert!((900..20_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    all[2].signal(libc::SIGCONT);
    same(&ask_all(&mut all, |_| "destroy x".into()), "0");
    connect(&mut all, "x");
    same(&ask_all(&mut all, |_| "allreduce x 3".into()), "0");
}

#[test]
fn a_device_of_another_process_is_lost() {
    let mut all = start(3, MACHINE, &[]);
    connect(&mut all, "x");
    all[..2].iter_mut().for_each(|process| process.tell("allreduce x 2"));
    assert_eq!(all[2].ask("lose"), "0");
    let codes: Vec<String> = all[..2].iter().map(Process::answer).collect();
    same(&codes, "507057");
    same(&ask_all(&mut all[..2], |_| "error x".into()), "21");
    same(&ask_all(&mut all, |_| "destroy x".into()), "0");
    // it comes back and is taken in again
    assert_eq!(all[2].ask("heal"), "0");
    connect(&mut all, "x");
    same(&ask_all(&mut all, |_| "allreduce x 3".into()), "0");
}

#[test]
fn a_process_that_dies_before_all_have_met() {
    let mut all = start(3, MACHINE, &[]);
    let info = all[0].ask("root");
    all[1].tell(&format!("join x 3 1 {info}"));
    all[2].tell(&format!("join x 3 2 {info}"));
    std::thread::sleep(Duration::from_millis(100));
    all[2].signal(libc::SIGKILL);
    assert_eq!(all[1].answer(), "13");
    // and when the root's process is gone, nobody waits for it
    let info = all[0].ask("root");
    all[0].signal(libc::SIGKILL);
    all[0].child.wait().unwrap();
    assert_eq!(all[1].ask(&format!("join x 2 1 {info}")), "11");
}

/// A rank table with this host as the only server.
fn table(version: &str, ranks: usize) -> String {
    let device = |rank: usize| match version {
        "1.2" => format!(r#"{{"device_id":"{rank}","super_device_id":"{rank}","rank_id":"{rank}"}}"#),
        _ => format!(r#"{{"device_id":"{rank}","device_ip":"192.168.1.{rank}","rank_id":"{rank}"}}"#),
    };
    let rank = |rank: usize| {
        format!(
            r#"{{"rank_id":{rank},"local_id":{rank},"device_id":{rank},"level_list":[
                {{"net_layer":0,"rank_addr_list":[{{"addr_type":"EID","addr":"000000000000000000100000dfdf0020"}}]}},
                {{"net_layer":3,"rank_addr_list":[{{"addr_type":"IPV4","addr":"127.0.0.1"}}]}}]}}"#
        )
    };
    if version == "2.0" {
        let list = (0..ranks).map(rank).collect::<Vec<_>>().join(",");
        return format!(
            r#"{{"version":"2.0","status":"completed","rank_count":{ranks},"rank_list":[{list}]}}"#
        );
    }
    let list = (0..ranks).map(device).collect::<Vec<_>>().join(",");
    let pods = match version {
        "1.2" => r#","super_pod_list":[{"super_pod_id":"0","server_list":[{"server_id":"node"}]}]"#,
        _ => "",
    };
    format!(
        r#"{{"version":"{version}","status":"completed","server_count":"1","server_list":[
            {{"server_id":"node","host_ip":"127.0.0.1","device":[{list}]}}]{pods}}}"#
    )
}

#[test]
fn rank_tables() {
    let directory = std::env::temp_dir().join(format!("belay-rank-table-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    // a port that is free now
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let path = |version: &str| directory.join(version).to_string_lossy().into_owned();
    for version in ["1.0", "1.2", "2.0"] {
        std::fs::write(path(version), table(version, 3)).unwrap();
    }
    std::fs::write(path("waiting"), table("1.0", 3).replace("completed", "initializing")).unwrap();
    std::fs::write(path("twice"), table("1.0", 3).replace(r#""rank_id":"2""#, r#""rank_id":"1""#)).unwrap();
    std::fs::write(path("alone"), table("1.2", 3).replace(r#"[{"server_id":"node"}]"#, "[]")).unwrap();
    for (soc, fits) in [("Ascend910B3", "1.0"), ("Ascend910_9391", "1.2"), ("Ascend950DT_9571", "2.0")] {
        let machine = format!(r#"{{"devices":2,"soc":"{soc}"}}"#);
        let mut all = start(3, &machine, &[("HCCL_IF_BASE_PORT", &port)]);
        for version in ["1.0", "1.2", "2.0", "waiting", "twice", "alone"] {
            if version != fits {
                assert_eq!(all[0].ask(&format!("table x 0 {}", path(version))), "1", "{version} on {soc}");
            }
        }
        assert_eq!(all[0].ask(&format!("table x 3 {}", path(fits))), "1", "no rank 3");
        assert_eq!(all[0].ask(&format!("table x 0 {}", path("none"))), "10");
        // the others may be there before rank 0
        all[1..].iter_mut().enumerate().for_each(|(i, process)| {
            process.tell(&format!("table x {} {}", i + 1, path(fits)));
        });
        std::thread::sleep(Duration::from_millis(100));
        all[0].tell(&format!("table x 0 {}", path(fits)));
        same(&all.iter().map(Process::answer).collect::<Vec<_>>(), "0");
        same(&ask_all(&mut all, |_| "allreduce x 1".into()), "0");
        same(&ask_all(&mut all, |_| "destroy x".into()), "0");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Not a test of its own: what the processes that the others start run.
#[test]
#[ignore = "the tests of this file start it as their ranks"]
fn rank() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    rank::serve();
}

mod rank {
    use std::collections::HashMap;

    use super::*;

    /// Does what the lines of standard input say and answers each with a line.
    pub fn serve() {
        // SAFETY: null is allowed, and takes a number.
        unsafe {
            ok(aclInit(std::ptr::null()));
            ok(aclrtSetDevice(0));
        }
        let mut here = Here { comms: HashMap::new(), stream: stream() };
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            println!("@{}", here.answer(&words));
        }
    }

    struct Here {
        comms: HashMap<String, Handle>,
        stream: Handle,
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    impl Here {
        fn answer(&mut self, words: &[&str]) -> String {
            let number = |at: usize| words[at].parse::<usize>().unwrap();
            let code = match words[0] {
                // most of the bytes are zeros
                "root" => {
                    let info = root();
                    let end = info.iter().rposition(|byte| *byte != 0).unwrap();
                    return hex(&info[..=end]);
                }
                "join" => {
                    let mut info = bytes(words[4]);
                    info.resize(ROOT_INFO_BYTES, 0);
                    self.enter(words[1], join(number(2), &info, number(3)))
                }
                "table" => {
                    let path = std::ffi::CString::new(words[3]).unwrap();
                    let mut comm = NULL;
                    // SAFETY: the path ends with a zero byte, the pointer is writable.
                    let code = unsafe { HcclCommInitClusterInfo(path.as_ptr(), number(2) as u32, &mut comm) };
                    self.enter(words[1], if code == 0 { Ok(comm) } else { Err(code) })
                }
                // SAFETY: handles are looked up.
                "destroy" => unsafe { HcclCommDestroy(self.comms.remove(words[1]).unwrap()) },
                "error" => {
                    let mut error = 0;
                    // SAFETY: the pointer is writable.
                    ok(unsafe { HcclGetCommAsyncError(self.comms[words[1]], &mut error) });
                    error
                }
                "lose" => belaySimLoseDevice(0, 507_053),
                "heal" => belaySimHealDevice(0),
                "resources" => {
                    // the meetings' threads end on their own
                    std::thread::sleep(Duration::from_millis(200));
                    return format!("{:?} {}", resources(), live("comm"));
                }
                "both" => self.both(words[1], words[2]),
                op => self.collective(op, self.comms[words[1]], number(2) as u64),
            };
            code.to_string()
        }

        fn enter(&mut self, name: &str, joined: Result<Handle, i32>) -> i32 {
            match joined {
                Ok(comm) => {
                    self.comms.insert(name.into(), comm);
                    0
                }
                Err(code) => code,
            }
        }

        fn place(comm: Handle) -> (usize, usize) {
            let (mut size, mut rank) = (0, 0);
            // SAFETY: the pointers are writable.
            unsafe {
                ok(HcclGetRankSize(comm, &mut size));
                ok(HcclGetRankId(comm, &mut rank));
            }
            (size as usize, rank as usize)
        }

        /// Collectives of two communicators on two streams at a time.
        fn both(&self, first: &str, second: &str) -> i32 {
            let streams = [self.stream, stream()];
            let size = Self::place(self.comms[first]).0 as i32;
            for value in 0..30 {
                let memory = [Memory::of(&[value]), Memory::of(&[100 + value])];
                for (i, name) in [first, second].into_iter().enumerate() {
                    let pointer = memory[i].pointer;
                    // SAFETY: handles are looked up.
                    ok(unsafe { HcclAllReduce(pointer, pointer, 1, 2, 0, self.comms[name], streams[i]) });
                }
                for (i, base) in [0, 100].into_iter().enumerate() {
                    ok(sync(streams[i]));
                    assert_eq!(memory[i].values::<i32>(), [size * (base + value)]);
                }
            }
            // SAFETY: handles are looked up.
            unsafe { aclrtDestroyStream(streams[1]) }
        }

        /// Runs a collective of a size that the seed says, and compares with what a loop makes.
        fn collective(&self, op: &str, comm: Handle, seed: u64) -> i32 {
            let (size, rank) = Self::place(comm);
            let stream = self.stream;
            let mut random = Random::new(seed);
            // all sizes from nothing to more than the buffer
            let count = [0, 1, 30_000][random.below(3) as usize] * random.below(12) as usize;
            let value = |rank: usize, i: usize| (seed as i64 * 31 + (rank * 7 + i) as i64 % 1000) as i32;
            let brought = |rank, len: usize| (0..len).map(|i| value(rank, i)).collect::<Vec<i32>>();
            let n = count as u64;
            let from_len = if matches!(op, "reducescatter" | "alltoall") { count * size } else { count };
            let to_len = if matches!(op, "allgather" | "alltoall") { count * size } else { count };
            let (from, mut to) = (Memory::of(&brought(rank, from_len)), Memory::new::<i32>(to_len));
            let (p, q) = (from.pointer, to.pointer);
            let mut expected: Vec<i32> = Vec::new();
            // SAFETY: handles are looked up, arrays have one number for each rank.
            let code = unsafe {
                match op {
                    "allreduce" => {
                        expected
                            .extend((0..count).map(|i| (0..size).map(|rank| value(rank, i)).sum::<i32>()));
                        HcclAllReduce(p, q, n, 2, 0, comm, stream)
                    }
                    "reducescatter" => {
                        let mine = rank * count..(rank + 1) * count;
                        expected.extend(mine.map(|i| (0..size).map(|rank| value(rank, i)).max().unwrap()));
                        HcclReduceScatter(p, q, n, 2, 2, comm, stream)
                    }
                    "allgather" => {
                        expected.extend((0..size).flat_map(|rank| brought(rank, count)));
                        HcclAllGather(p, q, n, 2, comm, stream)
                    }
                    "broadcast" => {
                        let root = seed as usize % size;
                        expected.extend(brought(root, count));
                        to = from;
                        HcclBroadcast(p, n, 2, root as u32, comm, stream)
                    }
                    "alltoall" => {
                        let part = |peer| brought(peer, count * size)[rank * count..][..count].to_vec();
                        expected.extend((0..size).flat_map(part));
                        HcclAlltoAll(p, n, 2, q, n, 2, comm, stream)
                    }
                    "alltoallv" => {
                        let gives = |from: usize, to: usize| (from * 13 + to * 5 + seed as usize) % 4 * 9_999;
                        let out: Vec<u64> = (0..size).map(|peer| gives(rank, peer) as u64).collect();
                        let back: Vec<u64> = (0..size).map(|peer| gives(peer, rank) as u64).collect();
                        let firsts = |counts: &[u64]| {
                            (0..size).map(|i| counts[..i].iter().sum()).collect::<Vec<u64>>()
                        };
                        let (out_firsts, back_firsts) = (firsts(&out), firsts(&back));
                        let from = Memory::of(&brought(rank, out.iter().sum::<u64>() as usize));
                        to = Memory::new::<i32>(back.iter().sum::<u64>() as usize);
                        for peer in 0..size {
                            let first: usize = (0..rank).map(|other| gives(peer, other)).sum();
                            expected.extend((first..first + gives(peer, rank)).map(|i| value(peer, i)));
                        }
                        let code = HcclAlltoAllV(
                            from.pointer,
                            out.as_ptr().cast(),
                            out_firsts.as_ptr().cast(),
                            2,
                            to.pointer,
                            back.as_ptr().cast(),
                            back_firsts.as_ptr().cast(),
                            2,
                            comm,
                            stream,
                        );
                        // its memory has to stay until it is done
                        ok(code);
                        sync(stream)
                    }
                    "ring" => {
                        let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
                        expected.extend(brought(last, count));
                        if rank == 0 {
                            ok(HcclRecv(q, n, 2, last as u32, comm, stream));
                            HcclSend(p, n, 2, next as u32, comm, stream)
                        } else {
                            ok(HcclSend(p, n, 2, next as u32, comm, stream));
                            HcclRecv(q, n, 2, last as u32, comm, stream)
                        }
                    }
                    other => panic!("{other}"),
                }
            };
            let code = if code == 0 { sync(stream) } else { code };
            if code == 0 {
                assert!(to.values::<i32>() == expected, "{op} {seed}");
            }
            code
        }
    }
}
