# The front door.  `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# What is expensive is kept here, outside the checkout: Kubernetes' programs, the node image, compiled dependencies.
BELAY_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/belay
CARGO_TARGET_DIR ?= $(BELAY_CACHE)/target
export BELAY_CACHE CARGO_TARGET_DIR

.PHONY: help
help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  BELAY_CACHE=$(BELAY_CACHE)"
	@echo "  BELAY_CLUSTER=name        another kind cluster than 'belay'"
	@echo "  DEMO_KUBECONFIG=file      demo on a cluster that exists"

.PHONY: demo
demo: ## a kind cluster, the chart, a model on 2 workers x 2 ranks, four questions
	@examples/demo.sh

.PHONY: test
test: ## everything that CI runs: lint, unit, then the cluster tests
	@tests/run.sh lint unit cluster

.PHONY: lint
lint: ## formatting, clippy, the chart, licences and bans
	@tests/run.sh lint

.PHONY: unit
unit: ## unit, golden and property tests
	@tests/run.sh unit

.PHONY: test-cluster
test-cluster: ## the tests on a kind cluster of their own
	@tests/run.sh cluster

.PHONY: chaos
chaos: ## every fault on every shape of a group, again and again: docs/reliability.md (hours; BELAY_CHAOS=words selects)
	@tests/run.sh chaos

.PHONY: e2e-report
e2e-report: ## rollouts, scaling, drains and restarts under load: docs/reliability.md (half an hour; BELAY_REPORT=words selects)
	@tests/run.sh report

.PHONY: e2e-autoscaling
e2e-autoscaling: ## ours, a HorizontalPodAutoscaler, KEDA and Prometheus: docs/operations/autoscaling.md (half an hour; BELAY_AUTOSCALING=words selects)
	@tests/run.sh autoscaling

.PHONY: e2e-rebalance
e2e-rebalance: ## the part of it that skews a load and watches the experts move, and an even load (a quarter of an hour)
	@BELAY_CHAOS=load/ tests/run.sh chaos

.PHONY: bench
bench: bench-kernels bench-forward bench-serving bench-fabric bench-gateway bench-load soak ## all of the following: what they show is in docs/operations/benchmarks.md

.PHONY: bench-serving
bench-serving: ## engine and gateway against the bare forward; CSV in docs/operations/bench (a quarter of an hour)
	@tests/bench/run.sh serving

.PHONY: bench-kernels
bench-kernels: ## kernels against the machine's limits and other engines, in one run; CSV in docs/operations/bench (ten minutes; more the first time)
	@tests/bench/run.sh kernels

.PHONY: bench-forward
bench-forward: ## a model of 7 billion parameters, prompt and tokens, against llama.cpp; CSV in docs/operations/bench (ten minutes; 9 GB of disk)
	@tests/bench/run.sh forward

.PHONY: bench-fabric
bench-fabric: ## exchanges between two processes against bare TCP; CSV in docs/operations/bench (a minute)
	@tests/bench/run.sh fabric

.PHONY: bench-gateway
bench-gateway: ## the gateway as a proxy before a worker that computes nothing, against a plain one (two minutes)
	@tests/bench/run.sh gateway

.PHONY: bench-load
bench-load: ## aiperf, a load generator that others wrote, against gateway and worker
	@tests/bench/run.sh load

.PHONY: bench-placement
bench-placement: ## what a plan takes for a model of DeepSeek-V4-Pro's size on 128 ranks
	@cargo bench --quiet --locked -p belay-operator --bench placement

.PHONY: bench-scaling
bench-scaling: ## the autoscaler against a fixed size and HPAs, in simulated time: docs/performance.md (a minute)
	@cargo bench --quiet --locked --profile dev -p belay-operator --bench scaling -- $(if $(CSV),--csv $(CSV))
.PHONY: scale
scale: ## the operator with 1,000 deployments and 4,000 pods on a real API server with kwok: docs/performance.md (half an hour)
	@tests/run.sh scale

.PHONY: asan
asan: ## the wrapper of CANN and the simulator with AddressSanitizer: docs/ascend.md (a quarter of an hour)
	@tests/asan.sh

.PHONY: soak
soak: ## 10,000 requests, good, bad and abandoned, and what they leave behind
	@tests/bench/run.sh soak

.PHONY: images
images: ## static binaries, and their images in out/images
	@tests/cluster/install-tools.sh && images/build.sh

.PHONY: crds
crds: ## make the chart's generated files anew: definition and role
	@cargo build -q -p belay-operator
	@for file in crd:modeldeployments.serving.belay.dev.yaml rbac:operator-rbac.yaml; do \
	  "$(CARGO_TARGET_DIR)/debug/belay-operator" $${file%%:*} > charts/belay/files/$${file#*:}.new && \
	  mv charts/belay/files/$${file#*:}.new charts/belay/files/$${file#*:} || exit 1; done

.PHONY: cluster-up
cluster-up: ## a kind cluster: 1 control plane, 2 workers
	@tests/cluster/cluster.sh up

.PHONY: cluster-down
cluster-down: ## delete it
	@tests/cluster/cluster.sh down

.PHONY: deny
deny: ## install cargo-deny into the cache, for make lint
	@tests/cluster/programs.sh deny
