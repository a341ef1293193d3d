# Everything a person does with the project. `make help` lists it.

SHELL := /bin/bash
CARGO ?= cargo
PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin
MANDIR = $(DESTDIR)$(PREFIX)/share/man
# mount(8) looks for its helpers here only.
SBINDIR = $(DESTDIR)/sbin
UNITDIR = $(DESTDIR)/etc/systemd/system

OPTIONS ?=
RESULTS ?= target/bench

BUILT = target/release/s2sfs
HELPER = target/release/mount.s2sfs
MOUNT_ARGS = $(if $(OPTIONS),-o $(OPTIONS))

.PHONY: help packages bench-packages build mount umount test fmt man demo bench install uninstall clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

packages: ## Install the Debian packages that building and mounting need, if any is missing
	@scripts/packages.sh cc:build-essential fusermount3:fuse3

bench-packages:
	@scripts/packages.sh mksquashfs:squashfs-tools git:git

build: packages ## Build target/release/s2sfs and mount.s2sfs
	$(CARGO) build --release --locked
	@ln -sfn s2sfs $(HELPER)

mount: ## Set everything up and mount: make mount STORE=/data MNT=/mnt [OPTIONS=cache=1G]
	@test -n "$(STORE)" -a -n "$(MNT)" || { echo 'usage: make mount STORE=/data MNT=/mnt [OPTIONS=...]' >&2; exit 2; }
	@$(MAKE) --no-print-directory build
	@mkdir -p "$(MNT)"
	$(HELPER) "$(STORE)" "$(MNT)" $(MOUNT_ARGS)
	@$(BUILT) status "$(MNT)"

umount: ## Unmount and wait for the daemon: make umount MNT=/mnt
	@test -n "$(MNT)" || { echo 'usage: make umount MNT=/mnt' >&2; exit 2; }
	$(BUILT) umount "$(MNT)"

test: packages ## Check the format, run clippy and all tests
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	$(CARGO) test --release --locked

fmt: ## Format the sources
	$(CARGO) fmt

man: build ## Make the manual pages anew from the program's own tables
	$(BUILT) man s2sfs.1 > target/s2sfs.1 && mv target/s2sfs.1 docs/man/s2sfs.1
	$(BUILT) man mount.s2sfs.8 > target/mount.s2sfs.8 && mv target/mount.s2sfs.8 docs/man/mount.s2sfs.8

demo: build ## Copy this tree into a temporary store, settle, show the ratios, read back, compare
	@scripts/demo.sh $(BUILT) $(HELPER)

# CORPUS is a directory with one directory per class. Without it, the project's own text is measured.
bench: build bench-packages ## Measure everything in docs/benchmarks.md: make bench [CORPUS=dir] [SPLICE=1]
	$(BUILT) bench-store --results $(RESULTS) $(if $(CORPUS),--corpus $(CORPUS)) $(MOUNT_ARGS) \
		$(if $(SPLICE),--splice docs/benchmarks.md --splice README.md)

install: build ## Install program, mount helper, manual pages and systemd unit (PREFIX, DESTDIR)
	install -D -m 755 $(BUILT) $(BINDIR)/s2sfs
	install -d $(SBINDIR)
	ln -sfn $(PREFIX)/bin/s2sfs $(SBINDIR)/mount.s2sfs
	install -D -m 644 docs/man/s2sfs.1 $(MANDIR)/man1/s2sfs.1
	install -D -m 644 docs/man/mount.s2sfs.8 $(MANDIR)/man8/mount.s2sfs.8
	install -d $(UNITDIR)
	sed 's|@BINDIR@|$(PREFIX)/bin|' systemd/s2sfs@.service > $(UNITDIR)/s2sfs@.service
	chmod 644 $(UNITDIR)/s2sfs@.service

uninstall: ## Remove what install installed
	rm -f $(BINDIR)/s2sfs $(SBINDIR)/mount.s2sfs $(UNITDIR)/s2sfs@.service
	rm -f $(MANDIR)/man1/s2sfs.1 $(MANDIR)/man8/mount.s2sfs.8

clean: ## Remove everything that was built
	$(CARGO) clean
