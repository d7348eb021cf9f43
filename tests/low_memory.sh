#!/usr/bin/env bash
# Learns and classifies real photographs with the default model at the settings of the Pi Zero 2 W in
# 256 MiB, and then in less and less memory, where a refusal is an answer and being ended is not.
# Memory is limited by `ulimit -v`, and by a control group where this user may make one.
#
# usage: tests/low_memory.sh PHOTOS [FLEDGE]
#   PHOTOS  folder with train/<task>/<class>/*.jpg and test/<task>/<class>/*.jpg
#   FLEDGE  the binary to test (default: the one `cargo test` built)
set -euo pipefail
shopt -s inherit_errexit
photos=$1
built=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}
fledge=${2:-$built/debug/fledge}
export FLEDGE_HOME=${FLEDGE_HOME:-$built/fledge-home}
config=$(dirname "$0")/../firmware-config/pi-zero-2-w.toml
work=$(mktemp -d)
group=
trap 'rm -rf "$work"; [ -z "$group" ] || rmdir "$group"' EXIT
fail() { echo "$*" >&2; exit 1; }

"$fledge" model get >"$work/model"

# Each way takes a limit in MiB and a command.
by_ulimit() { (ulimit -v $(($1 << 10)) && exec "${@:2}"); }
by_group() {
    if [ -e "$group/memory.max" ]; then
        echo $(($1 << 20)) >"$group/memory.max"
        echo 0 >"$group/memory.swap.max" 2>/dev/null || true
    else
        echo $(($1 << 20)) >"$group/memory.limit_in_bytes"
    fi
    (echo "$BASHPID" >"$group/cgroup.procs" && exec "${@:2}")
}
ways=(by_ulimit)
for top in /sys/fs/cgroup /sys/fs/cgroup/memory; do
    made=$top/fledge-low-memory-$$
    if mkdir "$made" 2>/dev/null; then
        if [ -e "$made/memory.max" ] || [ -e "$made/memory.limit_in_bytes" ]; then
            group=$made
            ways+=(by_group)
            break
        fi
        rmdir "$made"
    fi
done
[ -n "$group" ] || echo "no control group to be had here: only ulimit -v is tested" >&2

on_zero() { "$way" "$limit" "$fledge" --config "$config" "$@"; }

# Small enough to be learned again and again.
for class in "$photos"/train/birds/*/; do
    mkdir -p "$work/few/$(basename "$class")"
    find "$class" -name '*.jpg' | sort | head -4 |
        while read -r photo; do ln -s "$(realpath "$photo")" "$work/few/$(basename "$class")"; done
done
mapfile -t seen < <(find "$photos/test/birds" -name '*.jpg' | sort | awk 'NR % 10 == 1')

# tried COMMAND...: whether it did what it should; a refusal has to say what would do, and that has
# to be true. Anything else, such as being ended by a signal, is a failure.
tried() {
    local code=0
    on_zero "$@" >"$work/out" 2>"$work/told" || code=$?
    [ "$code" != 0 ] || return 0
    local wanted
    wanted=$(sed -n 's/.*raise the limit to \([0-9]*\) MiB.*/\1/p' "$work/told")
    if [ "$code" != 1 ] || [ -z "$wanted" ]; then
        cat "$work/told" >&2
        fail "$way $limit MiB: $1 ended with $code"
    fi
    local refused=$limit limit=$wanted
    on_zero "$@" >/dev/null || fail "$way: refused in $refused MiB, $1 does not do in $wanted MiB either"
    return 1
}

for way in "${ways[@]}"; do
    limit=256
    state=$work/$way.fledge
    on_zero learn --task "$photos/train/birds" --state "$state" --epochs 3
    on_zero learn --task "$photos/train/mammals" --state "$state" --epochs 1
    on_zero classify --state "$state" --json "${seen[@]}" >"$work/answers"
    python3 - "$work/answers" <<'P'
import json, sys
images = json.load(open(sys.argv[1]))["images"]
right = sum(image["label"] == image["image"].split("/")[-2] for image in images)
print(f"  classified {len(images)} birds, {right} right")
if right * 2 < len(images):
    sys.exit("fewer than half are right")
P
    enough=(256 256)
    less=(224 184 168 152 136 112 80 64)
    # The program itself takes addresses, but hardly any memory that is its own.
    [ "$way" = by_ulimit ] || less+=(52 44 36 28 24)
    for limit in "${less[@]}"; do
        # Addresses that the program itself does not fit in are the system's to refuse.
        on_zero --version >/dev/null 2>&1 || { echo "$way: the program does not start in $limit MiB"; break; }
        rm -f "$work/few.fledge"
        if tried learn --task "$work/few" --state "$work/few.fledge" --instant; then enough[0]=$limit; fi
        if tried classify --state "$state" "${seen[0]}"; then enough[1]=$limit; fi
    done
    echo "$way: learned and classified in 256 MiB; a few photos in ${enough[0]} and ${enough[1]} MiB, refused below"
done
