#!/usr/bin/env bash
# The project's own random test (tests/mount_random.rs), which also does what fsx cannot: zero_range, copies
# between two files, settling and remounts. RANDOM_OPS operations for each of RANDOM_SEEDS.
source "$(dirname "$0")/lib.sh"
export RANDOM_OPS=${RANDOM_OPS:-200000} RANDOM_SEEDS=${RANDOM_SEEDS:-1 2 3 4 5}
(cd "$root" && cargo test --release --locked --quiet --test mount_random -- --nocapture) >"$dir/random.log" 2>&1 ||
    { tail -n 80 "$dir/random.log"; fail "see above"; }
if grep SKIPPED "$dir/random.log"; then fail "not everything was tested"; fi
summary="$RANDOM_OPS operations for each of the seeds $RANDOM_SEEDS"
