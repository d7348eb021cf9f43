#!/usr/bin/env bash
# Learns five tasks of real photographs, one after another, with default settings and again with
# --instant, and checks the accuracy over all classes at the end.
#
# usage: tests/real_photos.sh PHOTOS [FLEDGE]
#   PHOTOS  folder with train/<task>/<class>/*.jpg and test/<task>/<class>/*.jpg
#   FLEDGE  the binary to test (default: the one `cargo test` built)
set -euo pipefail
shopt -s inherit_errexit
photos=$1
fledge=${2:-${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/debug/fledge}
export FLEDGE_HOME=${FLEDGE_HOME:-${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/fledge-home}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$fledge" model get
mkdir "$work/all"
for class in "$photos"/test/*/*/; do
    ln -s "$(realpath "$class")" "$work/all/$(basename "$class")"
done

# accuracy NAME [FLAG...]: learns the tasks in order into NAME.fledge, prints percent correct.
accuracy() {
    local state=$work/$1.fledge
    shift
    for task in birds mammals sea instruments vehicles; do
        "$fledge" learn --task "$photos/train/$task" --state "$state" --json "$@" |
            python3 -c 'import json, sys
r = json.load(sys.stdin)
line = "  {task}: {images} images, {epochs} epochs, {seconds:.1f} s".format(**r)
print(line, file=sys.stderr)'
    done
    "$fledge" score --task "$work/all" --state "$state" --json |
        python3 -c 'import json, sys; print("%.2f" % (100 * json.load(sys.stdin)["accuracy"]))'
}

echo "default settings:" >&2
learned=$(accuracy default)
echo "instant:" >&2
instant=$(accuracy instant --instant)
echo "real-photo test: ran; accuracy over all classes: default $learned %, instant $instant %"
python3 - "$learned" "$instant" <<'P'
import sys
learned, instant = map(float, sys.argv[1:])
if learned < 90:
    sys.exit(f"default settings reach {learned} %, below 90 %")
if learned < instant:
    sys.exit(f"default settings ({learned} %) end below --instant ({instant} %)")
P
