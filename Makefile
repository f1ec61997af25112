# Everything one does with birdtap's source. `make` alone lists the targets.

# A go older than the toolchain line of go.mod fetches the right one by itself,
# unless the environment says otherwise.
export GOTOOLCHAIN ?= auto

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s

TOOL := go tool -modfile=.ci/tools.mod

.DEFAULT_GOAL := help

##@ Build and try

.PHONY: build
build: ## Build bin/birdtap, static
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/birdtap ./cmd/birdtap

IMAGE ?= birdtap:dev
CA    ?= /etc/ssl/certs/ca-certificates.crt

.PHONY: image
image: build ## Docker image around bin/birdtap, named IMAGE (birdtap:dev); needs no registry
	rm -rf bin/image && mkdir -p bin/image/data
	cp bin/birdtap bin/image/ && cp $(CA) bin/image/ca-certificates.crt
	docker build -q -f deploy/Dockerfile.prebuilt -t $(IMAGE) bin/image

.PHONY: demo
demo: build ## Play the demo: real daemon, fake vendors, faults; fails if a receipt is lost
	bin/birdtap demo

##@ Test

.PHONY: test
test: ## Unit tests; no Docker, no network
	go test -timeout 5m ./...

# Where the disk is not what is tested, a file system in memory does, if there is one.
# It has to be large enough, and programs have to run there.
MEMORY = $(shell d=$$(mktemp -d -p /dev/shm 2>/dev/null) && cp /bin/true $$d && $$d/true 2>/dev/null && \
	df -Pk $$d | awk 'NR == 2 && $$4 > 4000000 { found = 1 } END { exit !found }' && echo /dev/shm || echo $${TMPDIR:-/tmp}; rm -rf $$d)

.PHONY: race
race: ## The same under the race detector, with a tenth of the simulated histories
	TMPDIR=$(MEMORY) go test -race -short -timeout 20m ./...

.PHONY: outage
outage: ## CleverTap down for a day, twenty times over, in simulated time
	go test -c -o bin/relay.test ./relay
	@cd relay && for from in 0 10; do \
		TMPDIR=$(MEMORY) ../bin/relay.test -test.timeout 20m -test.v -test.run '^TestCleverTapIsDownForADay$$' -outage.from $$from -outage.seeds 10 -outage.hours 24 & \
		pids="$$pids $$!"; \
	done; failed=0; for pid in $$pids; do wait $$pid || failed=1; done; exit $$failed

.PHONY: integration
integration: ## The whole system against real servers in containers (Docker)
	go test -tags failpoint -count=1 -run 'KilledReplay|Orders|Points|Asked' ./store/...
	go test -tags integration -count=1 -timeout 30m -parallel 4 -v ./integration/...

DURATION ?= 1h
SOAK     ?= TestSoak

.PHONY: soak
soak: ## The daemon under random faults for DURATION (1h); SEED=n draws the same again; SOAK=TestCluster/Nemesis: the cluster
	SEED=$(SEED) go test -tags integration -count=1 -timeout 0 -v -run '^$(subst /,$$/^,$(SOAK))$$' ./integration -soak=$(DURATION) -soak.out=$(abspath soak.json) -cluster.soak=$(DURATION)

.PHONY: fuzz-smoke
fuzz-smoke: ## Every fuzz target for FUZZTIME (10s)
	.ci/fuzz-smoke $(FUZZTIME)

.PHONY: bench
bench: ## The benchmark: rates, latencies and their ratios
	go run ./integration/bench

.PHONY: bench-growth
bench-growth: ## How cost grows with connections, receipts a body, and backlog (10 M receipts, 3 GB of disk)
	go run ./integration/bench -growth

.PHONY: bench-cluster
bench-cluster: ## What one ingest, one relay and one stream carry on nats-servers of their own, one and three
	go run ./integration/bench -cluster

##@ Check

.PHONY: lint
lint: ## All linters, formatting included
	$(TOOL) golangci-lint run

.PHONY: fmt
fmt: ## Format the source
	$(TOOL) golangci-lint fmt

.PHONY: helm-lint
helm-lint: ## What is shipped in deploy/: chart, compose file, alert rules, unit; no Docker, no network
	.ci/chart
	cd deploy/check && go test -count=1 -timeout 15m ./...

.PHONY: vuln
vuln: ## Known vulnerabilities in what birdtap calls
	.ci/vuln

.PHONY: tidy-check
tidy-check: ## go.mod is tidy, modules are what their checksums say
	go mod tidy -diff
	go mod verify
	go mod verify -modfile=.ci/tools.mod
	cd deploy/check && go mod verify
	cd integration/previous && go mod verify

##@ Other

.PHONY: clean
clean: ## Remove what build made
	rm -rf bin

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
