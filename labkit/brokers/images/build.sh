#!/usr/bin/env bash
# Build a stand-in for the official RabbitMQ image from Debian packages alone.
#
# Why: the compose file names the official image, which needs a container registry.
# Machines that reach only a Debian mirror (a build machine, a closed classroom network)
# get an image with the same outside from here: entrypoint, command, PATH, user, data
# volume, /etc/rabbitmq/conf.d, enabled_plugins, RABBITMQ_* variables, exposed ports.
# What is inside is Debian's build of RabbitMQ and Erlang, not upstream's.
#
# `labkit image` runs this; docs/offline-image.md describes it.
#
#   build.sh                  build the image if missing
#   build.sh --rootfs DIR     no Docker: unpack the same tree in DIR, to be run by chroot
#   build.sh --suites LIST    Debian suites to try, in order. Default "forky trixie":
#                             RabbitMQ 4.3 (what the compose file names), else 4.0.
#   build.sh --tag NAME       default labkit-rabbitmq:4-management
#   build.sh --force          build even if a current one is there
#
# Needs: Debian or a derivative with Debian's archive keyring, root, and mmdebstrap
# (installed from apt if missing). The mirror is read from this machine's own apt
# configuration. About 25 s on 2 cores; under 1 s when it is already there.
# The last line of stdout is the tag (or DIR); everything else goes to stderr.
set -euo pipefail
cd "$(dirname "$0")"

tag=labkit-rabbitmq:4-management
suites='forky trixie'
force='' rootfs=''
while [ $# -gt 0 ]; do
    case $1 in
        --suites) suites=${2:?}; shift ;;
        --tag)    tag=${2:?}; shift ;;
        --rootfs) rootfs=${2:?}; shift ;;
        --force)  force=1 ;;
        -h|--help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        *) echo "unknown argument: $1" >&2; exit 2 ;;
    esac
    shift
done
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

