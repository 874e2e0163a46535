//! Bare blocking TCP: the same bytes, and nothing done with them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};

/// Asks with zeros.
pub struct Client {
    socket: TcpStream,
    out: Vec<u8>,
    result: Vec<u8>,
}

impl Client {
    /// Connects to a process that runs [`serve`].
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(address).context("the bare server")?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, out: Vec::new(), result: Vec::new() })
    }

    fn send(&mut self, ask: usize, result: usize) -> Result<()> {
        self.out.resize(ask, 0);
        self.out[..4].copy_from_slice(&(ask as u32).to_le_bytes());
        self.out[4..8].copy_from_slice(&(result as u32).to_le_bytes());
        Ok(self.socket.write_all(&self.out)?)
    }

    fn take(&mut self, result: usize) -> Result<()> {
        self.result.resize(result, 0);
        Ok(self.socket.read_exact(&mut self.result)?)
    }

    /// One message there, one back.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn round_trip(&mut self, ask: usize, result: usize) -> Result<()> {
        self.send(ask, result)?;
        self.take(result)
    }

    /// Messages of which `window` are under way.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn window(&mut self, ask: usize, result: usize, messages: usize, window: usize) -> Result<()> {
        for _ in 0..window.min(messages) {
            self.send(ask, result)?;
        }
        for answered in 1..=messages {
            self.take(result)?;
            if answered + window <= messages {
                self.send(ask, result)?;
            }
        }
        Ok(())
    }
}

/// Answers every connection until the process ends.
pub fn serve(listener: &TcpListener) {
    for socket in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // ends with the connection
            let _ = answer(socket);
        });
    }
}

fn answer(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut ask, mut result) = (vec![0u8; 1 << 16], Vec::new());
    loop {
        // the first bytes say how many there are; the rest is most often here with them
        let mut have = socket.read(&mut ask)?;
        if have == 0 {
            return Ok(());
        }
        while have > 0 {
            while have < 8 {
                have += some(&mut socket, &mut ask[have..])?;
            }
            let word =
                |at: usize| u32::from_le_bytes([ask[at], ask[at + 1], ask[at + 2], ask[at + 3]]) as usize;
            let (bytes, answer) = (word(0), word(4));
            if ask.len() < bytes {
                ask.resize(bytes, 0);
            }
            while have < bytes {
                have += some(&mut socket, &mut ask[have..])?;
            }
            result.resize(answer, 0);
            socket.write_all(&result)?;
            ask.copy_within(bytes..have, 0);
            have -= bytes;
        }
    }
}

fn some(socket: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    match socket.read(buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}
