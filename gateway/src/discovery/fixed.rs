//! Discovery by flags: `--worker NAME=HOST:PORT`.
use crate::config::StaticWorker;

use super::{Table, Worker};

/// The table of workers that were named by flag. They count as ready: whether they answer shows when they are asked.
pub fn table(workers: &[StaticWorker], created: i64) -> Table {
    let mut table = Table::default();
    for StaticWorker { model, address } in workers {
        let model = table.models.entry(model.clone()).or_default();
        model.created = created;
        if model.ready.iter().any(|worker| worker.address == *address) {
            continue;
        }
        model.known += 1;
        model.ready.push(Worker {
            id: address.clone(),
            name: address.clone(),
            address: address.clone(),
            revision: String::new(),
        });
    }
    for model in table.models.values_mut() {
        model.ready.sort_by(|a, b| a.id.cmp(&b.id));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_grouped_by_model_and_named_once() {
        let flags = ["a=h:2", "b=h:3", "a=h:1", "a=h:2"].map(|flag| flag.parse().unwrap());
        let table = table(&flags, 7);
        let addresses = |name: &str| -> Vec<String> {
            table.models[name].ready.iter().map(|worker| worker.address.clone()).collect()
        };
        assert_eq!(addresses("a"), ["h:1", "h:2"]);
        assert_eq!(addresses("b"), ["h:3"]);
        assert_eq!((table.models["a"].known, table.models["a"].created), (2, 7));
    }
}
