#!/bin/sh
# Makes a base image of Debian alone, for machines that reach no image registry:
#
#   deploy/docker/debian-base.sh NAME [SUITE]      SUITE defaults to bookworm
#
# It needs root, debootstrap and a Docker daemon, and takes Debian's packages from
# where debootstrap finds them. The authorities that this machine trusts are
# trusted in the image. DOCKER names the client.
set -eu
name=$1
suite=${2:-bookworm}
docker=${DOCKER:-docker}

root=$(mktemp -d)
# debootstrap mounts /proc there, and leaves it where it fails.
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$root" >&2
mkdir -p "$root/etc/ssl/certs"
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
tar --create --directory "$root" \
    --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/man/*' \
    . | "$docker" import --change 'CMD ["python3"]' - "$name"
