#!/usr/bin/env bash
# A test that fails with something mounted in its folder: the cleanup lets the mount go and removes nothing through it, whether it is of
# another file system or a bind mount of the same.
. "$(dirname "$0")/../lib/e2e.sh"
in_own_netns "$@"
requires root
kept=$(mktemp -d "${TMPDIR:-/tmp}/vmd-kept.XXXXXX")
trap 'rm -f "$kept/file"; rmdir "$kept"; cleanup' EXIT
echo precious >"$kept/file"
dir=$T/victim
mkdir -p "$dir/bind/below" "$dir/tmp"
mount --bind "$kept" "$dir/bind" && mount -t tmpfs tmpfs "$dir/tmp" || skip "needs to mount"
mkdir "$dir/tmp/again" && mount --bind "$kept" "$dir/tmp/again" || fail "a mount in a mount"
check "it is removed" remove_tree "$dir"
[ ! -e "$dir" ] || fail "the folder is gone: $(find "$dir")"
[ "$(cat "$kept/file" 2>/dev/null)" = precious ] || fail "what was mounted in it is still there"
