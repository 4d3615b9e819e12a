# shellcheck shell=bash disable=SC2034
# The clients: Debian's packages, and Go programs built once into a cache that later runs find.
#
# Sourced by the suites; `bash test/clients/install.sh` installs everything that any of them needs.

# Pinned: name, version, module, package. A new version is a new file in the cache.
go_tools=(
  'crane v0.22.1 github.com/google/go-containerregistry github.com/google/go-containerregistry/cmd/crane'
  'oras v1.2.3 oras.land/oras oras.land/oras/cmd/oras'
  'helm v3.22.0 helm.sh/helm/v3 helm.sh/helm/v3/cmd/helm'
  'cosign v3.1.3 github.com/sigstore/cosign/v3 github.com/sigstore/cosign/v3/cmd/cosign'
)
conformance_tool='conformance v0.0.0-20260831232431-97274622c111 github.com/opencontainers/distribution-spec/conformance github.com/opencontainers/distribution-spec/conformance'

packages=(docker.io containerd podman buildah skopeo busybox-static curl jq zstd ca-certificates nginx-light openssl)

tools_dir=${XDG_CACHE_HOME:-${HOME_BEFORE:-$HOME}/.cache}/boathouse-tools

# Packages bring services that must not start (they would take default sockets and ports): RUNLEVEL=1 keeps them down.
install_packages() {
  local missing=() package
  for package in "$@"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then missing+=("$package"); fi
  done
  if [ "${#missing[@]}" -eq 0 ]; then return 0; fi
  printf '# installing %s\n' "${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  {
    apt-get -o DPkg::Lock::Timeout=300 update &&
      apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"
  } >"$WORK/apt.log" 2>&1 || {
    tail -n 30 "$WORK/apt.log"
    return 1
  }
}

# install_go_tool NAME VERSION MODULE PACKAGE
# Built in a module of its own that requires exactly this version (so that no look-up of other versions is needed).
# Written under another name first: an interrupted build leaves nothing that a later run would take for the tool.
install_go_tool() {
  local name=$1 version=$2 module=$3 package=$4 target="$tools_dir/$1-$2" build="$WORK/build-$1"
  if [ -x "$target" ]; then return 0; fi
  printf '# building %s %s\n' "$name" "$version"
  mkdir -p "$tools_dir" "$build"
  printf 'module tool\n\ngo 1.24\n\nrequire %s %s\n' "$module" "$version" >"$build/go.mod"
  printf 'package tool\n\nimport _ "%s"\n' "$package" >"$build/tool.go"
  if (
    cd "$build" || exit 1
    export HOME=$HOME_BEFORE CGO_ENABLED=0
    nice -n 5 go build -mod=mod -trimpath -ldflags='-s -w' -o "$target.part.$$" "$package"
  ) >"$WORK/build-$name.log" 2>&1; then
    mv "$target.part.$$" "$target"
  else
    rm -f "$target.part.$$"
    printf '%s %s could not be built:\n' "$name" "$version"
    tail -n 20 "$WORK/build-$name.log"
    return 1
  fi
}

# go_tool_path NAME: where the pinned version of it lies.
go_tool_path() {
  local tool
  for tool in "${go_tools[@]}" "$conformance_tool"; do
    # shellcheck disable=SC2086 # the fields of a row
    set -- "$1" $tool
    if [ "$2" = "$1" ]; then
      printf '%s/%s-%s' "$tools_dir" "$2" "$3"
      return 0
    fi
  done
  return 1
}

install_clients() {
  install_packages "${packages[@]}" || return 1
  local tool
  for tool in "${go_tools[@]}"; do
    # shellcheck disable=SC2086 # the fields of a row
    install_go_tool $tool || return 1
  done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -uo pipefail
  # shellcheck source=lib.sh
  source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
  # shellcheck disable=SC2086 # the fields of a row
  install_packages docker-registry openssl && install_clients && install_go_tool $conformance_tool
fi
