# `make help` lists the targets. Caches live outside of the clone and are only an optimisation.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cairn
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Pinned, built from the package registry once for each machine.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(CACHE)/tools/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny

# What the build needs beyond Rust, Go, make and git: RocksDB's C++ compiler and the library that reads its headers; for the client
# etcd-client, which tests run, the compiler of its protocol. Then what the Kubernetes of tests and demo is made of beside its Go
# modules: containers, their network, and the commands in the image of tools.
DEBIAN_PACKAGES := g++ libclang-dev protobuf-compiler libprotobuf-dev containerd runc containernetworking-plugins nftables iproute2 busybox-static
# Languages whose clients e2e runs, as command:package: any that is there will do.
LANGUAGES := python3:python3 node:nodejs npm:npm javac:default-jdk-headless mvn:maven
# Of `make k8s-up`: 1 or 3 nodes; what kube-apiserver keeps its objects in, cairn or etcd.
NODES ?= 3
STORE ?= cairn
K8S := $(CARGO_TARGET_DIR)/release/k8s

.PHONY: help
help: ## List the targets.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

.PHONY: fmt
fmt: ## Format every crate and Go package.
	cargo fmt --all
	gofmt -w e2e

.PHONY: deps
deps: ## Install the Debian packages that are missing, by name (needs root).
	@missing=$$(for package in $(DEBIAN_PACKAGES); do \
		[ "$$(dpkg-query -W -f='$${Status}' $$package 2>/dev/null)" = 'install ok installed' ] || echo $$package; done; \
		for language in $(LANGUAGES); do command -v $${language%%:*} >/dev/null || echo $${language##*:}; done; \
		python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

.PHONY: lint
lint: deps $(CARGO_DENY) ## Formatting, clippy, vet, licenses, bans and sources of the dependencies.
	cargo fmt --all --check
	@unformatted=$$(gofmt -l e2e); if [ -n "$$unformatted" ]; then echo "gofmt these:" $$unformatted; exit 1; fi
	cd e2e && go vet ./... && go mod tidy -diff
	cd e2e/etcd36 && go mod tidy -diff
	cd e2e/suite && go mod tidy -diff
	$(CARGO_DENY) --locked check bans licenses sources
	cargo clippy --locked --release --workspace --all-targets --all-features -- -D warnings

.PHONY: build
build: deps ## Build the server; the last line says where it is.
	cargo build --locked --release --workspace --all-features
	@echo $(CARGO_TARGET_DIR)/release/cairn

.PHONY: run
run: build ## Start a server on port 2379 with its data in default.etcd.
	exec $(CARGO_TARGET_DIR)/release/cairn

.PHONY: images
images: build ## Make the OCI archives of server, operator and test tools; no container engine is needed.
	$(K8S) images $(CACHE)/images

.PHONY: k8s-up
k8s-up: build ## Start a Kubernetes of NODES=1 or 3 on STORE=cairn or etcd, in namespaces of its own (needs root).
	$(K8S) up --nodes $(NODES) --store $(STORE)

.PHONY: k8s-down
k8s-down: ## End it and remove all of it.
	@if [ -x $(K8S) ]; then $(K8S) down; else echo "nothing was built, so nothing runs"; fi

.PHONY: demo
demo: build ## Watch it: a Kubernetes of three nodes, the operator, a cluster of three, its leader lost (minutes; much longer the first time).
	@$(CARGO_TARGET_DIR)/release/demo

.PHONY: demo-down
demo-down: k8s-down ## Remove all that the demo started.

# As in: make bench BENCH='--quick --only put-1,list-1000'
BENCH := --keep e2e/bench/results/$(shell uname -m)-$(shell nproc)-cores.txt
.PHONY: bench
bench: build ## Measure Cairn beside real etcd, in turns, in one run (about ten minutes); fails when a rule is broken.
	@mkdir -p e2e/bench/results
	$(CARGO_TARGET_DIR)/release/bench $(BENCH)

# Worlds of the simulator; SEED=n is one of them again.
SEEDS ?= 1000
.PHONY: sim
sim: ## Live through SEEDS=1000 simulated worlds of a minute each, or through SEED=n again.
	cargo build --locked --release --workspace --all-features --bin sim
	$(CARGO_TARGET_DIR)/release/sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

.PHONY: bench-foreign
bench-foreign: build ## The same with the load generator of etcd's own project, as a cross-check (about three minutes).
	@mkdir -p e2e/bench/results
	$(CARGO_TARGET_DIR)/release/bench --foreign --rounds 3 $(subst -cores,-cores-foreign,$(BENCH))

# As in: make scale SCALE=--quick
SCALE := --keep e2e/bench/results/$(shell uname -m)-$(shell nproc)-cores-scale.txt
.PHONY: scale
scale: build ## Measure how Cairn grows up to 10 million keys: start, CPU per request, compaction, a member that catches up (half an hour, 20 GB).
	@mkdir -p e2e/bench/results
	$(CARGO_TARGET_DIR)/release/bench --scale $(SCALE)

# As in: make etcd-suite SUITE='TestKVPut TestWatch', or SUITE=--etcd for real etcd.
SUITE :=
.PHONY: etcd-suite
etcd-suite: build ## Run all of etcd's own client suite on Cairn, in all cluster shapes (about ten minutes).
	$(CARGO_TARGET_DIR)/release/etcd_suite $(SUITE)

# Of `make crash`: rounds of faults; SEED=n says which ones.
ROUNDS ?= 320
.PHONY: crash
crash: build ## Kill, stop and fail three members under load, ROUNDS=320 times (about 15 minutes), and judge all that clients saw.
	CAIRN_ROUNDS=$(ROUNDS) CAIRN_SEED=$(or $(SEED),1) cargo test --locked --release --workspace --all-features -p e2e --test crash -- --nocapture

.PHONY: test
test: lint ## Everything that decides whether a change lands; the last line counts the tests.
	@./.ci/count cargo test --locked --release --workspace --all-features

$(CARGO_DENY):
	CARGO_TARGET_DIR=$(CACHE)/tools/target cargo install --locked --quiet --root $(CACHE)/tools/cargo-deny-$(CARGO_DENY_VERSION) \
		cargo-deny@$(CARGO_DENY_VERSION)
