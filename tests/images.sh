#!/usr/bin/env bash
# Builds both images on a Debian base of its own and looks inside: no registry, no container engine. As root, with
# apt-get install buildah debootstrap. BUILD_FLAGS are more flags of buildah (an index of packages, a volume with them).
#   bash tests/images.sh [FOLDER for the base, default a temporary one]
set -euo pipefail
cd "$(dirname "$0")/.."
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
folder="${1:-$(mktemp -d)}" base=localhost/moonshard-base:bookworm

if [ ! -e "$folder/etc/debian_version" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder"
fi
scratch=$(buildah from scratch)
buildah add -q "$scratch" "$folder" /
buildah commit -q "$scratch" "$base"
buildah rm "$scratch"

check() { # NAME PROGRAM: runs the command, the chart's hook and Python in the image as its own user
    container=$(buildah from "localhost/moonshard/$1")
    buildah run "$container" -- sh -euc 'test "$(id -u)" = 10001; test ! -w /app; moonshard --version
        moonshard drain --help >/dev/null; python -c "$1"' - "$2"
    buildah rm "$container" >/dev/null
}

for name in router worker; do
    # shellcheck disable=SC2086
    buildah bud -q --build-arg BASE="$base" ${BUILD_FLAGS:-} -f "helm/images/$name.Containerfile" -t "moonshard/$name" .
done
check router 'import importlib.util as u, moonshard.router.__main__, smg; assert not u.find_spec("torch") and not u.find_spec("ray")'
check worker 'import moonshard.attention.worker, moonshard.experts.worker, moonshard.kernels as k, ray; assert k.available()'
buildah images --format '{{.Name}} {{.Size}}'
