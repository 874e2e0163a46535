//! Reads `/metrics`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Samples of one scrape: name with labels, as written, to value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text format of Prometheus or OpenMetrics.
    ///
    /// # Errors
    /// The line that is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples
            .map(|line| {
                // label values may hold spaces, the value does not; what may follow it is a timestamp, which we never write
                let (name, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line:?}"))?;
                let value = value.parse().with_context(|| format!("no number: {line:?}"))?;
                Ok((name.to_owned(), value))
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Value of a sample without labels.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn get(&self, name: &str) -> Result<f64> {
        self.0.get(name).copied().with_context(|| format!("no metric is called {name}"))
    }

    /// Sum over the label sets of a metric; 0 if there is none yet.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let of_metric = |key: &str| key.split_once('{').map_or(key, |(metric, _)| metric) == name;
        self.0.iter().filter(|(key, _)| of_metric(key)).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_summed_over_labels() {
        let text = "# TYPE a gauge\na 3\nb_total{code=\"x y\"} 1\nb_total{code=\"z\"} 2.5\nbc 9\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.get("a").unwrap(), 3.0);
        assert_eq!((metrics.sum("b_total"), metrics.sum("none")), (3.5, 0.0));
        assert!(metrics.get("b").unwrap_err().to_string().contains('b'));
        assert!(Metrics::parse("half").is_err() && Metrics::parse("a b").is_err());
    }
}
