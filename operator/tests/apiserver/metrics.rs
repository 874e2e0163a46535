//! What an operator shows at `/metrics`.
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The page of the operator at a port of loopback; empty while it does not answer.
pub async fn text(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return String::new() };
    let request = b"GET /metrics HTTP/1.0\r\n\r\n";
    let mut answer = String::new();
    if stream.write_all(request).await.is_err() || stream.read_to_string(&mut answer).await.is_err() {
        return String::new();
    }
    answer
}

/// The sum of a counter over all its labels.
pub fn value(text: &str, name: &str) -> u64 {
    let of = |line: &&str| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']);
    let number = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    text.lines().filter(of).map(number).sum()
}
