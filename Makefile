# Everything a person does with the project. `make help` lists it.

SHELL := /bin/bash
CARGO ?= cargo
PREFIX ?= /usr/local
# mount(8) looks for its helpers here only.
SBINDIR ?= /sbin
UNITDIR ?= /etc/systemd/system

OPTIONS ?=
RESULTS ?= target/bench
SECONDS ?= 60
TARGET ?=

BUILT = target/release/s2sfs
HELPER = target/release/mount.s2sfs
MOUNT_ARGS = $(if $(OPTIONS),-o $(OPTIONS))

.PHONY: help packages test-packages bench-packages torture-packages build mount umount test exactness neon gpu-test bench-network bench-training bench-kernels bench-instructions bench-scale posix damage torture mutants fuzz shuttle tsan fmt man demo bench install uninstall deb deb-test clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

packages: ## Install the Debian packages that building and mounting need, if any is missing
	@scripts/packages.sh cc:build-essential fusermount3:fuse3

test-packages: packages
	@scripts/packages.sh mkfs.ext4:e2fsprogs losetup:mount xfs_io:xfsprogs mksquashfs:squashfs-tools || \
		echo "tests with images of other file systems will be skipped" >&2
	@scripts/packages.sh systemd-analyze:systemd zsh:zsh fish:fish elvish:elvish || \
		echo "tests of units and of completions will be skipped" >&2

torture-packages: test-packages
	@scripts/packages.sh stress-ng:stress-ng

bench-packages:
	@scripts/packages.sh mksquashfs:squashfs-tools git:git
	@scripts/packages.sh squashfuse:squashfuse mkfs.erofs:erofs-utils mkfs.btrfs:btrfs-progs bindfs:bindfs \
		zpaq:zpaq zstd:zstd xz:xz-utils brotli:brotli gzip:gzip || echo "some comparisons will be missing" >&2

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

test: test-packages ## Check the format, run clippy and all tests
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --all-targets -- -D warnings
	$(CARGO) test --release --locked

CASES ?= 10000

# One thread for candle: its products are tiny here, and it counts the processors before each.
exactness: ## Compare random networks on every engine, kernel and path: make exactness [CASES=10000]
	RAYON_NUM_THREADS=1 S2SFS_NETWORK_CASES=$(CASES) nice $(CARGO) test --release --locked --test network_exactness -- --nocapture

neon: ## Run the tests of the network's NEON kernels under emulation: make neon [CASES=20]
	@CARGO="$(CARGO)" scripts/neon.sh $(if $(filter command line,$(origin CASES)),$(CASES),20)

# A build of its own: its programs do not start without NVIDIA's driver.
gpu-test: ## Compare the network on all CUDA devices with the processor (needs nvcc)
	@command -v nvcc >/dev/null || { echo "make gpu-test needs nvcc, the CUDA compiler: install NVIDIA's CUDA toolkit" \
		"(12 or 13) and put its bin directory in PATH" >&2; exit 2; }
	@command -v nvidia-smi >/dev/null || { echo "make gpu-test needs a GPU and NVIDIA's driver: nvidia-smi is not" \
		"there, so the network was NOT tested on a GPU" >&2; exit 2; }
	S2SFS_NEEDS_CUDA=1 CARGO_TARGET_DIR=target/cuda $(CARGO) test --release --locked --features cuda --test network_cuda --test train_network -- --nocapture

bench-network: ## Measure the speed of the network's kernels and of coding with it
	$(CARGO) test --release --locked --test network_speed --test network_codec_speed -- --ignored --nocapture

bench-training: ## Measure the speed of gradients on the processor, with latents and without
	$(CARGO) test --release --locked --test train_speed -- --ignored --nocapture

FILTER ?=

bench-kernels: packages ## Measure the speed of every kernel, with criterion: make bench-kernels [FILTER=words]
	$(CARGO) bench --locked --bench kernels -- $(if $(FILTER),"$(FILTER)")

bench-instructions: packages ## Count the instructions of every kernel, where something can: make bench-instructions [FILTER=words]
	@CARGO="$(CARGO)" scripts/bench-instructions.sh "$(FILTER)"

LIMIT ?= 10

