#!/bin/bash
# The tests of many threads under the thread sanitizer. It needs the standard library's sources, to build it anew.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "the thread sanitizer needs a nightly compiler: rustup toolchain install nightly" >&2
    exit 1
fi
rustup component add rust-src --toolchain nightly >/dev/null 2>&1 || true
if [ ! -d "$(rustc +nightly --print sysroot)/lib/rustlib/src/rust/library/std" ]; then
    echo "the thread sanitizer needs rust-src: rustup component add rust-src --toolchain nightly" >&2
    exit 1
fi
target=$(rustc +nightly -vV | sed -n 's/^host: //p')
# Code in C is not instrumented; what it touches is ordered by our locks.
export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp ${TSAN_OPTIONS:-}"
export S2SFS_STRESS_SECONDS="${S2SFS_STRESS_SECONDS:-60}"
RUSTFLAGS="-Zsanitizer=thread" cargo +nightly test -Zbuild-std --target "$target" \
    --target-dir target/tsan --release --locked \
    --test volume_stress --test store_threads --test network_lanes "$@"
