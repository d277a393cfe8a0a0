# make demo     a small branch on this machine: one copy over the WAN, shown
# make test     the tests
# make bench    the benchmarks, with figures
# make build    the program alone
# make install  the program and its systemd units, below PREFIX; after make build
#
# Everything is built in one profile, release: RocksDB takes half an hour of one core, and a second
# profile would build it again. So would another choice of packages than the whole workspace: cargo
# then builds the build scripts' own dependencies with other features. CARGO_TARGET_DIR moves the
# build folder.

PREFIX ?= /usr/local
CARGO ?= cargo
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
BIN = $(abspath $(TARGET_DIR))/release

.PHONY: build demo test bench lint install clean

build:
	scripts/setup build
	$(CARGO) build --release --locked --workspace --bin branchline

demo:
	scripts/setup demo
	$(CARGO) build --release --locked --workspace --bins
	BRANCHLINE_BIN=$(BIN)/branchline $(BIN)/branchline-demo

test:
	scripts/setup test
	$(CARGO) build --release --locked --workspace --bins
	BRANCHLINE_BIN=$(BIN)/branchline scripts/test

bench:
	scripts/setup bench
	$(CARGO) build --release --locked --workspace --bins --examples
	BRANCHLINE_BIN=$(BIN)/branchline $(BIN)/branchline-bench
	$(BIN)/branchline-sim --svg docs/swarm-growth.svg
	$(BIN)/branchline-sim --troubles

lint:
	scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

install:
	@test -x $(BIN)/branchline || { echo "make install: run 'make build' first, as the user who has cargo" >&2; exit 1; }
	install -D -m 755 $(BIN)/branchline $(DESTDIR)$(PREFIX)/bin/branchline
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|@PREFIX@|$(PREFIX)|' packaging/branchline.service.in \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/system/branchline.service
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/user
	sed 's|@PREFIX@|$(PREFIX)|' packaging/branchline-user.service.in \
	    > $(DESTDIR)$(PREFIX)/lib/systemd/user/branchline.service
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	COMPLETE=bash $(BIN)/branchline \
	    > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/branchline

clean:
	$(CARGO) clean
