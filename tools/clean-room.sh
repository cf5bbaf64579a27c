#!/usr/bin/env bash
# Runs a command in a clean clone of this repository, in a minimal Debian that has gcc and the Rust toolchain and
# nothing else, as root or as a plain user. Needs root and debootstrap here. Everything is in one folder and one
# mount namespace: it is gone afterwards.
#
#   tools/clean-room.sh root|user COMMAND..
set -euo pipefail
who=$1
shift
top=$(cd "$(dirname "$0")/.." && pwd)
base=${CLEAN_ROOM_BASE:-/var/tmp/blockd-clean-room-base}
room=$(mktemp -d /var/tmp/blockd-clean-room.XXXXXX)
trap 'rm -rf --one-file-system "$room"' EXIT

if [ ! -e "$base/.complete" ]; then
    rm -rf "$base"
    debootstrap --variant=minbase --include=gcc,libc6-dev,git,ca-certificates bookworm "$base" >&2
    touch "$base/.complete"
fi
cp -a "$base/." "$room/"
rustup=${RUSTUP_HOME:-$HOME/.rustup}
cargo=${CARGO_HOME:-$HOME/.cargo}
git clone -q --no-local "$top" "$room/blockd"
mkdir -p "$room/opt/rustup" "$room/opt/bin" "$room/home/user"
cp -L /etc/resolv.conf "$room/etc/resolv.conf"
cp -L /etc/hosts "$room/etc/hosts"
chroot "$room" useradd -M -d /home/user user 2>/dev/null || true
case $who in
root) run_as="env HOME=/root" ;;
user)
    chown -R 1000:1000 "$room/blockd" "$room/home/user"
    run_as="setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/user"
    ;;
*) echo "root or user?" >&2; exit 2 ;;
esac
export room rustup cargo run_as
unshare --mount --pid --fork bash -c '
    set -eu
    mount --bind -o ro "$rustup" "$room/opt/rustup"
    mount --bind -o ro "$cargo/bin" "$room/opt/bin"
    mount --bind -o ro /etc/ssl/certs "$room/etc/ssl/certs"
    mount --bind -o ro /usr/share/ca-certificates "$room/usr/share/ca-certificates"
    [ ! -d /usr/local/share/ca-certificates ] || {
        mkdir -p "$room/usr/local/share/ca-certificates"
        mount --bind -o ro /usr/local/share/ca-certificates "$room/usr/local/share/ca-certificates"
    }
    mount --rbind /dev "$room/dev"
    mount -t proc proc "$room/proc"
    mount -t sysfs -o ro sysfs "$room/sys"
    exec chroot "$room" $run_as PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin RUSTUP_HOME=/opt/rustup \
        sh -c "cd /blockd && exec \"\$@\"" sh "$@"
' bash "$@"
