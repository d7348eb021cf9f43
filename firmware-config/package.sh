#!/usr/bin/env bash
# Makes a Debian package of a built binary:
#
#   firmware-config/package.sh ARCH BINARY [OUT]
#
# ARCH is amd64, arm64 or armhf; OUT is the folder it goes to, dist/ by default. The manual pages and
# completions come from the binary itself, so one for another processor needs qemu-user-static. The
# package's path is the last line.
set -euo pipefail
arch=${1:?"usage: $0 ARCH BINARY [OUT]"}
binary=$(realpath "${2:?"usage: $0 ARCH BINARY [OUT]"}")
cd "$(dirname "$0")/.."
out=${3:-dist}

case $arch in
    amd64) run=() ;;
    arm64) run=(qemu-aarch64-static -E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib -L /usr/aarch64-linux-gnu) ;;
    armhf) run=(qemu-arm-static -E LD_LIBRARY_PATH=/usr/arm-linux-gnueabihf/lib -L /usr/arm-linux-gnueabihf) ;;
    *) echo "$0: no such architecture: $arch" >&2; exit 1 ;;
esac
[ "$arch" != "$(dpkg --print-architecture)" ] || run=()

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
put() { install -D -m "$1" "$2" "$root/$3"; }

# The time that everything in the package bears: packages of the same source are the same.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}
export SOURCE_DATE_EPOCH
# With the time in it: apt takes a package of the same version for what is installed already.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)+$(date -ud "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)

put 755 "$binary" usr/bin/fledge
"${run[@]}" "$binary" manual "$root/made"
for page in "$root"/made/man/*.1; do
    put 644 "$page" "usr/share/man/man1/$(basename "$page")"
done
gzip -9n "$root"/usr/share/man/man1/*.1
put 644 "$root/made/completions/fledge.bash" usr/share/bash-completion/completions/fledge
put 644 "$root/made/completions/_fledge" usr/share/zsh/vendor-completions/_fledge
put 644 "$root/made/completions/fledge.fish" usr/share/fish/vendor_completions.d/fledge.fish
rm -r "$root/made"
for board in firmware-config/*.toml; do
    [ "$board" = firmware-config/fledge.toml ] || put 644 "$board" "usr/share/fledge/boards/$(basename "$board")"
done
put 644 firmware-config/fledge.toml etc/fledge/fledge.toml
put 644 firmware-config/fledge.service usr/lib/systemd/system/fledge.service
put 644 README.md usr/share/doc/fledge/README.md
gzip -9n "$root/usr/share/doc/fledge/README.md"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n'
    printf 'Upstream-Name: fledge\n\nFiles: *\nCopyright: %s\n' \
        "$(sed -n 's/^Copyright (c) *//p' LICENSE-MIT | head -1)"
    printf 'License: MIT or Apache-2.0\n The Apache License 2.0 is in\n'
    printf ' /usr/share/common-licenses/Apache-2.0. The MIT licence:\n .\n'
    sed 's/^$/./; s/^/ /' LICENSE-MIT
} >"$root/copyright"
put 644 "$root/copyright" usr/share/doc/fledge/copyright
date=$(LC_ALL=C date -Ru -d "@$SOURCE_DATE_EPOCH")
printf 'fledge (%s) unstable; urgency=medium\n\n  * See the history of the source.\n\n -- The fledge authors <fledge@localhost.invalid>  %s\n' \
    "$version" "$date" >"$root/changelog"
put 644 "$root/changelog" usr/share/doc/fledge/changelog
gzip -9n "$root/usr/share/doc/fledge/changelog"
rm "$root/copyright" "$root/changelog"

# The oldest C library whose symbols suffice.
libc=$(grep -aoE 'GLIBC_2\.[0-9]+' "$binary" | sed 's/GLIBC_//' | sort -Vu | tail -1)
depends="libc6 (>= $libc), adduser"
if readelf -d "$binary" | grep -q libgcc_s; then depends="$depends, libgcc-s1"; fi
mkdir "$root/DEBIAN"
echo /etc/fledge/fledge.toml >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<CONTROL
Package: fledge
Version: $version
Architecture: $arch
Maintainer: The fledge authors <fledge@localhost.invalid>
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: $depends
Recommends: python3-pip
Section: science
Priority: optional
Description: on-device continual learner for camera boards
 fledge teaches a small board to recognise new things from a handful of
 photos, on the device and without a network. It learns one task after another
 and does not forget the earlier ones.
 .
 The service names what a camera sees; it waits until something was learned.
CONTROL
# What debhelper writes for a service that its owner starts and enables.
cat >"$root/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    if ! getent passwd fledge >/dev/null; then
        adduser --system --group --home /var/lib/fledge --no-create-home --quiet fledge
    fi
    # The service makes it only when it starts, and models and a first task come before that.
    [ -d /var/lib/fledge ] || install -d -o fledge -g fledge -m 755 /var/lib/fledge
fi
case "$1" in
    configure | abort-upgrade | abort-deconfigure | abort-remove)
        if deb-systemd-helper debian-installed fledge.service; then
            # After a removal that was no purge.
            deb-systemd-helper unmask fledge.service >/dev/null || true
            if deb-systemd-helper --quiet was-enabled fledge.service; then
                deb-systemd-helper enable fledge.service >/dev/null || true
            fi
        fi
        deb-systemd-helper update-state fledge.service >/dev/null || true
        if [ -d /run/systemd/system ]; then
            systemctl --system daemon-reload >/dev/null || true
            # An upgrade while the service runs goes on with the new program.
            if [ -n "$2" ]; then
                deb-systemd-invoke try-restart fledge.service >/dev/null || true
            fi
        fi
        ;;
esac
SCRIPT
cat >"$root/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop fledge.service >/dev/null || true
fi
SCRIPT
cat >"$root/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
# What was learned is the owner's: not even purge removes /var/lib/fledge.
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = remove ] && command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper mask fledge.service >/dev/null || true
fi
if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge fledge.service >/dev/null || true
    deb-systemd-helper unmask fledge.service >/dev/null || true
fi
SCRIPT
chmod 755 "$root"/DEBIAN/p*
(cd "$root" && find usr etc -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
mkdir -p "$out"
package=$out/fledge_$arch.deb
dpkg-deb -Zxz -z2 --root-owner-group --build "$root" "$package" >&2
realpath "$package"
