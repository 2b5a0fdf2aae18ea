VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-devel)
FLAGS   := -trimpath -ldflags '-s -w -X main.version=$(VERSION) -X github.com/gantryd/gantry/services/daemon.version=$(VERSION)'
DAEMONS := contentd snapshotd imaged taskd eventbus gatewayd
PREFIX  ?= /usr/local
LINT    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZ    ?= 30s
FUZZED  ?= .
KILLS   ?= 500
CYCLES  ?= 1000
CHAOS   ?= 20m
DEPS    ?= runc debootstrap umoci mkfs.btrfs:btrfs-progs mkfs.erofs:erofs-utils /usr/lib/cni/bridge:containernetworking-plugins iptables ip:iproute2 node:nodejs npm
LOUDLY  := [ "$$(id -u)" = 0 ] || printf '\n*** NOT ROOT: what mounts, runs containers or starts the suite is not tested. Run make test as root. ***\n\n' >&2

.PHONY: all run test build image deps race lint law fuzz crash kills chaos cycles sim bench proto install clean help
all: build lint law test ## what CI runs on a change
run: DEPS = runc
run: deps build image    ## see it at work: a suite in a scratch place, a container, its events
	@bin/gantryctl demo
test: deps build image   ## every test; as root those that mount and run containers too
	@$(LOUDLY)
	go test -timeout 30m ./...
	cd conformance && go test -timeout 30m ./...
	cd bench && go vet ./...
	@$(LOUDLY)
build:                   ## bin/: the daemons, gantryctl, the shim, netd, dnsd
	CGO_ENABLED=0 go build $(FLAGS) -o bin/ ./cmd/gantryd ./cmd/gantryctl ./cmd/containerd-shim-gantry-v1 ./cmd/netd ./cmd/dnsd
	@for d in $(DAEMONS); do ln -sf gantryd bin/$$d; done
image:                   ## bin/demo.tar: the demo image, the same bytes every time
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o .build/demo ./cmd/demo
	go run ./cmd/demoimage -o bin/demo.tar .build/demo
deps:                    ## Debian packages whose commands are missing: runc, and what tests use
	@for p in $(DEPS); do command -v $${p%:*} >/dev/null || set -- "$$@" $${p#*:}; done; \
		[ $$# = 0 ] || [ "$$(id -u)" != 0 ] || { apt-get update -q && apt-get install -qy --no-install-recommends "$$@"; }
race:                    ## every test with the race detector
	go test -race -timeout 45m ./...
lint:                    ## vet and the linter
	go vet ./...
	GOBIN="$(CURDIR)/.build" go install $(LINT) && .build/golangci-lint run ./...
law:                     ## the import law and the house rules
	go test -count=1 ./services
fuzz:                    ## every fuzz target below FUZZED, for FUZZ=30s or FUZZ=2000x
	@git grep -o '^func Fuzz[A-Za-z0-9]*' -- $(FUZZED) ':!conformance' | sed 's|/[^/]*:func | |' | while read -r dir f; do \
		go test -run='^$$' -fuzz="^$$f$$" -fuzztime=$(FUZZ) -fuzzminimizetime=10x "./$$dir" || exit 1; done
crash:                   ## the tests that kill and cut the power, twenty times
	go test -count=20 -run 'PowerLoss|Crash|Kill' ./...
kills:                   ## contentd is killed KILLS=500 times under its clients
	CONTENTD_TEST_KILLS=$(KILLS) go test -count=1 -v -timeout 1h -run TestKillLosesNothing ./contentd
chaos: build image       ## every daemon is killed at random for CHAOS=20m, and no event is lost; as root
	cd conformance && CHAOS_TIME=$(CHAOS) go test -count=1 -v -timeout 3h -run 'TestChaosLosesNoEvent$$' .
cycles:                  ## snapshots are made and removed CYCLES=1000 times, and nothing grows
	SNAPSHOTD_TEST_CYCLES=$(CYCLES) go test -count=1 -v -timeout 1h -run TestNothingGrows ./snapshotd
sim:                     ## a thousand simulations of the collector beside its writers; as root
	GC_SIMULATIONS=1000 go test -count=1 -timeout 30m -run 'NothingThat.*Goes' ./contentd ./snapshotd
bench: build image       ## /bin/true, blobs, layers and events through gantry, beside containerd; as root
	cd bench && go run . run && go run . content && go run . unpack && go run . events
proto:                   ## our own protocol, linted and generated
	cd proto && buf lint && buf generate
install: build           ## copy bin/ to PREFIX=/usr/local
	install -D -t "$(DESTDIR)$(PREFIX)/bin" bin/gantryctl
	install -D -t "$(DESTDIR)$(PREFIX)/libexec/gantry" bin/gantryd bin/containerd-shim-gantry-v1 bin/netd bin/dnsd
	ln -sf ../libexec/gantry/containerd-shim-gantry-v1 "$(DESTDIR)$(PREFIX)/bin/"
	@for d in $(DAEMONS); do ln -sf gantryd "$(DESTDIR)$(PREFIX)/libexec/gantry/$$d"; done
clean:                   ## remove what was built
	rm -rf bin .build
help:                    ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10
