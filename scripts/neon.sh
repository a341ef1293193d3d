#!/usr/bin/env bash
# Builds the network and the tests of its kernels, and nothing else of the project, for 64-bit ARM, and runs them
# with qemu, on a processor with and on one without `sdot`: scripts/neon.sh [CASES]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/packages.sh qemu-aarch64:qemu-user aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || scripts/packages.sh :libc6-dev-arm64-cross
target=aarch64-unknown-linux-gnu
rustup target add $target

# A crate of the network without the engine of tensors, whose library would take long to build.
crate=target/neon
mkdir -p $crate/src/model $crate/src/train
rm -rf $crate/src/model/network $crate/tests
cp -r src/model/network $crate/src/model/
rm -r $crate/src/model/network/reference
sed -i '/^pub mod reference;$/d' $crate/src/model/network/mod.rs
cp src/model/error.rs $crate/src/model/
cp src/train/corpus.rs $crate/src/train/
mkdir -p $crate/tests/common
cp tests/network_kernels.rs $crate/tests/
cp tests/common/{engines,network,random}.rs $crate/tests/common/
cat > $crate/src/lib.rs <<'END'
pub mod model {
    mod error;
    pub mod network;
    pub use error::ModelError;
}
pub mod train {
    pub mod corpus;
}
END
{
    printf '[package]\nname = "s2sfs"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\n'
    grep -E '^(blake3|safetensors|serde|serde_json|thiserror|proptest) =' Cargo.toml
} > $crate/Cargo.toml
[ -e $crate/Cargo.lock ] || cp Cargo.lock $crate/

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export S2SFS_NETWORK_CASES="${1:-20}"
for processor in max cortex-a72; do
    echo "== qemu-aarch64 -cpu $processor"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $processor -L /usr/aarch64-linux-gnu"
    "${CARGO:-cargo}" test --release --target $target --manifest-path $crate/Cargo.toml -- --nocapture
done
