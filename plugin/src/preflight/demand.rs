//! What pods ask for, as the scheduler counts it: pure.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use thiserror::Error;

use super::amount::{counted, nanos};

/// Amounts by resource: thousandths of `cpu`, whole ones of everything else. A pod also asks for one of `pods`.
pub type Amounts = BTreeMap<String, i128>;

/// A quantity that is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{text}\" is not a quantity of {resource}")]
pub struct BadQuantity {
    /// Of what.
    pub resource: String,
    /// As it is written.
    pub text: String,
}

/// Reads a list of quantities.
///
/// # Errors
/// At the first one that is none.
pub fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Result<Amounts, BadQuantity> {
    Ok(whole(exact(list)?))
}

/// What a pod asks for: all containers and those that run beside them together, or more while one of its init containers
/// needs more; what the pod itself sets instead; its overhead on top. Of a pod whose containers were resized, what they
/// were given counts where that is more.
///
/// # Errors
/// If a quantity is none.
pub fn of_pod(pod: &Pod) -> Result<Amounts, BadQuantity> {
    let blank = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&blank);
    let given = |name: &str| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
        let status = statuses.unwrap_or_default().iter().find(|status| status.name == name)?;
        status.allocated_resources.as_ref()
    };
    let mut total = Amounts::new();
    for container in &spec.containers {
        let mut asked = of_container(container)?;
        most(&mut asked, &exact(given(&container.name))?);
        add(&mut total, &asked);
    }
    let (mut beside, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let asked = of_container(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            // it goes on beside all that come after it
            add(&mut beside, &asked);
            most(&mut peak, &beside);
        } else {
            let mut now = asked;
            add(&mut now, &beside);
            most(&mut peak, &now);
        }
    }
    add(&mut total, &beside);
    most(&mut total, &peak);
    let own = spec.resources.as_ref();
    total.extend(exact(own.and_then(|own| own.requests.as_ref()))?);
    add(&mut total, &exact(spec.overhead.as_ref())?);
    let mut total = whole(total);
    total.insert("pods".to_owned(), 1);
    Ok(total)
}

/// Requests; where only a limit is set, that is the request.
fn of_container(container: &Container) -> Result<Amounts, BadQuantity> {
    let resources = container.resources.as_ref();
    let mut asked = exact(resources.and_then(|resources| resources.limits.as_ref()))?;
    asked.extend(exact(resources.and_then(|resources| resources.requests.as_ref()))?);
    Ok(asked)
}

/// In billionths.
fn exact(list: Option<&BTreeMap<String, Quantity>>) -> Result<Amounts, BadQuantity> {
    let read = |(resource, quantity): (&String, &Quantity)| match nanos(quantity) {
        Some(amount) => Ok((resource.clone(), amount)),
        None => Err(BadQuantity { resource: resource.clone(), text: quantity.0.clone() }),
    };
    list.into_iter().flatten().map(read).collect()
}

fn whole(exact: Amounts) -> Amounts {
    exact
        .into_iter()
        .map(|(resource, nanos)| {
            let amount = counted(&resource, nanos);
            (resource, amount)
        })
        .collect()
}

/// Adds amounts to others.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        *to.entry(resource.clone()).or_default() += amount;
    }
}

/// Takes amounts away from others.
pub fn take(from: &mut Amounts, less: &Amounts) {
    for (resource, amount) in less {
        *from.entry(resource.clone()).or_default() -= amount;
    }
}

fn most(of: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let present = of.entry(resource.clone()).or_insert(*amount);
        *present = (*present).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demand(spec: Value) -> Amounts {
        of_pod(&serde_json::from_value(json!({"spec": spec})).unwrap()).unwrap()
    }

    fn container(requests: Value) -> Value {
        json!({"name": "a", "resources": {"requests": requests}})
    }

    #[test]
    fn containers_add_up_and_limits_stand_in_for_requests() {
        let limited =
            json!({"name": "b", "resources": {"limits": {"huawei.com/Ascend910": "8", "cpu": "3"}}});
        let asked =
            demand(json!({"containers": [container(json!({"cpu": "100m", "memory": "1Gi"})), limited]}));
        assert_eq!(asked["cpu"], 3100);
        assert_eq!((asked["memory"], asked["huawei.com/Ascend910"], asked["pods"]), (1 << 30, 8, 1));
    }

    #[test]
    fn init_containers_count_while_they_run() {
        let one = |cpu: &str| container(json!({"cpu": cpu}));
        let beside = |cpu: &str| {
            let mut one = one(cpu);
            one["restartPolicy"] = "Always".into();
            one
        };
        let of = |init: Vec<Value>| demand(json!({"containers": [one("2")], "initContainers": init}))["cpu"];
        assert_eq!(of(vec![one("1")]), 2000);
        assert_eq!(of(vec![one("3"), one("1")]), 3000);
        assert_eq!(of(vec![beside("1")]), 3000);
        assert_eq!(of(vec![one("4"), beside("1")]), 4000, "it is over before the other one starts");
        assert_eq!(of(vec![beside("1"), one("4")]), 5000);
    }

    #[test]
    fn overhead_comes_on_top_and_the_pods_own_requests_instead() {
        let asked = demand(json!({
            "containers": [container(json!({"cpu": "1", "memory": "1Gi"}))],
            "resources": {"requests": {"cpu": "4"}}, "overhead": {"cpu": "250m", "memory": "16Mi"},
        }));
        assert_eq!((asked["cpu"], asked["memory"]), (4250, (1 << 30) + (16 << 20)));
    }

    #[test]
    fn what_is_no_quantity_is_named() {
        let pod =
            serde_json::from_value(json!({"spec": {"containers": [container(json!({"cpu": "many"}))]}}));
        assert_eq!(of_pod(&pod.unwrap()).unwrap_err().to_string(), "\"many\" is not a quantity of cpu");
    }
}
