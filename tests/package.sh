#!/usr/bin/env bash
# Holds a binary and the Debian package made of it to what is promised:
#
#   tests/package.sh ARCH BINARY
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${1:?"usage: $0 ARCH BINARY"}
binary=${2:?"usage: $0 ARCH BINARY"}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$arch: $*" >&2; exit 1; }

bytes=$(stat -c %s "$binary")
echo "$arch: the stripped binary has $bytes bytes"
if [ "$arch" = arm64 ]; then
    [ "$bytes" -le $((12 << 20)) ] || fail "more than 12 MiB"
fi
for library in $(readelf -d "$binary" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    case $arch:$library in
        *:libc.so.6 | *:libm.so.6 | *:ld-linux-*) ;;
        # A build by cargo alone; firmware-config/build.sh links the unwinder in.
        amd64:libgcc_s.so.1) ;;
        *) fail "needs $library" ;;
    esac
done

package=$(firmware-config/package.sh "$arch" "$binary" "$work" | tail -1)
dpkg-deb -x "$package" "$work/root"
for file in usr/bin/fledge etc/fledge/fledge.toml usr/lib/systemd/system/fledge.service \
    usr/share/man/man1/fledge.1.gz usr/share/man/man1/fledge-learn.1.gz \
    usr/share/bash-completion/completions/fledge usr/share/zsh/vendor-completions/_fledge \
    usr/share/fish/vendor_completions.d/fledge.fish usr/share/fledge/boards/pi-zero-2-w.toml; do
    [ -s "$work/root/$file" ] || fail "lacks $file"
done
run=()
if [ "$arch" = arm64 ] && [ "$(dpkg --print-architecture)" != arm64 ]; then
    run=(qemu-aarch64-static -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib -L /usr/aarch64-linux-gnu)
fi
"${run[@]}" "$work/root/usr/bin/fledge" --version
for config in "$work"/root/etc/fledge/fledge.toml "$work"/root/usr/share/fledge/boards/*.toml; do
    "${run[@]}" "$work/root/usr/bin/fledge" --config "$config" config show >/dev/null
done

# What the machine's own tools say of the rest; those it lacks are named.
check() { # check TOOL COMMAND...
    if command -v "$1" >/dev/null; then "${@:2}"; else echo "$arch: no $1 here to check with"; fi
}
share=$work/root/usr/share
bash -n "$share/bash-completion/completions/fledge"
check zsh zsh -n "$share/zsh/vendor-completions/_fledge"
check fish fish --no-execute "$share/fish/vendor_completions.d/fledge.fish"
for page in "$share"/man/man1/*.1.gz; do
    said=$(check man man --warnings -E UTF-8 -Tutf8 -Z -l "$page" 2>&1 >/dev/null)
    [ -z "$said" ] || fail "$page: $said"
done
sed "s|^ExecStart=|&$work/root|" "$work/root/usr/lib/systemd/system/fledge.service" >"$work/fledge.service"
check systemd-analyze systemd-analyze verify --man=no "$work/fledge.service"
if ! command -v lintian >/dev/null && [ "$(id -u)" = 0 ]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends lintian >/dev/null
fi
lintian --allow-root --fail-on error "$package"
echo "$arch: the package holds what it should"
