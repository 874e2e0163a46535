//! The same, as Prometheus reads it: by model and revision, in coarser buckets.
use std::sync::{Arc, atomic::Ordering};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::routing::Fleet;

use super::{Histogram, RevisionMeter, service::forget};

/// Fine buckets that make a coarse one: each of those is 1.77 times the one before.
const COARSE: usize = 6;

/// Attempts by revision, read when asked for: revisions that are forgotten leave no series behind.
#[derive(Debug)]
pub struct Attempts(pub Arc<Fleet>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    model: String,
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    model: String,
    revision: String,
    outcome: &'static str,
}

type Part = fn(&RevisionMeter) -> &Histogram;

impl Collector for Attempts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let meters = self.0.meters();
        forget(meters, &self.0);
        let all: Vec<(Of, Arc<RevisionMeter>)> = meters
            .models()
            .into_iter()
            .flat_map(|(model, meter)| {
                let of = move |(revision, meter)| (Of { model: model.clone(), revision }, meter);
                meter.revisions().into_iter().map(of)
            })
            .collect();
        let help = "Attempts of workers to answer, by how they ended";
        let mut family = encoder.encode_descriptor("attempts", help, None, MetricType::Counter)?;
        for (Of { model, revision }, meter) in &all {
            for (outcome, count) in [
                ("served", &meter.served),
                ("failed", &meter.failed),
                ("rejected", &meter.rejected),
                ("passed_on", &meter.passed_on),
            ] {
                let ended = Ended { model: model.clone(), revision: revision.clone(), outcome };
                counter(family.encode_family(&ended)?, count.load(Ordering::Relaxed))?;
            }
        }
        let histograms: [(&str, &str, Part); 2] = [
            ("attempt_time_to_first_token_seconds", "From asking a worker to its first token", |meter| {
                &meter.first_token
            }),
            (
                "inter_token_seconds",
                "Between two pieces of an answer, divided by the tokens of the later one",
                |meter| &meter.inter_token,
            ),
        ];
        for (name, help, part) in histograms {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (of, meter) in &all {
                histogram(family.encode_family(of)?, part(meter))?;
            }
        }
        Ok(())
    }
}

fn counter(mut encoder: MetricEncoder<'_>, count: u64) -> Result<(), std::fmt::Error> {
    encoder.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn histogram(mut encoder: MetricEncoder<'_>, histogram: &Histogram) -> Result<(), std::fmt::Error> {
    let buckets = histogram.coarse(COARSE);
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabelSet>(histogram.sum(), count, &buckets, None)
}
