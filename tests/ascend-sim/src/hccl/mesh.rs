//! The connections between all pairs of ranks.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Outcome, fail};
use crate::hccl::codes;
use crate::hccl::link::Link;
use crate::hccl::message::{Incoming, Limit, send, wait};
use crate::hccl::root::accept;

#[derive(Serialize, Deserialize)]
struct Greeting {
    // the communicator, and the rank that greets
    id: String,
    rank: usize,
}

/// Where a rank's peers connect to it.
pub struct Door {
    listener: TcpListener,
    strangers: Vec<Incoming>,
    // who greeted early, for a communicator that this rank is not at yet
    guests: Vec<(Greeting, TcpStream)>,
}

impl Door {
    /// A door with a listener that doesn't block.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, strangers: Vec::new(), guests: Vec::new() }
    }

    /// Connects a rank of communicator `id` with all others: it calls the lower ones, the higher ones call.
    /// The rank's own place stays empty.
    pub fn connect(
        &mut self,
        id: &str,
        rank: usize,
        addresses: &[SocketAddr],
        limit: &Limit<'_>,
    ) -> Outcome<Vec<Option<Link>>> {
        let mut links: Vec<Option<Link>> = addresses.iter().map(|_| None).collect();
        for (peer, address) in addresses.iter().enumerate().take(rank) {
            limit.check("connecting to a rank")?;
            let time = limit.rest().max(Duration::from_millis(1));
            let socket = TcpStream::connect_timeout(address, time)
                .or_else(|error| fail(codes::TCP_CONNECT, format!("rank {peer} at {address}: {error}")))?;
            let socket = Incoming::new(socket)?.socket;
            send(&socket, &Greeting { id: id.into(), rank }, limit)?;
            links[peer] = Some(Link::new(socket));
        }
        loop {
            self.listen();
            while let Some(at) = self.guests.iter().position(|(greeting, _)| greeting.id == id) {
                let (greeting, socket) = self.guests.swap_remove(at);
                if let Some(link @ None) = links.get_mut(greeting.rank).filter(|_| greeting.rank > rank) {
                    *link = Some(Link::new(socket));
                }
            }
            let Some(missing) = (rank + 1..links.len()).find(|peer| links[*peer].is_none()) else {
                return Ok(links);
            };
            limit.check(&format!("waiting for rank {missing} to connect"))?;
            let sockets = self.strangers.iter().map(|from| from.socket.as_raw_fd());
            let waited: Vec<_> = sockets.chain([self.listener.as_raw_fd()]).map(|fd| (fd, false)).collect();
            wait(&waited, limit.look());
        }
    }

    fn listen(&mut self) {
        accept(&self.listener, &mut self.strangers);
        for mut stranger in std::mem::take(&mut self.strangers) {
            match stranger.poll::<Greeting>() {
                Ok(None) => self.strangers.push(stranger),
                Ok(Some(greeting)) => self.guests.push((greeting, stranger.socket)),
                // not a rank
                Err(_) => {}
            }
        }
    }
}
