//! The address of this host that peers are told: `HCCL_IF_IP`, else an interface as `HCCL_SOCKET_IFNAME`
//! names it, else the first by name that is neither docker's nor the loopback, then docker's, then the
//! loopback.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::failure::{Outcome, fail};
use crate::hccl::codes;

/// The address of this host.
pub fn host() -> Outcome<IpAddr> {
    if let Ok(text) = std::env::var("HCCL_IF_IP") {
        return text.parse().or_else(|_| fail(codes::PARA, format!("HCCL_IF_IP {text:?} is no address")));
    }
    let names = std::env::var("HCCL_SOCKET_IFNAME").ok();
    match choose(&interfaces()?, names.as_deref()) {
        Some(address) => Ok(address),
        None => fail(codes::PARA, format!("no interface fits HCCL_SOCKET_IFNAME {names:?}")),
    }
}

/// Chooses among interfaces, with the value of `HCCL_SOCKET_IFNAME`: names with commas between them, read
/// as prefixes, or whole after `=`, and excluded after `^`.
pub fn choose(interfaces: &[(String, IpAddr)], names: Option<&str>) -> Option<IpAddr> {
    let mut sorted: Vec<_> = interfaces.iter().collect();
    // IPv4 first, as HCCL_SOCKET_FAMILY has it by default
    sorted.sort_by_key(|(name, address)| (class(name), address.is_ipv6(), name.clone()));
    let Some(names) = names else { return sorted.first().map(|(_, address)| *address) };
    let (excluded, names) = names.strip_prefix('^').map_or((false, names), |rest| (true, rest));
    let (whole, names) = names.strip_prefix('=').map_or((false, names), |rest| (true, rest));
    let named = |name: &str| {
        names.split(',').any(|given| if whole { name == given } else { name.starts_with(given) })
    };
    sorted.into_iter().find(|(name, _)| named(name) != excluded).map(|(_, address)| *address)
}

fn class(name: &str) -> u8 {
    match name {
        "lo" => 2,
        _ if name.starts_with("docker") => 1,
        _ => 0,
    }
}

/// The interfaces that are up, with their addresses.
fn interfaces() -> Outcome<Vec<(String, IpAddr)>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the pointer is writable.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return fail(codes::SYSCALL, format!("getifaddrs: {}", std::io::Error::last_os_error()));
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: the list is as getifaddrs made it and is freed below.
        let entry = unsafe { &*next };
        if entry.ifa_flags & libc::IFF_UP as u32 != 0
            // SAFETY: the address of an entry is null or of the family that it names.
            && let Some(address) = unsafe { ip(entry.ifa_addr) }
        {
            // SAFETY: the name of an entry ends with a zero byte.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            found.push((name.to_string_lossy().into_owned(), address));
        }
        next = entry.ifa_next;
    }
    // SAFETY: getifaddrs made the list, and nothing of it is used from here on.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// # Safety
/// `address` is null or a socket address of the family that it names.
unsafe fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: promised by the caller.
    match i32::from(unsafe { (*address).sa_family }) {
        libc::AF_INET => {
            // SAFETY: an address of this family is a sockaddr_in.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: an address of this family is a sockaddr_in6.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let address = Ipv6Addr::from(address.sin6_addr.s6_addr);
            // a link-local address means nothing without its interface
            (!address.is_unicast_link_local()).then_some(address.into())
        }
        _ => None,
    }
}
