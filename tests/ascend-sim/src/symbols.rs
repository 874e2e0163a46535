//! Every exported CANN symbol goes through here: calls are counted, and any can be made to fail.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use crate::codes;
use crate::failure::{Failure, Outcome, contained, fail, remember};
use crate::lock;

#[derive(Default)]
struct Entry {
    calls: u64,
    // the call number at which to fail, and the code
    faults: Vec<(u64, i32)>,
}

static TABLE: LazyLock<Mutex<HashMap<&'static str, Entry>>> =
    LazyLock::new(|| Mutex::new(names().map(|name| (name, Entry::default())).collect()));

/// The names of all simulated symbols, in the order of the modules that hold them.
pub fn names() -> impl Iterator<Item = &'static str> {
    crate::api::SYMBOL_TABLES.iter().chain(crate::ops::SYMBOL_TABLES).flat_map(|table| table.iter().copied())
}

/// Counts a call of `symbol` and answers the code that it is to fail with, if any.
fn count(symbol: &str) -> Option<i32> {
    let mut table = lock(&TABLE);
    let entry = table.get_mut(symbol)?;
    entry.calls += 1;
    let calls = entry.calls;
    let position = entry.faults.iter().position(|(at, _)| *at == calls)?;
    Some(entry.faults.swap_remove(position).1)
}

/// Runs the body of a symbol that answers a status.
pub fn status(symbol: &'static str, body: impl FnOnce() -> Outcome) -> i32 {
    let outcome = match count(symbol) {
        Some(code) => fail(code, "injected failure"),
        None => contained(codes::INTERNAL_ERROR, body),
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            remember(symbol, &failure);
            failure.code
        }
    }
}

/// Counts a call of a symbol that answers a value of its own; answers the injected code, if any.
pub fn query(symbol: &'static str) -> Option<i32> {
    count(symbol)
}

/// Runs the body of a symbol that answers a pointer: `null` when it fails.
pub fn pointer<T>(symbol: &'static str, null: T, body: impl FnOnce() -> Outcome<T>) -> T {
    let outcome = match count(symbol) {
        Some(code) => Err(Failure { code, text: "injected failure".into() }),
        None => contained(codes::INTERNAL_ERROR, body),
    };
    outcome.unwrap_or_else(|failure| {
        remember(symbol, &failure);
        null
    })
}

/// Makes the `nth` (1 = next) call of `symbol` fail with `code`; false when there is no such symbol.
pub fn inject(symbol: &str, nth: u64, code: i32) -> bool {
    let mut table = lock(&TABLE);
    match table.get_mut(symbol) {
        Some(entry) if nth > 0 => {
            entry.faults.push((entry.calls + nth, code));
            true
        }
        _ => false,
    }
}

/// Forgets all injected failures.
pub fn clear() {
    lock(&TABLE).values_mut().for_each(|entry| entry.faults.clear());
}

/// Calls of `symbol` so far.
pub fn calls(symbol: &str) -> u64 {
    lock(&TABLE).get(symbol).map_or(0, |entry| entry.calls)
}

/// Exports functions with the C ABI and lists them in `SYMBOLS`.
///
/// `status fn` answers an `int32_t`; `pointer fn … -> T` answers a pointer, null on failure. The body is a
/// closure that answers an [`Outcome`].
macro_rules! export {
    (
        $($(#[$meta:meta])* $kind:ident fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*
    ) => {
        pub(crate) const SYMBOLS: &[&str] = &[$(stringify!($name)),*];
        $($crate::symbols::export!{@ $kind $(#[$meta])* $name ($($arg : $ty),*) $(-> $ret)? $body})*
    };
    (@ status $(#[$meta:meta])* $name:ident ($($arg:ident : $ty:ty),*) $body:block) => {
        $(#[$meta])*
        #[allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]
        // SAFETY: the name is CANN's, and no other library of the process is to define it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
            $crate::symbols::status(stringify!($name), || -> $crate::failure::Outcome { $body })
        }
    };
    (@ pointer $(#[$meta:meta])* $name:ident ($($arg:ident : $ty:ty),*) -> $ret:ty $body:block) => {
        $(#[$meta])*
        #[allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]
        // SAFETY: the name is CANN's, and no other library of the process is to define it.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            let null = std::ptr::null_mut::<std::ffi::c_void>() as $ret;
            $crate::symbols::pointer(stringify!($name), null, || -> $crate::failure::Outcome<$ret> { $body })
        }
    };
}
pub(crate) use export;