bench-scale: build ## Measure how the costs of a store grow: make bench-scale [LIMIT=minutes] [SPLICE=1]
	$(BUILT) bench scale --results $(RESULTS) --limit-minutes $(LIMIT) $(MOUNT_ARGS) $(if $(SPLICE),--splice docs/scale.md)

MUTATIONS ?= 10000
SEED ?= 0

damage: ## Damage stores in many ways, and check and repair them: make damage [MUTATIONS=10000] [SEED=0]
	S2SFS_MUTATIONS=$(MUTATIONS) S2SFS_SEED=$(SEED) nice $(CARGO) test --release --locked --test damage_corpus -- --nocapture

# FSX_OPS, FSX_SEEDS, POSIX_STRESS_SECONDS, PGBENCH_SECONDS and others: see scripts/posix/.
posix: build ## Run public suites and real programs on a mount, as root: make posix [SUITES="fsx git"]
	@scripts/posix/run.sh $(SUITES)

torture: build torture-packages ## Kill, cut the power, damage and stress for hours: make torture [PARTS="kill power"] [SPLICE=1]
	@CARGO="$(CARGO)" PARTS="$(PARTS)" SPLICE="$(SPLICE)" scripts/torture.sh

mutants: packages ## Plant faults and demand that the tests find them
	@CARGO="$(CARGO)" scripts/mutants.sh

fuzz: packages ## Run every fuzz target with cargo-fuzz: make fuzz [SECONDS=60] [TARGET=name]
	@scripts/fuzz.sh $(SECONDS) $(TARGET)

shuttle: packages ## Run the small lock-ordering parts in thousands of thread orders
	$(CARGO) test --release --locked --features shuttle --lib shuttle_

tsan: packages ## Run the tests of many threads under the thread sanitizer (needs a nightly compiler)
	@scripts/tsan.sh

fmt: ## Format the sources
	$(CARGO) fmt

man: build ## Make the manual pages anew from the program's own tables
	$(BUILT) man s2sfs.1 > target/s2sfs.1 && mv target/s2sfs.1 docs/man/s2sfs.1
	$(BUILT) man mount.s2sfs.8 > target/mount.s2sfs.8 && mv target/mount.s2sfs.8 docs/man/mount.s2sfs.8
	$(BUILT) man metrics.md > target/metrics.md && mv target/metrics.md docs/metrics.md
	$(BUILT) man s2sfs.toml.5 > target/s2sfs.toml.5 && mv target/s2sfs.toml.5 docs/man/s2sfs.toml.5

demo: build ## Copy this tree into a temporary store, settle, show the ratios, read back, compare
	@scripts/demo.sh $(BUILT) $(HELPER)

# CORPUS is a directory with one directory per class. Without it, the project's own text is measured. ALONE leaves out other
# file systems and programs.
bench: build bench-packages ## Measure everything in docs/benchmarks.md: make bench [CORPUS=dir] [ALONE=1] [SPLICE=1]
	$(BUILT) bench-store --results $(RESULTS) $(if $(CORPUS),--corpus $(CORPUS)) $(MOUNT_ARGS) $(if $(ALONE),--alone) \
		$(if $(SPLICE),--splice docs/benchmarks.md --splice README.md)

# A program that BUILT= names on the command line is taken as it is.
WITH_BUILT = $(if $(filter command line,$(origin BUILT)),,build)
INSTALL = BUILT="$(BUILT)" PREFIX="$(PREFIX)" SBINDIR="$(SBINDIR)" UNITDIR="$(UNITDIR)" DESTDIR="$(DESTDIR)" \
	FORCE="$(FORCE)" scripts/install.sh

install: $(WITH_BUILT) ## Install program, mount helper, manual pages, completions, units, docs (PREFIX, DESTDIR)
	@$(INSTALL) install

uninstall: ## Remove what install installed (same PREFIX and DESTDIR)
	@$(INSTALL) uninstall

deb: $(WITH_BUILT) ## Make a Debian package with cargo-deb: target/debian/s2sfs_*.deb
	@CARGO="$(CARGO)" scripts/deb.sh "$(BUILT)"

deb-test: deb ## Install the package on this machine, mount with it and remove it, as root
	@scripts/deb-test.sh "$$(ls -t target/debian/s2sfs_*.deb | head -n 1)"

clean: ## Remove everything that was built
	$(CARGO) clean
