#!/bin/bash
# Runs every fuzz target: fuzz.sh [SECONDS_EACH] [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzzing needs a nightly compiler: rustup toolchain install nightly" >&2
    exit 1
fi
if ! command -v cargo-fuzz >/dev/null; then
    cargo install cargo-fuzz --locked
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)

# The program makes the seeds, so that they follow the format.
S2SFS_FUZZ_SEEDS="$PWD/fuzz/corpus" cargo test --release --locked --quiet --test fuzz_smoke seeds_are_written
# The C code of zstd is left without instrumentation: that of gcc and that of the Rust compiler do not go
# together (gcc marks constant tables that only its own runtime knows).
export CFLAGS="-fno-sanitize=all"
cargo +nightly fuzz build
for target in "${targets[@]}"; do
    echo "== $target, $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 \
        -max_len=65536 -print_final_stats=0 -verbosity=0
done
echo "no target found anything"
