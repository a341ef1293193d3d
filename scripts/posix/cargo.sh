#!/usr/bin/env bash
# cargo build and test of a small crate, with everything inside the mount, twice.
source "$(dirname "$0")/lib.sh"
need cc:build-essential

mount_store
mkdir -p "$mnt/crate/src"
cat >"$mnt/crate/Cargo.toml" <<'TOML'
[package]
name = "tiny"
version = "0.1.0"
edition = "2021"
TOML
for i in $(seq 20); do
    echo "pub mod m$i;"
    echo "pub fn f(x: u64) -> u64 { x.wrapping_mul($i) }" >"$mnt/crate/src/m$i.rs"
done >"$mnt/crate/src/lib.rs"
cat >"$mnt/crate/src/main.rs" <<'RUST'
fn main() {
    println!("{}", tiny::m1::f(2) + tiny::m20::f(2));
}
RUST
cd "$mnt/crate"
cargo build --offline --quiet
[ "$(target/debug/tiny)" = 42 ] || fail "the program says something else"
touch src/m3.rs
cargo build --offline --quiet --release
[ "$(target/release/tiny)" = 42 ] || fail "the release build says something else"
"$s2sfs" settle "$mnt"
[ "$(target/release/tiny)" = 42 ] || fail "the settled program says something else"
# Nothing has changed, so nothing may be built again: time stamps are kept.
cargo build --offline --release 2>&1 | grep -q Compiling && fail "built again without a change"
finish_store "debug and release builds"
