SHELL   := /bin/sh
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-devel)
GO      := CGO_ENABLED=0 go
FLAGS   := -trimpath -ldflags '-s -w -X main.version=$(VERSION) -X github.com/gantryd/gantry/services/daemon.version=$(VERSION)'
DAEMONS := contentd snapshotd imaged taskd eventbus gatewayd
PREFIX  ?= /usr/local
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.6.2
FUZZ    ?= 30s

all: build lint law test ## what CI runs on a change

run: deps build image ## see it work: a suite in a scratch place, a container, its events
	@bin/gantryctl demo

test: build image ## every test; as root those that mount and run containers, too
	@test "$$(id -u)" = 0 || printf '\n%s\n\n' '*** NOT ROOT: every test that mounts, runs a container or starts the suite is left out ***' >&2
	go test ./...
	cd conformance && go test -timeout 20m ./...
	cd bench && go vet ./...
	@test "$$(id -u)" = 0 || printf '\n%s\n\n' '*** NOT ROOT: this was less than half of the tests; run make test as root ***' >&2

build: ## bin/: the daemons, gantryctl, the shim
	$(GO) build $(FLAGS) -o bin/ ./cmd/gantryd ./cmd/gantryctl ./cmd/containerd-shim-gantry-v1
	@for d in $(DAEMONS); do ln -sf gantryd bin/$$d; done

image: ## bin/demo.tar: the demo image, the same bytes each time
	$(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o .build/demo ./cmd/demo
	go run ./cmd/demoimage -o bin/demo.tar .build/demo

deps: ## what a fresh Debian lacks: runc
	@command -v runc >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends runc; }

deps-test: deps ## what the conformance tests use besides: debootstrap and umoci
	@command -v debootstrap >/dev/null && command -v umoci >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends debootstrap umoci; }

race: ## every test with the race detector
	go test -race ./...

lint: ## vet and the linter
	go vet ./...
	GOBIN="$(CURDIR)/.build" go install $(LINT)
	.build/golangci-lint run ./...

law: ## the import law and the house rules
	go test -count=1 ./services

fuzz: ## each fuzz target for FUZZ (30s)
	@git grep -l '^func Fuzz' -- '*_test.go' ':!conformance' | while read -r f; do for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\).*/\1/p' "$$f"); do \
		go test -run='^$$' -fuzz="^$$t$$" -fuzztime=$(FUZZ) "./$$(dirname "$$f")" || exit 1; done; done

crash: ## the tests that cut the power and kill, twenty times
	go test -count=20 -run 'PowerLoss|Crash|Kill' ./...

bench: build image ## /bin/true through gantry beside containerd, as root
	cd bench && go run .

proto: ## generate our own protocol, and check it
	cd proto && buf lint && buf generate

install: build ## copy bin/ to PREFIX (/usr/local)
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/libexec/gantry"
	install bin/gantryctl bin/containerd-shim-gantry-v1 "$(DESTDIR)$(PREFIX)/bin/"
	install bin/gantryd "$(DESTDIR)$(PREFIX)/libexec/gantry/"
	@for d in $(DAEMONS); do ln -sf gantryd "$(DESTDIR)$(PREFIX)/libexec/gantry/$$d"; done

clean: ## remove what was built
	rm -rf bin .build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  \1 /p' $(MAKEFILE_LIST) | awk '{printf "  make %-10s", $$1; $$1=""; print}'

.PHONY: all run test build image deps deps-test race lint law fuzz crash bench proto install clean help
