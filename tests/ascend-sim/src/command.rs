//! Commands to a process that nobody can call into: lines that are appended to a file.
//!
//! `lose DEVICE CODE`, `hang DEVICE MILLISECONDS`, `heal DEVICE`, as the functions of `control`. Each line is done once, also if it is
//! there already when the machine starts; what is not understood is told on the error output.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::hccl::comm::COMMS;
use crate::machine::Machine;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Obeys the file as long as the machine is there.
pub fn obey(machine: &Arc<Machine>) {
    let Some(file) = machine.config.control.clone() else { return };
    let machine = Arc::downgrade(machine);
    let watch = move || watch(&file, &machine);
    if let Err(error) = std::thread::Builder::new().name("sim-control".into()).spawn(watch) {
        eprintln!("simulator: no thread for the control file: {error}");
    }
}

fn watch(file: &Path, machine: &Weak<Machine>) {
    let mut done = 0;
    while let Some(machine) = machine.upgrade() {
        // a file that is not there yet has no lines
        let text = std::fs::read_to_string(file).unwrap_or_default();
        // what has no end yet is still being written
        let lines: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        for line in lines.iter().skip(done) {
            if command(&machine, line).is_none() {
                eprintln!("simulator: {}: not understood: {line:?}", file.display());
            }
        }
        done = done.max(lines.len());
        drop(machine);
        std::thread::sleep(LOOK);
    }
}

/// Does one line; none if it is no command.
fn command(machine: &Machine, line: &str) -> Option<()> {
    let mut words = line.split_whitespace();
    let (word, id) = (words.next()?, words.next()?.parse().ok()?);
    let device = machine.devices.get::<usize>(id)?;
    match word {
        "lose" => {
            let code = words.next()?.parse().ok()?;
            device.lose(code);
            COMMS.lose_device(id, code);
        }
        "hang" => device.hang(Duration::from_millis(words.next()?.parse().ok()?)),
        "heal" => device.heal(),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Chip, Config};

    #[test]
    fn lines_are_obeyed_once_and_nonsense_is_not() {
        let machine = Machine::new(Config { devices: 2, ..Config::default() }, Chip::A2);
        for wrong in ["", "lose", "lose 7 1", "lose 1", "lose x 1", "crash 1", "hang 0 soon"] {
            assert_eq!(command(&machine, wrong), None, "{wrong:?}");
        }
        assert_eq!(command(&machine, "lose 1 507901\n"), Some(()));
        assert!(machine.devices[1].check().is_err() && machine.devices[0].check().is_ok());
        assert_eq!(command(&machine, "heal 1\n"), Some(()));
        assert!(machine.devices[1].check().is_ok());
        assert_eq!(command(&machine, "hang 0 60000\n"), Some(()));
        assert!(machine.devices[0].hangs());
    }
}
