//! Canaries that PromQL queries judge, by a Prometheus that reads gateways and workers.

use anyhow::{Context, Result, bail, ensure};
use belay_e2e::{
    campaign::scaling::Run,
    fixture::SOON,
    history::History,
    prometheus::{ADDRESS, Prometheus},
    traffic::Traffic,
    wait,
};
use serde_json::{Value, json};

use crate::{
    load,
    stage::{NAME, Stage},
};

const CLIENTS: usize = 4;
/// Share of the attempts at the new revision that failed, of what gateways count.
const ERRORS: &str = r#"sum(rate(belay_gateway_attempts_total{revision="{{revision}}",outcome=~"failed|rejected"}[10s])) / sum(rate(belay_gateway_attempts_total{revision="{{revision}}"}[10s]))"#;
/// Whether Prometheus reads every worker of the new revision.
const SCRAPED: &str = r#"min(up{namespace="{{namespace}}",deployment="{{name}}",revision="{{revision}}"})"#;
/// Share of the prompts' tokens that came from the prefix cache, of what workers count.
const CACHED: &str = r#"sum(rate(belay_prefix_cache_hits_total{revision="{{revision}}"}[10s])) / (sum(rate(belay_prefix_cache_hits_total{revision="{{revision}}"}[10s])) + sum(rate(belay_prompt_tokens_total{revision="{{revision}}"}[10s])))"#;

/// Another revision that is as good: it takes over, and each query had a number meanwhile.
pub async fn good(stage: &Stage, run: &mut Run) -> Result<()> {
    let queries = json!([query("Errors10s", ERRORS, "max", "0.01"), query("Scraped", SCRAPED, "min", "1")]);
    let spec = json!({ "rollout": canary(&queries), "group": { "template": { "env": changed() } } });
    let history = judged(stage, run, spec, |status| {
        let rollout = &status["rollout"];
        if rollout["lastRollback"].is_object() {
            return Some(Err(format!("taken back: {}", rollout["lastRollback"])));
        }
        let all = status["updatedReplicas"] == 1 && status["replicas"] == 1 && status["readyReplicas"] == 1;
        (all && status["currentRevision"] == status["updatedRevision"] && rollout["phase"] == "Complete")
            .then_some(Ok(()))
    })
    .await?;
    let checks = verdicts(&history);
    run.saw += &format!("; at the end {}", last(&checks).join(", "));
    for name in ["Errors10s", "Scraped"] {
        let good = checks.iter().any(|check| check.starts_with(&format!("{name} Good")));
        ensure!(good, "{name} never had a number: {checks:?}");
    }
    Ok(())
}

/// A revision without a prefix cache: every client gets its tokens, and only the query sees that it costs more.
pub async fn bad(stage: &Stage, run: &mut Run) -> Result<()> {
    let queries =
        json!([query("Errors10s", ERRORS, "max", "0.01"), query("CachedShare", CACHED, "min", "0.3")]);
    let group = json!({ "cache": { "prefix": "Disabled" }, "template": { "env": changed() } });
    let spec = json!({ "rollout": canary(&queries), "group": group });
    judged(stage, run, spec, |status| {
        let over = status["rollout"]["phase"] == "RolledBack"
            && status["replicas"] == 1
            && status["updatedReplicas"].as_u64().unwrap_or(0) == 0;
        over.then_some(Ok(()))
    })
    .await?;
    let rollback = stage.fixture.models.deployment(NAME)?["status"]["rollout"]["lastRollback"].take();
    let text = |key: &str| rollback[key].as_str().unwrap_or_default().to_owned();
    let (reason, message) = (text("reason"), text("message"));
    run.saw += &format!("; taken back for {reason}: {message}");
    ensure!(reason == "QueryOutOfBounds", "taken back for {rollback}");
    ensure!(message.starts_with("CachedShare: 0 "), "it does not say which query, and its number: {message}");
    Ok(())
}

