#!/usr/bin/env bash
# Trains a network with latents in several ways, all equally long, and says what each is worth on held-out data.
#     scripts/latents.sh CORPUS NETWORK OUT [STEPS] [WAY...]
# CORPUS: the files that NETWORK, a directory of `s2sfs train --network`, was trained on.
set -euo pipefail
[[ $# -ge 3 ]] || { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
corpus=$1 network=$2 out=$3 steps=${4:-700}
shift $(($# < 4 ? $# : 4))
here=$(cd "$(dirname "$0")/.." && pwd)
s2sfs=${S2SFS:-$here/target/release/s2sfs}

# What each way changes of models/latents.toml, as sed expressions.
declare -A ways=(
    [none]='s/^without = .*/without = 1.0/'
    [first-32]='s/^latents = .*/latents = 32/'
    [first-128]=''
    [salient-16]='s/^latents = .*/latents = 16/; s/^copy = .*/copy = "salient"/'
    [both-128]='s/^copy = .*/copy = "both"/'
    [recurring-128]='s/^copy = .*/copy = "recurring"/'
    [chunk-4]='s/^latents = .*/latents = 4/; s/^purpose = .*/purpose = "chunk"/; s/^batch = .*/batch = 60/'
    [a2c-4]='s/^latents = .*/latents = 4/; s/^latent_vocabulary = .*/latent_vocabulary = 256/; s/^copy = .*/copy = "salient"/
        s/^copy_share = .*/copy_share = 0.2\ngloss = false/; s/^batch = .*/batch = 6/'
)
[[ $# -gt 0 ]] || set -- none first-32 first-128 salient-16 both-128 recurring-128 chunk-4 a2c-4

mkdir -p "$out"
for way in "$@"; do
    [[ -v "ways[$way]" ]] || { echo "$way is none of: ${!ways[*]}" >&2; exit 2; }
    sed "${ways[$way]}" "$here/models/latents.toml" > "$out/$way.toml"
    "$s2sfs" train "$corpus" --s2s "$out/$way.toml" --from "$network" --judge net-small --steps "$steps" \
        -o "$out/$way" --force 2> "$out/$way.log"
    echo "$way: $(tail -n 1 "$out/$way.log" | sed 's/^[^:]*: //')"
done
logs=()
for way in "$@"; do logs+=("$out/$way/log.csv"); done
"$s2sfs" plot-training "${logs[@]}" -o "$out/training.svg"