recipe=$(cat "${0##*/}" standin/* | sha256sum | cut -c1-12)

image_label() { docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || true; }

if [ -z "$rootfs" ]; then
    docker info >/dev/null 2>&1 || { say "no Docker engine answers (try --rootfs)"; exit 3; }
    if [ -z "$force" ] && [ "$(image_label "$tag" labkit.standin)" = "$recipe $suites" ]; then
        say "$tag is current"
        echo "$tag"
        exit 0
    fi
else
    case $rootfs in /*) ;; *) rootfs=$OLDPWD/$rootfs ;; esac
    if [ -z "$force" ] && [ "$(cat "$rootfs/.labkit-standin" 2>/dev/null)" = "$recipe $suites" ]; then
        say "$rootfs is current"
        echo "$rootfs"
        exit 0
    fi
fi

[ "$(id -u)" = 0 ] || { say "only root can unpack a whole system: run it with sudo"; exit 7; }
if [ -n "$rootfs" ]; then
    # The old tree is replaced at the end; a node that runs in it would lose its files.
    for process in /proc/[0-9]*/root; do
        [ "$(readlink "$process" 2>/dev/null)" = "$rootfs" ] || continue
        say "a broker runs in $rootfs: end it first (labkit down)"; exit 8
    done
fi
command -v apt-get >/dev/null || { say "this needs Debian or a derivative (no apt-get here)"; exit 4; }
if ! command -v mmdebstrap >/dev/null; then
    say "installing mmdebstrap"
    apt-get install -y --no-install-recommends mmdebstrap >&2 \
        || { apt-get update >&2 && apt-get install -y --no-install-recommends mmdebstrap >&2; }
fi

# The mirror and the download settings that this machine's apt uses.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
[ -n "$mirror" ] || { say "no apt source configured here"; exit 4; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keyring" ] || keyring=/usr/share/keyrings/debian-archive-keyring.pgp
aptopts=()
while IFS= read -r line; do aptopts+=(--aptopt="$line"); done < <(
    apt-config dump | grep -E '^Acquire::(https?|Check-Valid-Until|Retries)' | grep -v '""')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Hooks get the new tree as $1. The user exists before the package is set up, with
# the numeric id that upstream's image uses, so that named volumes can be shared.
cat >"$work/essential" <<'HOOK'
#!/bin/sh -e
echo 'rabbitmq:x:999:' >>"$1/etc/group"
echo 'rabbitmq:x:999:999::/var/lib/rabbitmq:/usr/sbin/nologin' >>"$1/etc/passwd"
HOOK
cat >"$work/customize" <<'HOOK'
#!/bin/sh -e
home=$(cd "$1" && ls -d usr/lib/rabbitmq/lib/rabbitmq_server-*)
mkdir -p "$1/opt" "$1/etc/rabbitmq/conf.d" "$1/var/log/rabbitmq" "$1/var/lib/rabbitmq" \
    "$1/labkit"     # a node without Docker finds its own directory mounted here
ln -s "/$home" "$1/opt/rabbitmq"
ln -s /opt/rabbitmq/plugins "$1/plugins"
cp standin/10-defaults.conf "$1/etc/rabbitmq/conf.d/"
echo '[rabbitmq_management,rabbitmq_prometheus].' >"$1/etc/rabbitmq/enabled_plugins"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"   # for --rootfs: Docker brings its own
# Debian's settings file is all comments; its service files are never used here.
rm -f "$1/etc/rabbitmq/rabbitmq-env.conf" "$1/var/lib/rabbitmq/.erlang.cookie"
ln -sf /var/lib/rabbitmq/.erlang.cookie "$1/root/.erlang.cookie"
install -m 0755 standin/docker-entrypoint.sh "$1/usr/local/bin/docker-entrypoint.sh"
chown -R 999:999 "$1/var/lib/rabbitmq" "$1/var/log/rabbitmq" "$1/etc/rabbitmq"
chmod 1777 "$1/var/lib/rabbitmq" "$1/var/log/rabbitmq" "$1/etc/rabbitmq" "$1/etc/rabbitmq/conf.d"
HOOK
chmod +x "$work/essential" "$work/customize"

build() { # suite, target (a .tar or a directory)
    mmdebstrap --quiet --variant=essential "${aptopts[@]}" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include=rabbitmq-server,ca-certificates,tzdata \
        --essential-hook="$work/essential \"\$1\"" \
        --customize-hook="$work/customize \"\$1\"" \
        "$1" "$2" "deb [signed-by=$keyring] $mirror $1 main" >"$work/log" 2>&1
}

target=$work/rootfs.tar
if [ -n "$rootfs" ]; then
    if [ -n "$(ls -A "$rootfs" 2>/dev/null)" ] && [ ! -e "$rootfs/.labkit-standin" ]; then
        say "$rootfs is not empty and not a tree of ours: left alone"; exit 5
    fi
    target=$rootfs.new      # beside it, then renamed: what is there stays whole until then
    rm -rf "$target"
fi
built=''
for suite in $suites; do
    say "building from Debian $suite"
    if build "$suite" "$target"; then built=$suite; break; fi
    say "Debian $suite did not work:"
    tail -n 5 "$work/log" >&2
    rm -rf "$target"
done
[ -n "$built" ] || { say "no suite of '$suites' could be built"; exit 6; }

if [ -n "$rootfs" ]; then
    echo "$recipe $suites" >"$target/.labkit-standin"
    rm -rf "$rootfs"        # end the nodes that run in it first
    mv "$target" "$rootfs"
    echo "$rootfs"
    exit 0
fi

version=$(tar -tf "$target" | sed -n 's,.*/rabbitmq_server-\([0-9.]*\)/plugins/$,\1,p' | head -n 1)
docker import \
    --change 'ENV PATH=/opt/rabbitmq/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV HOME=/var/lib/rabbitmq' \
    --change 'ENV RABBITMQ_DATA_DIR=/var/lib/rabbitmq' \
    --change 'ENV RABBITMQ_HOME=/opt/rabbitmq' \
    --change "ENV RABBITMQ_VERSION=$version" \
    --change 'ENV LANG=C.UTF-8' --change 'ENV LC_ALL=C.UTF-8' \
    --change 'VOLUME /var/lib/rabbitmq' \
    --change 'EXPOSE 4369 5671 5672 15671 15672 15691 15692 25672' \
    --change 'ENTRYPOINT ["docker-entrypoint.sh"]' \
    --change 'CMD ["rabbitmq-server"]' \
    --change "LABEL labkit.standin=\"$recipe $suites\"" \
    --change "LABEL labkit.rabbitmq=$version" \
    --message "RabbitMQ $version from Debian $built packages" \
    "$target" "$tag" >&2
echo "$tag"
