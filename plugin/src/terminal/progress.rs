//! What is being waited for, in one line of standard error that goes away again.
use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::Duration,
};

/// Quick answers need no words; slow ones get new words as often.
const PATIENCE: Duration = Duration::from_millis(300);

/// Waits for `work`. If it takes a while, and somebody looks at standard error, says what is under way.
pub async fn during<T>(what: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = pin!(work);
    let mut shown = false;
    let result = loop {
        match tokio::time::timeout(PATIENCE, work.as_mut()).await {
            Ok(result) => break result,
            Err(_) => {
                shown = true;
                write(&format!("\r\x1b[2K{}", what()));
            }
        }
    };
    if shown {
        write("\r\x1b[2K");
    }
    result
}

fn write(text: &str) {
    // a line that nobody sees is no loss
    let _ = write!(io::stderr(), "{text}").and_then(|()| io::stderr().flush());
}