/// Changes the deployment under load and waits until `over` says how it ended.
async fn judged(
    stage: &Stage,
    run: &mut Run,
    spec: Value,
    over: impl Fn(&Value) -> Option<Result<(), String>>,
) -> Result<History> {
    let models = &stage.fixture.models;
    stage.apply(json!({ "replicas": 1 }))?;
    stage.fixture.settled(NAME, 1).await?;
    let history = History::follow(models, NAME);
    run.saw = format!("Prometheus reads {}", read_by_prometheus(stage).await?);
    let traffic = Traffic::start(&stage.gateways.url, NAME, &stage.documents, CLIENTS)?;
    wait::until("traffic", SOON, || Ok((traffic.answered() >= 20).then_some(()))).await?;
    let since = history.now();
    stage.patch("mdep", &json!({ "spec": spec }))?;
    let ended = wait::until("the end of the canary", 2 * SOON, || {
        let object = models.deployment(NAME)?;
        let status = &object["status"];
        match over(status).filter(|_| status["observedGeneration"] == object["metadata"]["generation"]) {
            Some(end) => Ok(Some(end)),
            None => bail!("{}", status["rollout"]),
        }
    })
    .await;
    run.up_s = Some((history.now() - since).as_secs_f64());
    let answered = traffic.answered();
    let goes_on =
        wait::until("traffic", SOON, || Ok((traffic.answered() >= answered + 8).then_some(()))).await;
    let report = traffic.stop().await;
    println!("    {CLIENTS} clients: {report}");
    load::note(run, &report);
    load::judge_path(run, &history, 0)?;
    let ended = ended?;
    println!("    {}", verdicts(&history).join("\n    "));
    ended.map_err(anyhow::Error::msg)?;
    goes_on?;
    report.all_right(20)?;
    Ok(history)
}

/// Both gateways, both operators and the two workers, and nothing that does not answer.
async fn read_by_prometheus(stage: &Stage) -> Result<String> {
    let prometheus = Prometheus::open(&stage.fixture.env)?;
    let began = std::time::Instant::now();
    loop {
        let mut counts = Vec::new();
        for program in ["belay-gateway", "belay-operator", "belay-worker"] {
            counts.push(prometheus.ask(&format!("count(up{{program=\"{program}\"}} == 1)")).await?);
        }
        let silent = prometheus.ask("count(up == 0)").await?;
        if silent.is_empty() && counts.iter().all(|count| count == &[2.0]) {
            break;
        }
        if began.elapsed() > SOON {
            bail!(
                "Prometheus reads {counts:?} gateways, operators and workers, and {silent:?} do not answer"
            );
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let series = prometheus.ask("count({program=~\"belay-.*\",__name__=~\"belay_.*\"})").await?;
    let series = series.first().context("no series")?;
    Ok(format!("2 gateways, 2 operators and 2 workers, {series} series"))
}

/// What was seen of each check, without repetition.
fn verdicts(history: &History) -> Vec<String> {
    let mut seen = Vec::new();
    for moment in history.moments() {
        for (name, verdict, message) in moment.state.checks {
            let line = format!("{name} {verdict} ({message})");
            if !seen.contains(&line) {
                seen.push(line);
            }
        }
    }
    seen
}

/// The last line about each check.
fn last(lines: &[String]) -> Vec<&str> {
    let name = |line: &str| line.split_once(' ').map(|(name, _)| name.to_owned());
    let later =
        |(at, line): (usize, &String)| lines.iter().skip(at + 1).any(|other| name(other) == name(line));
    lines.iter().enumerate().filter(|&(at, line)| !later((at, line))).map(|(_, line)| line.as_str()).collect()
}

fn query(name: &str, query: &str, bound: &str, value: &str) -> Value {
    json!({ "name": name, "address": ADDRESS, "query": query, bound: value })
}

/// Half of the requests for fifteen seconds, looked at every three.
fn canary(queries: &Value) -> Value {
    json!({
        "strategy": "Canary",
        "canary": { "steps": [{ "weightPercent": 50, "holdSeconds": 15 }] },
        "analysis": {
            "intervalSeconds": 3,
            "minRequests": 20,
            // two revisions share two processors here, with whatever else runs on them
            "maxTimeToFirstTokenIncreasePercent": 300,
            "maxInterTokenIncreasePercent": 300,
            "queries": queries,
        },
    })
}

/// A variable that changes nothing but the revision.
fn changed() -> Value {
    json!([{ "name": "BELAY_MAX_QUEUED", "value": "199" }])
}
