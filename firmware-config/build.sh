#!/usr/bin/env bash
# Builds fledge for a board, or for this machine, and tests it there under emulation.
#
#   firmware-config/build.sh TARGET                 the stripped binary; its path is the last line
#   firmware-config/build.sh TARGET test [ARG...]   cargo test, run by qemu-user where needed
#   firmware-config/build.sh TARGET prepare         only gets what these need
#
# TARGET is aarch64-unknown-linux-gnu, armv7-unknown-linux-gnueabihf or x86_64-unknown-linux-gnu.
# BOARD=pi-3 (or another file of this folder) tunes for one board's processor; such a binary may
# not run on others. Where `cross` and a container engine are found, they build; elsewhere Debian's
# own packages do, which root gets installed and anyone else is told of.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?"usage: $0 TARGET [test [ARG...]]"}
task=${2:-build}
shift $(($# < 2 ? $# : 2))

fail() { echo "$0: $*" >&2; exit 1; }

case $target in
    aarch64-unknown-linux-gnu)     arch=arm64 gnu=aarch64-linux-gnu qemu=qemu-aarch64-static ;;
    armv7-unknown-linux-gnueabihf) arch=armhf gnu=arm-linux-gnueabihf qemu=qemu-arm-static ;;
    x86_64-unknown-linux-gnu)      arch=amd64 gnu=x86_64-linux-gnu qemu= ;;
    *) fail "no such target: $target" ;;
esac
case ${BOARD:-} in
    "") tuned= ;;
    pi-zero-2-w | pi-3) tuned="-C target-cpu=cortex-a53" ;;
    jetson-nano) tuned="-C target-cpu=cortex-a57" ;;
    pi-4) tuned="-C target-cpu=cortex-a72" ;;
    pi-5) tuned="-C target-cpu=cortex-a76" ;;
    jetson-orin-nano) tuned="-C target-cpu=cortex-a78" ;;
    *) fail "no such board: $BOARD" ;;
esac

out=${CARGO_TARGET_DIR:-target}/boards
upper=$(tr 'a-z-' 'A-Z_' <<<"$target")

if [ "$task" = build ] && command -v cross >/dev/null && { docker info || podman info; } &>/dev/null; then
    CROSS_CONFIG=cross.toml RUSTFLAGS=$tuned cross build --locked --profile dist \
        --target "$target" --target-dir "$out"
    realpath "$out/$target/dist/fledge"
    exit
fi

# The standard library of the target: that of the default toolchain, or Debian's. Debian names the
# package after its users; it is the current compiler, and its programs are rustc and rustdoc.
if [ -d "$(rustc --print target-libdir --target "$target")" ]; then
    packages=()
else
    packages=(rustc-web "libstd-rust-web-dev:$arch")
    export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
fi
if [ -n "$qemu" ]; then
    packages+=("gcc-$gnu" "libc6-dev-$arch-cross" qemu-user-static)
    export "CARGO_TARGET_${upper}_LINKER=$gnu-gcc"
    # The C library of the cross compiler, whole: a mix with one installed for the target hangs.
    export "CARGO_TARGET_${upper}_RUNNER=$qemu -E LD_LIBRARY_PATH=/usr/$gnu/lib -L /usr/$gnu"
    strip=$gnu-strip
else
    strip='strip'
fi
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
install() {
    apt-get update -q >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "install these first, as root: dpkg --add-architecture $arch && apt-get update && apt-get install ${missing[*]}"
    known=$(dpkg --print-architecture && dpkg --print-foreign-architectures)
    dpkg --add-architecture "$arch" >&2
    # An index may be read while the archive writes it; a minute later it is whole.
    install "${missing[@]}" || { sleep 60 && install "${missing[@]}"; } || {
        # An architecture whose index is broken breaks every later update too.
        grep -qx "$arch" <<<"$known" || dpkg --remove-architecture "$arch" >&2
        fail "Debian's packages are not to be had: ${missing[*]}"
    }
fi
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$("${RUSTC:-rustc}" --version | cut -d' ' -f2)
printf '%s\n' "$wanted" "$found" | sort -CV || fail "Rust $wanted or newer is needed, and ${RUSTC:-rustc} is $found"

# Rust links the unwinder as a shared library. It is linked in instead, so that nothing but libc is
# needed: this file is found before the compiler's own of that name.
unwinder=$(realpath -m "$out/unwinder")
mkdir -p "$unwinder"
echo "INPUT(-lgcc_eh -lgcc)" >"$unwinder/libgcc_s.so"

# Panics name files of dependencies: without the folder in front, which would say where this was built.
cargo fetch --locked --target "$target" >&2
remapped=
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    remapped+=" --remap-path-prefix=$sources="
done

# Dependencies are compiled once, as machine code for the tests and as bitcode for the binary, which
# alone is worth the minutes of link-time optimisation. Its opt-level is that of the command line;
# the library keeps its own.
export "CARGO_TARGET_${upper}_RUSTFLAGS=-C embed-bitcode=yes$remapped $tuned"
export CARGO_PROFILE_DIST_LTO=off CARGO_PROFILE_DIST_STRIP=none
cargo=(--locked --profile dist --target "$target" --target-dir "$out")
case $task in
    build)
        cargo rustc "${cargo[@]}" --bin fledge -- -C lto=fat -C codegen-units=1 \
            -C opt-level=z -L "native=$unwinder"
        "$strip" --strip-all --remove-section=.comment -o "$out/$target/fledge" "$out/$target/dist/fledge"
        realpath "$out/$target/fledge"
        ;;
    test) cargo test "${cargo[@]}" "$@" ;;
    prepare) ;;
    *) fail "no such task: $task" ;;
esac
