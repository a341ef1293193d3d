#!/bin/bash
# The stress test under the thread sanitizer. It needs the standard library's sources, to build it anew.
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
# Only the stress test: it keeps the index in memory. sled orders its memory with fences, which the
# sanitizer does not understand. Code in C is not instrumented; what it touches is ordered by our locks.
RUSTFLAGS="-Zsanitizer=thread" cargo +nightly test -Zbuild-std --target "$target" \
    --target-dir target/tsan --release --locked --test volume_stress "$@"
