#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Real clients at a mirror with real upstreams: one line a check, `mirror clients: N passed, N failed` at the end,
# non-zero when any failed.
#
#   bash test/clients/mirror.sh [GROUP…]
#
# Groups: docker containerd podman skopeo tools second logins sync outage, and none, which comes last: the mirror alone.
#
# Upstreams: Debian's docker-registry twice, open and with htpasswd, and a Boathouse with tokens. Nothing can reach the
# registries of the internet meanwhile: https goes to a proxy that is not there.
#
# Needs what run.sh needs, and docker-registry (installed when it is missing).
#   BOATHOUSE_MAIN=FILE   the server's compiled main.js (default: the project's dist/src/main.js)
#   EVERYTHING=up         with every feature switched on that does not concern the way to the mirrors and who may ask them
#   KEEP_WORK=1           keep the folder with logs and data

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=(docker containerd podman skopeo tools second logins sync outage none)

unset CLIENT_TEST_REGISTRY # the mirrors are configured here
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=install.sh
source "$here/install.sh"
# shellcheck source=images.sh
source "$here/images.sh"
for file in docker podman skopeo containerd oras crane; do
  # shellcheck source=/dev/null
  source "$here/$file.sh"
done
if [ $# -gt 0 ]; then groups=("$@"); fi

before_clean_up() { stop_docker_engine; }

give_up() {
  printf 'mirror clients: 0 passed, 1 failed (%s)\n' "$1"
  exit 1
}

upstream_password='up:stream "with" signs/+='
dev_password='the dev of the mirror'
# Nobody listens at port 1: what would go to the internet fails at once, on every machine.
no_internet=(HTTPS_PROXY=http://127.0.0.1:1 https_proxy=http://127.0.0.1:1 NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost)

# ---------------------------------------------------------------- servers

# start_peer NAME PORT [LINE…]: docker-registry on a folder of its own; the lines are added to its configuration.
start_peer() {
  local name=$1 port=$2
  shift 2
  {
    printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n'
    printf 'storage: {filesystem: {rootdirectory: "%s"}, delete: {enabled: true}}\n' "$WORK/$name"
    printf 'http: {addr: "127.0.0.1:%d"}\n' "$port"
    if [ $# -gt 0 ]; then printf '%s\n' "$@"; fi
  } >"$WORK/$name.yml"
  start_process "$WORK/$name.log" env OTEL_TRACES_EXPORTER=none docker-registry serve "$WORK/$name.yml"
  printf -v "${name}_pid" '%s' "$started"
  wait_until 120 curl -s -o /dev/null "http://127.0.0.1:$port/v2/"
}

# start_boathouse NAME PORT: with the configuration NAME.yaml, if there is one.
start_boathouse() {
  local name=$1 port=$2 options=()
  if [ -f "$WORK/$name.yaml" ]; then options=(--config "$WORK/$name.yaml"); fi
  start_process "$WORK/$name.log" env BOATHOUSE_LOG_FORMAT=json "${features[@]}" node "$server_main" serve "${options[@]}" \
    --listen "127.0.0.1:$port" --data "$WORK/$name"
  printf -v "${name}_pid" '%s' "$started"
  wait_until 120 curl -s -o /dev/null "http://127.0.0.1:$port/v2/" || {
    tail -n 20 "$WORK/$name.log"
    return 1
  }
}

boathouse_at() { timeout 60 env "${features[@]}" node "$server_main" "${@:2}" --data "$WORK/$1"; }

start_open_upstream() { start_peer open "$open_port"; }

start_upstreams() {
  local hash
  open_port=$(free_port) closed_port=$(free_port) tokens_port=$(free_port)
  # shellcheck disable=SC2016 # the signs of a bcrypt salt
  hash=$(perl -e 'print crypt($ARGV[0], q($2b$05$abcdefghijklmnopqrstuu))' "$upstream_password")
  printf 'mirror:%s\n' "$hash" >"$WORK/htpasswd"
  printf 'auth: token\n' >"$WORK/tokens.yaml"
  start_open_upstream && start_peer closed "$closed_port" "auth: {htpasswd: {realm: closed, path: \"$WORK/htpasswd\"}}" &&
    start_boathouse tokens "$tokens_port" &&
    boathouse_at tokens user add ci <<<"$dev_password" && boathouse_at tokens user add alice --admin <<<"$dev_password" &&
    boathouse_at tokens grant pull 'team/**' --to user:ci &&
    ci_token=$(boathouse_at tokens token create --user ci --name mirror --scope 'team/**:pull')
}

# copy_image PORT NAME [skopeo arguments…]: the list of two platforms, as NAME.
copy_image() {
  run_skopeo copy --all --quiet --dest-tls-verify=false "${@:3}" "oci:$layout:list" "docker://127.0.0.1:$1/$2"
}

fill_upstreams() {
  local name
  for name in app other third fourth fifth sixth late; do copy_image "$open_port" "library/$name:1" || return 1; done
  copy_image "$open_port" team/app:1 && copy_image "$open_port" team/taken:1 &&
    copy_image "$closed_port" secret/app:1 --dest-creds "mirror:$upstream_password" &&
    copy_image "$tokens_port" team/app:1 --dest-creds "alice:$dev_password"
}

# mirrors_yaml: the three upstreams, as the mirrors name them.
mirrors_yaml() {
  cat <<CONF
mirrors:
  - name: docker.io
    url: http://127.0.0.1:$open_port
    bareNames: true
    freshness: 0s
  - name: closed.test
    url: http://127.0.0.1:$closed_port
    username: mirror
    passwordFile: $WORK/upstream-password
  - name: tokens.test
    url: http://127.0.0.1:$tokens_port
    username: ci
    password: $ci_token
CONF
}

start_mirror() {
  start_boathouse mirror "$mirror_port" || return 1
  PORT=$mirror_port
  REGISTRY=127.0.0.1:$PORT
}

make_mirror() {
  mirror_port=$(free_port)
  printf '%s\n' "$upstream_password" >"$WORK/upstream-password"
  mirrors_yaml >"$WORK/mirror.yaml"
  start_mirror
}

# asked LOG PATTERN: how many requests the log of a Boathouse has whose line matches.
asked() { grep -cE "\"path\":\"$2" "$WORK/$1.log" || true; }

# ---------------------------------------------------------------- docker

docker_here() { DOCKER_CONFIG="$WORK/docker-nobody" run_docker "$@"; }

start_engine_with_mirror() {
  export "${no_internet[@]}"
  start_docker_engine --registry-mirror "http://127.0.0.1:$1" >"$WORK/engine.log" 2>&1
  unset HTTPS_PROXY https_proxy NO_PROXY no_proxy
}

restart_engine_with_mirror() {
  stop_docker_engine
  start_engine_with_mirror "$1"
}

engine_has_mirror() {
  cat "$WORK/engine.log"
  expect_match 'docker info' "$(docker_here info 2>&1)" "http://127.0.0.1:$PORT/"
}

docker_bare_names() {
  local text before
  forget_images
  before=$(asked mirror '/v2/library/app/manifests/')
  text=$(docker_here pull app:1)
  expect_match output "$text" "^Digest: $list_digest\$"
  expect_match output "$text" 'docker.io/library/app:1'
  [ "$(asked mirror '/v2/library/app/manifests/')" -gt "$before" ]
  [ "$(asked mirror '/v2/library/app/blobs/')" -ge 2 ]
  docker_here pull team/app:1
}

docker_runs_bare_name() {
  expect_equal 'what it prints' "$(docker_here run --rm --network none app:1)" 'built for amd64'
  expect_equal 'pulled by run' "$(docker_here run --rm --network none other:1 2>/dev/null)" 'built for amd64'
}

# That the mirror was it: without it nothing comes.
docker_has_no_other_way() {
  local text
  text=$(docker_here pull library/absent:1 2>&1) && return 1
  expect_match 'the error' "$text" 'proxyconnect|connection refused|Client.Timeout'
}

docker_by_path() {
  local image
  forget_images
  for image in docker.io/library/third docker.io/fourth docker.io/team/app closed.test/secret/app tokens.test/team/app; do
    expect_match "$image" "$(docker_here pull "$REGISTRY/$image:1")" "^Digest: $list_digest\$"
  done
  expect_equal 'what it prints' "$(docker_here run --rm --network none "$REGISTRY/closed.test/secret/app:1")" 'built for amd64'
  docker_here pull "$REGISTRY/docker.io/library/third@$list_digest"
}

docker_by_unknown_path() {
  local text
  text=$(docker_here pull "$REGISTRY/nowhere.test/app:1" 2>&1) && return 1
  expect_match 'no such mirror' "$text" 'manifest unknown|not found'
  text=$(docker_here pull "$REGISTRY/docker.io/library/absent:1" 2>&1) && return 1
  expect_match 'no such image' "$text" 'manifest unknown|not found'
  text=$(docker_here pull "$REGISTRY/tokens.test/private/app:1" 2>&1) && return 1
  expect_match 'not for this token' "$text" 'tokens.test|not found|denied|unknown'
  printf '%s\n' "$text"
}

docker_push_refused() {
  local text image
  docker_here pull "$REGISTRY/docker.io/library/third:1"
  for image in docker.io/library/third docker.io/library/new closed.test/secret/app; do
    docker_here tag "$REGISTRY/docker.io/library/third:1" "$REGISTRY/$image:mine"
    text=$(docker_here push "$REGISTRY/$image:mine" 2>&1) && return 1
    expect_match "push of $image" "$text" 'mirror'
  done
}

docker_own_image_wins() {
  local before
  docker_here pull "$REGISTRY/docker.io/library/third:1"
  docker_here tag "$REGISTRY/docker.io/library/third:1" "$REGISTRY/own/app:1"
  docker_here push "$REGISTRY/own/app:1"
  before=$(grep -c 'own/app' "$WORK/open.log" || true)
  forget_images
  docker_here pull "$REGISTRY/own/app:1"
  expect_equal 'asked upstream' "$(grep -c 'own/app' "$WORK/open.log" || true)" "$before"
}

# The upstream has this repository, and the layers, so that docker would find them there: they must come here all the same.
docker_own_name_of_upstream() {
  docker_here pull "$REGISTRY/docker.io/library/third:1"
  docker_here tag "$REGISTRY/docker.io/library/third:1" "$REGISTRY/team/taken:own"
  docker_here push "$REGISTRY/team/taken:own"
  forget_images
  docker_here pull "$REGISTRY/team/taken:own"
  # From now on the name is ours: the upstream's tag of that name does not come any more.
  expect_failure docker_here pull "$REGISTRY/team/taken:1"
}

test_docker() {
  local version
  start_engine_with_mirror "$PORT"
  check 'docker: an engine of our own starts with the mirror as registry mirror' engine_has_mirror
  check 'docker: bare names come from the mirror' docker_bare_names
  check 'docker: run of bare names, pulled and not' docker_runs_bare_name
  check 'docker: what the mirror has not comes from nowhere' docker_has_no_other_way
  check 'docker: pull by path from three upstreams, open, with htpasswd, with tokens' docker_by_path
  check 'docker: a path without a mirror and an image without an upstream are not found' docker_by_unknown_path
  check 'docker: push to a mirrored name is refused, and says why' docker_push_refused
  check 'docker: images of our own beside the mirrored ones' docker_own_image_wins
  check 'docker: push to a bare name that the upstream has, too' docker_own_name_of_upstream
  if use_newer_docker_cli; then
    version=$("$docker_program" --version | cut -d , -f 1)
    check "docker: bare names with $version" docker_bare_names
    check "docker: pull by path with $version" docker_by_path
    check "docker: push refused with $version" docker_push_refused
    docker_program=/usr/bin/docker
  fi
}

# ---------------------------------------------------------------- containerd

ctr_pull_mirrored() { timeout 120 env "${no_internet[@]}" ctr -a "$containerd_folder/socket" -n boathouse images pull --hosts-dir "$1" "${@:2}"; }

# hosts_toml FOLDER REGISTRY SERVER
hosts_toml() {
  mkdir -p "$1/$2"
  printf 'server = "%s"\n\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$3" "$REGISTRY" >"$1/$2/hosts.toml"
}

ctr_with_hosts() {
  hosts_toml "$WORK/hosts" docker.io https://registry-1.docker.io
  forget_ctr_images
  ctr_pull_mirrored "$WORK/hosts" docker.io/library/fifth:1
  expect_match images "$(run_ctr images ls)" "^docker.io/library/fifth:1 .* $list_digest "
  expect_match 'the log' "$(grep '"path":"/v2/library/fifth/blobs/' "$WORK/mirror.log")" '"agent":"containerd'
}

ctr_with_default_hosts() {
  mkdir -p "$WORK/hosts-default/_default"
  printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$REGISTRY" >"$WORK/hosts-default/_default/hosts.toml"
  forget_ctr_images
  ctr_pull_mirrored "$WORK/hosts-default" closed.test/secret/app:1
  ctr_pull_mirrored "$WORK/hosts-default" tokens.test/team/app:1
  ctr_pull_mirrored "$WORK/hosts-default" docker.io/library/sixth:1
  expect_match images "$(run_ctr images ls)" "^closed.test/secret/app:1 .* $list_digest "
}

ctr_default_without_mirror() {
  local text
  text=$(ctr_pull_mirrored "$WORK/hosts-default" unknown.test/secret/app:1 2>&1) && return 1
  printf '%s\n' "$text"
  # An unknown namespace is as if absent, and docker.io, which bare names fall to, has no such image.
  expect_no_match images "$(run_ctr images ls)" '^unknown.test'
}

mirror_names_namespace() {
  expect_equal OCI-Namespace "$(api_header oci-namespace GET "/v2/secret/app/manifests/1?ns=closed.test" "${accept[@]}")" closed.test
}

test_containerd() {
  start_containerd >"$WORK/containerd-start.log" 2>&1
  check 'containerd: one of our own starts' containerd_runs
  check 'containerd: pull of docker.io with hosts.toml' ctr_with_hosts
  check 'containerd: pulls of three registries with _default/hosts.toml' ctr_with_default_hosts
  check 'containerd: a registry that is not mirrored, with _default' ctr_default_without_mirror
  check 'containerd: the answer names the namespace' mirror_names_namespace
}

# ---------------------------------------------------------------- podman and buildah

podman_registries() {
  cat >"$WORK/registries.conf" <<CONF
unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "docker.io"
location = "docker.io"

[[registry.mirror]]
location = "$REGISTRY/docker.io"
insecure = true

[[registry]]
prefix = "closed.test"
location = "closed.test"

[[registry.mirror]]
location = "$REGISTRY/closed.test"
insecure = true
CONF
}

run_podman_mirrored() { with_podman_settings env "${no_internet[@]}" "$@"; }

podman_mirrored() {
  forget_podman_images
  run_podman_mirrored podman pull docker.io/library/app:1
  run_podman_mirrored podman pull closed.test/secret/app:1
  expect_equal 'what it prints' "$(run_podman_mirrored podman run --rm --network none docker.io/library/app:1)" 'built for amd64'
}

podman_short_name() {
  forget_podman_images
  run_podman_mirrored podman pull other:1
  run_podman_mirrored podman image inspect docker.io/library/other:1 >/dev/null
}

podman_absent() {
  local text
  text=$(run_podman_mirrored podman pull docker.io/library/absent:1 2>&1) && return 1
  expect_match 'the error' "$text" 'manifest unknown|not found|proxyconnect|connection refused'
}

buildah_mirrored() {
  local container
  container=$(run_podman_mirrored buildah from docker.io/library/third:1)
  run_podman_mirrored buildah run --isolation chroot "$container" /bin/cat /etc/platform
  run_podman_mirrored buildah rm "$container"
}

test_podman() {
  prepare_podman
  podman_registries
  check 'podman: pull and run with a mirror in registries.conf' podman_mirrored
  check 'podman: a short name' podman_short_name
  check 'podman: what the mirror has not' podman_absent
  check 'buildah: from an image of the mirror' buildah_mirrored
}

# ---------------------------------------------------------------- skopeo, crane, oras

skopeo_by_path() {
  run_skopeo inspect --raw --tls-verify=false "docker://$REGISTRY/docker.io/library/app:1" >"$WORK/tmp/raw.json"
  cmp "$WORK/tmp/raw.json" "$WORK/tmp/list.json"
  expect_match tags "$(run_skopeo list-tags --tls-verify=false "docker://$REGISTRY/docker.io/library/app")" '"1"'
  rm -rf "$WORK/copied"
  run_skopeo copy --all --src-tls-verify=false "docker://$REGISTRY/tokens.test/team/app:1" "oci:$WORK/copied:1"
  expect_match 'the copy' "$(cat "$WORK/copied/index.json")" "$list_digest"
}

skopeo_refused() {
  local text
  text=$(run_skopeo copy --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/docker.io/library/mine:1" 2>&1) && return 1
  expect_match 'a push' "$text" 'mirror|405|unsupported'
  text=$(run_skopeo delete --tls-verify=false "docker://$REGISTRY/docker.io/library/app:1" 2>&1) && return 1
  expect_match 'a delete' "$text" 'mirror|405|unsupported|MethodNotAllowed'
}

test_skopeo() {
  check 'skopeo: inspect, tags and copy by path' skopeo_by_path
  check 'skopeo: push and delete are refused' skopeo_refused
}

crane_by_path() {
  expect_equal digest "$(run_crane digest "$REGISTRY/docker.io/library/app:1")" "$list_digest"
  run_crane validate --remote "$REGISTRY/closed.test/secret/app:1"
}

oras_by_path() {
  mkdir -p "$oras_folder"
  run_oras manifest fetch "${plain_http[@]}" --registry-config none.json "$REGISTRY/docker.io/library/app:1" >"$WORK/tmp/oras.json"
  cmp "$WORK/tmp/oras.json" "$WORK/tmp/list.json"
  run_oras discover "${plain_http[@]}" --registry-config none.json "$REGISTRY/tokens.test/team/app:1"
}

test_tools() {
  check 'crane: digest and validate by path' crane_by_path
  check 'oras: manifest and referrers by path' oras_by_path
}

# ---------------------------------------------------------------- a mirror of a mirror

make_second() {
  second_port=$(free_port)
  cat >"$WORK/second.yaml" <<CONF
mirrors:
  - name: docker.io
    url: http://127.0.0.1:$mirror_port
  - name: all.test
    url: http://127.0.0.1:$mirror_port
CONF
  start_boathouse second "$second_port"
}

second_level() {
  expect_equal 'by bare names' "$(run_crane digest "127.0.0.1:$second_port/docker.io/library/app:1")" "$list_digest"
  run_crane validate --remote "127.0.0.1:$second_port/all.test/closed.test/secret/app:1"
  run_crane validate --remote "127.0.0.1:$second_port/docker.io/library/late:1"
  expect_match 'the first mirror has it' "$(cat "$WORK/mirror.log")" '"path":"/v2/library/late/blobs/'
}

test_second() {
  make_second || give_up 'no second mirror'
  check 'second: a mirror of a mirror' second_level
}

# ---------------------------------------------------------------- a mirror with users

make_guarded() {
  guarded_port=$(free_port)
  {
    printf 'auth: token\n'
    mirrors_yaml
  } >"$WORK/guarded.yaml"
  start_boathouse guarded "$guarded_port" && boathouse_at guarded user add dev <<<"$dev_password" &&
    boathouse_at guarded grant pull 'docker.io/**' --to anonymous && boathouse_at guarded grant pull 'closed.test/**' --to user:dev
}

docker_anonymous_bare() {
  cat "$WORK/engine.log"
  forget_images
  docker_here pull app:1
  docker_here pull "127.0.0.1:$guarded_port/docker.io/library/other:1"
}

docker_private_hidden() {
  local text
  text=$(docker_here pull "127.0.0.1:$guarded_port/closed.test/secret/app:1" 2>&1) && return 1
  expect_match 'the error' "$text" "denied|may require 'docker login'"
}

docker_wide_grant_hidden() {
  local text
  boathouse_at guarded grant pull '**' --to anonymous
  docker_private_hidden
  text=$(docker_here pull "127.0.0.1:$guarded_port/tokens.test/team/app:1" 2>&1) && return 1
  expect_match 'the error' "$text" "denied|may require 'docker login'"
}

docker_logged_in() {
  DOCKER_CONFIG="$WORK/docker-dev" run_docker login "127.0.0.1:$guarded_port" --username dev --password-stdin <<<"$dev_password"
  DOCKER_CONFIG="$WORK/docker-dev" run_docker pull "127.0.0.1:$guarded_port/closed.test/secret/app:1"
}

no_secret_in_logs() {
  local log
  for log in mirror guarded second; do
    if grep -qF -e "$upstream_password" -e "$ci_token" -e "$dev_password" "$WORK/$log.log" 2>/dev/null; then return 1; fi
  done
}

test_logins() {
  make_guarded >"$WORK/guarded.out" 2>&1 || {
    cat "$WORK/guarded.out"
    give_up 'no mirror with users'
  }
  restart_engine_with_mirror "$guarded_port"
  check 'logins: anonymous pulls, bare and by path, of a mirror that is granted to anonymous' docker_anonymous_bare
  check 'logins: docker login and a pull by path from an upstream with credentials' docker_logged_in
  check 'logins: a private upstream is not for everybody' docker_private_hidden
  check 'logins: nor when all is granted to everybody' docker_wide_grant_hidden
  check 'logins: no password in any log' no_secret_in_logs
}

# ---------------------------------------------------------------- fetching ahead

make_ahead() {
  ahead_port=$(free_port)
  cat >"$WORK/ahead.yaml" <<CONF
mirrors:
  - name: docker.io
    url: http://127.0.0.1:$open_port
    sync: {images: [{repository: late, tags: ["*"], platforms: [linux/amd64]}, {repository: team/app, tags: ["1"]}]}
  - name: closed.test
    url: http://127.0.0.1:$closed_port
    username: mirror
    passwordFile: $WORK/upstream-password
    sync: {images: [{repository: secret/app, tags: ["1"]}]}
  - name: tokens.test
    url: http://127.0.0.1:$tokens_port
    username: ci
    password: $ci_token
    sync: {images: [{repository: team/app, tags: ["1*"]}]}
CONF
  start_boathouse ahead "$ahead_port"
}

ahead() { boathouse_at ahead mirror "$@" --config "$WORK/ahead.yaml"; }

synced() {
  local text
  text=$(ahead sync --dry-run)
  expect_match 'a dry run' "$text" '^docker.io/library/late:1 .* [1-9][0-9.]* .?i?B$'
  text=$(ahead sync)
  printf '%s\n' "$text"
  expect_match 'the open one' "$text" '^docker.io: 2 of 2 images are here; fetched [1-9]'
  expect_match 'with htpasswd' "$text" '^closed.test: 1 of 1 images are here; fetched [1-9]'
  expect_match 'with tokens' "$text" '^tokens.test: 1 of 1 images are here; fetched [1-9]'
  expect_equal 'fetched by the next one' "$(ahead sync | grep -c 'fetched 0 B ')" 3
  expect_equal 'upstreams that are up' "$(ahead status | grep -c '^  upstream  up, answered at ')" 3
}

synced_without_upstream() {
  run_crane pull --platform linux/amd64 "127.0.0.1:$ahead_port/docker.io/library/late:1" "$WORK/tmp/late.tar"
  run_crane validate --remote "127.0.0.1:$ahead_port/docker.io/team/app:1"
  expect_failure run_crane validate --remote "127.0.0.1:$ahead_port/docker.io/library/late:1"
}

test_sync() {
  make_ahead >"$WORK/ahead.out" 2>&1 || give_up 'no mirror that fetches ahead'
  check 'sync: from three upstreams beside a running server, and once' synced
  stop_process "$open_pid"
  check 'sync: without the upstream the wanted platforms are served, and no other' synced_without_upstream
  start_open_upstream || give_up 'the upstream did not come back'
}

# ---------------------------------------------------------------- without upstreams

docker_without_upstream() {
  local text
  forget_images
  docker_here pull app:1
  docker_here pull "$REGISTRY/docker.io/library/third:1"
  expect_equal 'what it prints' "$(docker_here run --rm --network none app:1)" 'built for amd64'
  text=$(curl -s -D - -o /dev/null "${accept[@]}" "http://$REGISTRY/v2/docker.io/library/third/manifests/1")
  expect_match 'the answer' "$text" '^[Ww]arning: 299 - ".*docker\.io'
}

docker_missing_without_upstream() {
  local text
  text=$(docker_here pull "$REGISTRY/docker.io/library/never:1" 2>&1) && return 1
  printf '%s\n' "$text" >"$WORK/words-missing"
  expect_match 'what docker says' "$text" 'docker\.io.*(refused|reached|unavailable)'
}

ctr_without_upstream() {
  forget_ctr_images
  ctr_pull_mirrored "$WORK/hosts" docker.io/library/fifth:1
}

podman_without_upstream() {
  podman_registries
  forget_podman_images
  run_podman_mirrored podman pull docker.io/library/app:1
}

without_upstream() {
  check "$1: docker pulls what is here, and is warned" docker_without_upstream
  check "$1: docker shows why the rest does not come" docker_missing_without_upstream
  if [ -S "$containerd_folder/socket" ]; then check "$1: containerd pulls what is here" ctr_without_upstream; fi
  if [ -f "$WORK/storage.conf" ]; then check "$1: podman pulls what is here" podman_without_upstream; fi
}

# What the groups below count on, whichever have run before.
fill_mirror() {
  run_crane validate --remote "$REGISTRY/docker.io/library/app:1"
  run_crane validate --remote "$REGISTRY/docker.io/library/third:1"
}

upstream_again() { wait_until 60 upstream_answers; }
upstream_answers() { [ "$(manifest_status docker.io/library/late 1)" = 200 ] && ! api GET /v2/docker.io/library/late/manifests/1 -D - -o /dev/null "${accept[@]}" | grep -qi '^warning:'; }

test_outage() {
  check 'outage: the mirror has something' fill_mirror
  restart_engine_with_mirror "$PORT"
  stop_process "$open_pid"
  without_upstream outage
  start_open_upstream
  check 'outage: the upstream comes back' upstream_again
}

restarted_alone() { expect_equal 'status of /v2/' "$(api_status GET /v2/)" 200; }

test_none() {
  local name pid
  stop_process "$mirror_pid"
  for name in open closed tokens; do
    pid=${name}_pid
    stop_process "${!pid}"
  done
  start_mirror || give_up 'the mirror did not start without its upstreams'
  check 'none: the mirror starts without any upstream' restarted_alone
  without_upstream none
}

# ---------------------------------------------------------------- all of it

install_clients || give_up 'the clients could not be installed'
install_packages docker-registry || give_up 'no docker-registry'
# shellcheck disable=SC2031
# From here on no client finds a configuration or credentials of whoever runs this.
export HOME="$WORK/home" DOCKER_CONFIG="$WORK/home/.docker" XDG_CONFIG_HOME="$WORK/home/.config" \
  XDG_CACHE_HOME="$WORK/home/.cache" XDG_DATA_HOME="$WORK/home/.local"
unset REGISTRY_AUTH_FILE DOCKER_HOST DOCKER_CONTEXT CONTAINERD_ADDRESS XDG_RUNTIME_DIR http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

mkdir -p "$DOCKER_CONFIG"
echo "{}" >"$DOCKER_CONFIG/config.json" # podman insists that the file is there
make_images || give_up 'no images to test with'
if everything_on; then features=("${keeping_features[@]}"); fi
start_upstreams >"$WORK/upstreams.log" 2>&1 || {
  cat "$WORK/upstreams.log"
  give_up 'no upstreams'
}
fill_upstreams || give_up 'the upstreams took no images'
make_mirror || give_up 'no mirror'
for group in "${groups[@]}"; do "test_$group"; done
finish "mirror clients${EVERYTHING:+ with everything on}"
