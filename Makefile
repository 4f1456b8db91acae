# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
GO      ?= go
VERSION ?= $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
BUILT   ?= $(shell git log -1 --format=%cI 2>/dev/null)
# The date of the last commit is the floor of a terminal's clock.
STAMP   := -X github.com/kagimori/kagimori/transport/control/verb.Version=$(VERSION) -X main.built=$(BUILT)
FLAGS   := -trimpath -ldflags '-s -w $(STAMP)'
FUZZTIME ?= 30s
HSM     ?= file

programs := kagimori kagimori-gate kagimori-server
dir_kagimori        := ./agent/cmd/kagimori
dir_kagimori-gate   := ./agent/cmd/kagimori-gate
dir_kagimori-server := ./server/cmd/kagimori-server

.PHONY: help build man demo test check race fuzz bench soak cross size clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the three programs, static, into bin/
	@slim=$$(GO='$(GO)' scripts/slim.sh) && $(foreach p,$(programs),CGO_ENABLED=0 $(GO) build $$slim $(FLAGS) -o bin/$(p) $(dir_$(p)) &&) true
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/upstream ./scripts/upstream

man: build ## the man pages of the three programs, from the same texts as --help, into bin/man
	@mkdir -p bin/man && $(foreach p,$(programs),bin/$(p) man bin/man &&) true

demo: ## a terminal is enrolled, replaced, and its successor reaches the service (HSM=tpm: on emulated chips)
	@HSM=$(HSM) scripts/setup.sh demo
	@$(MAKE) --no-print-directory build
	@HSM=$(HSM) scripts/demo.sh

test: ## everything that must pass
	@scripts/setup.sh test
	@$(MAKE) --no-print-directory check
	$(GO) test -race -shuffle=on -timeout 10m ./...
	@$(MAKE) --no-print-directory size

check: ## formatting, vet, staticcheck, the layout of the house
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=scripts/tools.mod staticcheck ./...
	$(GO) test ./scripts

race: ## all tests under the race detector, ten times over
	$(GO) test -race -shuffle=on -count=10 -timeout 60m ./...

fuzz: ## every fuzz target for FUZZTIME (30s)
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

bench: ## benchmarks, and key copies beside magic-wormhole
	@scripts/setup.sh bench
	$(GO) test -run '^$$' -bench . -benchmem ./...
	KAGIMORI_BENCH=1 $(GO) test -run TestBench -v ./scripts/stories

soak: ## what takes too long for make test, an emulated ARM board with its kernel included
	@scripts/setup.sh soak
	KAGIMORI_SOAK=1 $(GO) test -timeout 3h -run 'Soak' -v ./...

cross: ## the agent for every board, static, into bin/
	@scripts/cross.sh

size: ## the agent's size on every board, against its limit
	@scripts/cross.sh size

clean: ## what the other targets made
	rm -rf bin demo
