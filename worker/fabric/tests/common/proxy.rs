//! A relay of TCP connections that does to them what networks do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Mode {
    /// Holds every byte back, and closes nothing: as a process that is stopped, whose kernel still acknowledges.
    silent: AtomicBool,
    /// Closes what comes.
    down: AtomicBool,
    latency_millis: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

pub struct Proxy {
    pub address: SocketAddr,
    mode: Arc<Mode>,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(Mode::default());
        let shared = Arc::clone(&mode);
        // ends with the test process; its connections end with either side
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                if shared.down.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target) else { continue };
                shared.open.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (from, to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))] {
                    let mode = Arc::clone(&shared);
                    std::thread::spawn(move || relay(from.unwrap(), to.unwrap(), &mode));
                }
            }
        });
        Self { address, mode }
    }

    pub fn set_silent(&self, silent: bool) {
        self.mode.silent.store(silent, Ordering::Release);
    }

    pub fn set_latency(&self, latency: Duration) {
        self.mode.latency_millis.store(latency.as_millis() as u64, Ordering::Release);
    }

    /// Closes everything, and what comes next as well if it goes down.
    pub fn cut(&self, down: bool) {
        self.mode.down.store(down, Ordering::Release);
        for socket in self.mode.open.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, mode: &Mode) {
    let mut piece = [0u8; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        std::thread::sleep(Duration::from_millis(mode.latency_millis.load(Ordering::Acquire)));
        while mode.silent.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
