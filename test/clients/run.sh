#!/usr/bin/env bash
# Real clients against the server: one line a check, `clients: N passed, N failed` at the end, non-zero when any failed.
#
#   bash test/clients/run.sh [GROUP…]
#
# Groups: skopeo podman containerd crane oras helm cosign manifests docker keep undo ten, and server, which comes last: it looks at
# the log that the others made.
#
# Needs root on Debian 12 and node and go on the path; installs the rest (see install.sh).
#   BOATHOUSE_MAIN=FILE              the server's compiled main.js (default: the project's dist/src/main.js)
#   CLIENT_TEST_REGISTRY=HOST:PORT   aim at a registry that runs already; what needs our own server is skipped
#   EVERYTHING=up|down               with every feature switched on, while the mirror's upstream is up, or away
#   KEEP_WORK=1                      keep the folder with logs and data

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=(skopeo podman containerd crane oras helm cosign manifests docker keep undo ten server)

# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=install.sh
source "$here/install.sh"
# shellcheck source=images.sh
source "$here/images.sh"
for group in "${groups[@]}"; do
  # shellcheck source=/dev/null
  source "$here/$group.sh"
done
if everything_on; then groups=("${groups[@]/#server/features}" server); fi
if [ $# -gt 0 ]; then groups=("$@"); fi

before_clean_up() { stop_docker_engine; }

give_up() {
  printf 'clients: 0 passed, 1 failed (%s)\n' "$1"
  exit 1
}

install_clients || give_up 'the clients could not be installed'
# shellcheck disable=SC2031
# From here on no client finds a configuration or credentials of whoever runs this.
export HOME="$WORK/home" DOCKER_CONFIG="$WORK/home/.docker" XDG_CONFIG_HOME="$WORK/home/.config" \
  XDG_CACHE_HOME="$WORK/home/.cache" XDG_DATA_HOME="$WORK/home/.local"
unset REGISTRY_AUTH_FILE DOCKER_HOST DOCKER_CONTEXT CONTAINERD_ADDRESS XDG_RUNTIME_DIR http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

mkdir -p "$DOCKER_CONFIG"
echo "{}" >"$DOCKER_CONFIG/config.json" # podman insists that the file is there
make_images || give_up 'no images to test with'
if everything_on; then
  switch_everything_on || give_up 'not everything could be switched on'
fi
start_server 0 BOATHOUSE_QUOTAS='limits/**=64KB' || give_up 'no server'
if everything_on; then prepare_features; fi
for group in "${groups[@]}"; do "test_$group"; done
finish "clients${EVERYTHING:+ with everything on, upstream $EVERYTHING}"
