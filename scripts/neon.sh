#!/usr/bin/env bash
# Builds the tests of the network for 64-bit ARM and runs them with qemu: scripts/neon.sh [CASES]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/packages.sh qemu-aarch64:qemu-user aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || scripts/packages.sh :libc6-dev-arm64-cross
target=aarch64-unknown-linux-gnu
rustup target add $target

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export RAYON_NUM_THREADS=1 S2SFS_NETWORK_CASES="${1:-20}"
CARGO="${CARGO:-cargo}"
"$CARGO" test --release --locked --target $target --lib model::network -- --nocapture
"$CARGO" test --release --locked --target $target --test network_exactness -- --nocapture
