#!/usr/bin/env bash
# Learns, scores and forgets on ARM with a small random ViT, and takes a state file from this
# machine to ARM and back:
#
#   tests/arm_round.sh HOST_BINARY ARM_BINARY
#
# ARM_BINARY runs by qemu-aarch64-static; FLEDGE_ARM_TARGET is the target it was built for.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(realpath "${1:?"usage: $0 HOST_BINARY ARM_BINARY"}")
arm=$(realpath "${2:?"usage: $0 HOST_BINARY ARM_BINARY"}")
target=${FLEDGE_ARM_TARGET:-aarch64-unknown-linux-gnu}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLEDGE_HOME=$work/home

on_arm() { qemu-aarch64-static -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib -L /usr/aarch64-linux-gnu "$arm" "$@"; }

# stripes FILE RED GREEN BLUE WIDTH SHIFT: a picture of 40 x 32 pixels.
stripes() {
    awk -v r="$2" -v g="$3" -v b="$4" -v w="$5" -v s="$6" 'BEGIN {
        print "P3 40 32 255"
        for (y = 0; y < 32; y++) for (x = 0; x < 40; x++)
            print int((x + s * 5) / w) % 2 ? "40 40 40" : r " " g " " b
    }' >"$1"
}
for index in 1 2 3 4 5 6; do
    mkdir -p "$work"/{birds/{robin,tit},fish/{trout,goldfish}}
    stripes "$work/birds/robin/$index.ppm" 220 60 30 5 $index
    stripes "$work/birds/tit/$index.ppm" 60 120 230 7 $index
    stripes "$work/fish/trout/$index.ppm" 40 200 160 4 $index
    stripes "$work/fish/goldfish/$index.ppm" 250 180 20 11 $index
done

# names ONE OF: "the score of TASK with the state is at least 0.9".
right() {
    local run=$1 task=$2 state=$3
    "$run" score --task "$work/$task" --state "$state" --reject 0 --json |
        python3 -c 'import json, sys; a = json.load(sys.stdin)["accuracy"]; sys.exit(f"accuracy {a}" if a < 0.9 else 0)'
}
# rewritten FILE ARG...: the library's own test reads the file and writes it back.
rewritten() {
    FLEDGE_EXCHANGE=$1 "${@:2}" --test state_exchange -- --ignored
    cmp "$1" "${1%.fledge}.back"
}

cp tests/fixtures/onnx/timm_vit_opset14.onnx "$work/small.onnx"
on_arm model get --from "$work/small.onnx"
mv "$FLEDGE_HOME" "$work/home.arm"
"$host" model get --from "$work/small.onnx"
diff -r "$FLEDGE_HOME" "$work/home.arm"
echo "ARM imports the same model file"

small=(--model small --resolution 28 --adapt-blocks 1)
"$host" learn --task "$work/birds" --state "$work/host.fledge" "${small[@]}" --epochs 2
right on_arm birds "$work/host.fledge"
echo "ARM knows what this machine learned"
rewritten "$work/host.fledge" firmware-config/build.sh "$target" test

cp "$work/host.fledge" "$work/arm.fledge"
on_arm learn --task "$work/fish" --state "$work/arm.fledge" --epochs 1
right on_arm fish "$work/arm.fledge"
right on_arm birds "$work/arm.fledge"
right "$host" fish "$work/arm.fledge"
echo "this machine knows what ARM learned"
rewritten "$work/arm.fledge" cargo test --locked

on_arm forget --class trout --state "$work/arm.fledge"
on_arm state show --state "$work/arm.fledge" | tee "$work/shown"
if grep -q trout "$work/shown"; then
    echo "trout is still known" >&2
    exit 1
fi
echo "learned, scored and forgot on ARM; states are the same to the byte on both sides"
