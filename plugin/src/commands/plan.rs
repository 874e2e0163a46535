//! `kubectl belay plan`: what would happen if a ModelDeployment were applied.
use std::{
    fs,
    io::{self, Read as _, Write as _},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use kube::api::DynamicObject;
use serde_json::Value;

use crate::{
    cli::{Access, Outcome},
    cluster::Cluster,
    error::describe,
    preflight::{
        documents,
        gather::{self, Admission, Inventory},
        judge,
        report::{Report, Verdict},
        text,
    },
    terminal::{
        output::{self, Output},
        progress,
    },
};

/// Options of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A ModelDeployment that exists, as it is
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub name: Option<String>,

    /// A file with ModelDeployments, new or changed; - is standard input
    #[arg(short, long = "filename", value_name = "FILE")]
    pub file: Option<String>,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,

    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs: a list with a report for each. Field names: docs/reference/plugin.md
    Json,
}

/// Tells what would happen. Trouble on the way is told here, so that it has an exit code of its own.
///
/// # Errors
/// When nobody reads what is printed.
pub async fn run(args: &PlanArgs, access: &Access) -> Result<Outcome> {
    let asked = Box::pin(all(args, access));
    let reports = match progress::during(|| "asking the API server ...".to_owned(), asked).await {
        Ok(reports) => reports,
        Err(error) => {
            writeln!(io::stderr(), "error: {}", describe(error.as_ref()))?;
            return Ok(Outcome::NoVerdict);
        }
    };
    print(&reports, args)?;
    let verdicts: Vec<Verdict> = reports.iter().map(|report| report.verdict).collect();
    Ok(match () {
        () if verdicts.contains(&Verdict::Unknown) => Outcome::NoVerdict,
        () if verdicts.iter().all(|verdict| *verdict == Verdict::Fits) => Outcome::Done,
        () => Outcome::DoesNotFit,
    })
}

async fn all(args: &PlanArgs, access: &Access) -> Result<Vec<Report>> {
    let documents = match &args.file {
        Some(file) => Some((read(file)?, file)),
        None => None,
    };
    let cluster = Cluster::open(access).await?;
    let inventory = gather::inventory(&cluster).await;
    let Some((text, file)) = documents else {
        let name = args.name.as_deref().unwrap_or_default();
        let present = cluster.object(name).await?;
        let facts = gather::facts(&cluster, present.clone(), Some(present), &inventory).await?;
        return Ok(vec![judge::judge(&facts)?]);
    };
    let (ours, others) = documents::read(&text, file)?;
    for other in others {
        writeln!(io::stderr(), "{file}: {other} is not looked at")?;
    }
    let mut reports = vec![];
    for document in ours {
        reports.push(one(&cluster, access, &document, &inventory).await?);
    }
    Ok(reports)
}

fn read(file: &str) -> Result<String> {
    if file == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| file.to_owned())
}

async fn one(cluster: &Cluster, access: &Access, document: &Value, inventory: &Inventory) -> Result<Report> {
    let own = document["metadata"]["namespace"].as_str();
    if let (Some(own), Some(asked)) = (own, &access.namespace)
        && own != asked
    {
        anyhow::bail!("the namespace of the document is {own}, and --namespace says {asked}");
    }
    let cluster = match own {
        Some(namespace) => cluster.within(namespace),
        None => cluster.clone(),
    };
    let name = document["metadata"]["name"].as_str().unwrap_or_default();
    let present: Option<DynamicObject> = cluster.object_if_any(name).await?;
    match gather::admit(&cluster, document, present.as_ref()).await? {
        Admission::Refused(refusals) => Ok(Report {
            name: name.to_owned(),
            namespace: cluster.namespace().to_owned(),
            verdict: Verdict::Refused,
            refusals,
            ..Report::default()
        }),
        Admission::Taken(wanted) => {
            let facts = gather::facts(&cluster, *wanted, present, inventory).await;
            let facts = facts.with_context(|| format!("modeldeployment {}/{name}", cluster.namespace()))?;
            Ok(judge::judge(&facts)?)
        }
    }
}

fn print(reports: &[Report], args: &PlanArgs) -> Result<()> {
    let output = Output::standard(args.no_color);
    let mut to = io::stdout().lock();
    match args.output {
        Format::Json => writeln!(to, "{}", serde_json::to_string_pretty(reports)?)?,
        Format::Text => {
            for (index, report) in reports.iter().enumerate() {
                if index > 0 {
                    writeln!(to)?;
                }
                output::print(&mut to, &text::render(report, output.width), output.coloured)?;
            }
        }
    }
    to.flush()?;
    Ok(())
}
