# shellcheck shell=bash disable=SC2034,SC2154
# Every feature switched on together, for the same clients and the same checks.
#
# Sourced by lib.sh. Without EVERYTHING the servers under test are plain and open, as far as a script does not say otherwise.
# With EVERYTHING=up or EVERYTHING=down each of them has quotas on all repositories, immutable tags, retention, collection
# and verification going round all the time, undo, users and TLS, three workers, and a mirror for bare names whose upstream,
# another Boathouse, answers, or has gone.

scheme=http
plain_http=(--plain-http)
plain_copy=(--from-plain-http --to-plain-http)
ctr_plain=(--plain-http)
manifest_insecure=(--insecure)
ctr_login=()
credentials=()
features=()
proxy_tls=()
user_password='the user of "everything"'

everything_on() { [ -n "${EVERYTHING:-}" ]; }
is_down() { [ "${EVERYTHING:-}" = down ]; }

# Tags that the scripts push, some of them twice, and never move. The first is for the one that tries.
immutable_tags='feature/**:fixed*,skopeo/list:*,skopeo/schema2:*,skopeo/tags:*,synced/**:*,containerd/**:*,crane/layout:*,crane/list:*,podman/**:*,oras/**:*,charts/**:*,cosign/**:*,hand/**:*,docker/large:*,ten/**:*,public/list:*,team/list:*,team/charts/**:*'
# `**` keeps all that the scripts push, and every tag is judged again each second.
retention_rules='[{"repositories":["feature/kept"],"keep":[{"newest":2}]},{"repositories":["**"],"keep":[{"newest":1000},{"pulledWithin":"1d"}]}]'

# All but who may ask, by which way, and the mirror.
keeping_features=(
  BOATHOUSE_WORKERS=3
  BOATHOUSE_QUOTAS="**=20GB,limits/**=64KB,feature/full=1KB"
  BOATHOUSE_TAGS_IMMUTABLE="$immutable_tags" BOATHOUSE_TAGS_UNDO=1h
  BOATHOUSE_RETENTION_SCHEDULE=1s BOATHOUSE_RETENTION_RULES="$retention_rules"
  BOATHOUSE_GC_INTERVAL=1s BOATHOUSE_GC_GRACE=1h BOATHOUSE_GC_UNTAGGED=1h
  BOATHOUSE_VERIFY_SCHEDULE='*/10 * * * * *' BOATHOUSE_VERIFY_RATE=100MiB
  BOATHOUSE_SNAPSHOTS_INTERVAL=5s BOATHOUSE_SNAPSHOTS_KEEP=2
)

# switch_logins_on: users, and one of them, the tester, for the scripts.
switch_logins_on() {
  ctr_login=(--user "tester:$user_password")
  credentials=(-u "tester:$user_password")
  features=(BOATHOUSE_AUTH=token)
}

# switch_everything_on: once, before any server is started and after the tools are installed.
switch_everything_on() {
  make_certificate && switch_logins_on || return 1
  scheme=https
  plain_http=()
  plain_copy=()
  manifest_insecure=()
  ctr_plain=(--hosts-dir "$WORK/tls/hosts") # for an address of this machine ctr takes http, whatever its options say
  proxy_tls=("$WORK/tls/certificate.pem" "$WORK/tls/key.pem")
  # Go's programs and curl trust what is in this file.
  export SSL_CERT_FILE="$WORK/tls/certificate.pem" SSL_CERT_DIR="$WORK/tls/none" CURL_CA_BUNDLE="$WORK/tls/certificate.pem"
  upstream_port=$(free_port)
  features+=(
    "${keeping_features[@]}"
    BOATHOUSE_TLS_CERTIFICATE="$WORK/tls/certificate.pem" BOATHOUSE_TLS_KEY="$WORK/tls/key.pem"
    BOATHOUSE_MIRRORS="[{\"name\":\"docker.io\",\"url\":\"http://127.0.0.1:$upstream_port\",\"bareNames\":true,\"freshness\":\"0s\"}]"
  )
  start_feature_upstream
}

# For 127.0.0.1, signed by itself: its own authority.
make_certificate() {
  mkdir -p "$WORK/tls/none"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout "$WORK/tls/key.pem" -out "$WORK/tls/certificate.pem" 2>/dev/null
}

# free_port: one that nobody has at the moment, below those that the kernel gives to connections.
free_port() {
  node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })'
}

# The mirror's upstream: plain and open, with one image.
start_feature_upstream() {
  start_process "$WORK/feature-upstream.log" env BOATHOUSE_LOG_FORMAT=json BOATHOUSE_DATA="$WORK/feature-upstream" \
    node "$server_main" serve --listen "127.0.0.1:$upstream_port"
  feature_upstream_pid=$started
  wait_until 60 curl -s -o /dev/null "http://127.0.0.1:$upstream_port/v2/" || return 1
  if [ -e "${layout:-}/index.json" ]; then
    run_skopeo copy --all --quiet --dest-tls-verify=false "oci:$layout:list" "docker://127.0.0.1:$upstream_port/library/app:1"
  fi
}

# make_tester DATA: the user that pushes and pulls all, unless there is one, or the script makes its own.
make_tester() {
  if [ "${#credentials[@]}" -eq 0 ] || [ -e "$1.tester" ]; then return 0; fi
  boathouse_on "$1" user add tester <<<"$user_password" && boathouse_on "$1" grant push,delete '**' --to user:tester &&
    touch "$1.tester"
}

# log_in HOST:PORT…: what every client that reads Docker's configuration finds there.
log_in() {
  local host
  if [ "${#credentials[@]}" -eq 0 ]; then return 0; fi
  for host in "$@"; do
    jq --arg host "$host" --arg auth "$(printf '%s' "tester:$user_password" | base64 -w 0)" '.auths[$host].auth = $auth' \
      "$DOCKER_CONFIG/config.json" >"$DOCKER_CONFIG/config.json.new" && mv "$DOCKER_CONFIG/config.json.new" "$DOCKER_CONFIG/config.json"
  done
}

# ---------------------------------------------------------------- that they were met

# The list, whole: tags on an image of a list that is kept would be kept with it.
feature_manifest() { run_skopeo copy --all --quiet --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/feature/$1"; }

# Each counts: the quota has the bytes, the tags are judged and kept, the history has them, nothing is damaged.
features_quota_counts() {
  local text
  feature_manifest counted:1
  text=$(boathouse_on "$WORK/data" quota --json)
  printf '%s\n' "$text"
  [ "$(jq '[.. | objects | select(.pattern? == "**") | .used][0]' <<<"$text")" -gt 100000 ]
}

features_quota_refuses() {
  local text
  text=$(run_skopeo copy --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/feature/full:1" 2>&1) && return 1
  expect_match 'the error' "$text" 'quota feature/full is exhausted'
}

features_immutable() {
  local text
  feature_manifest kept:fixed-1
  run_skopeo copy --quiet --override-arch arm64 --src-tls-verify=false --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/feature/other:1"
  text=$(run_skopeo copy --override-arch arm64 --src-tls-verify=false --dest-tls-verify=false "docker://$REGISTRY/feature/other:1" "docker://$REGISTRY/feature/kept:fixed-1" 2>&1) && return 1
  expect_match 'the error' "$text" 'immutable|cannot be moved'
  expect_equal 'the tag' "$(manifest_digest feature/kept fixed-1)" "$list_digest"
}

kept_tags() { [ "$(tags_of feature/kept | tr '\n' ' ')" = "$1" ]; }

# Retention takes all but the newest two, though not what may not go; undo brings one back.
features_retention_and_undo() {
  local tag
  for tag in 1 2 3 4; do feature_manifest "kept:$tag"; done
  wait_until 60 kept_tags '3 4 fixed-1 '
  expect_match history "$(boathouse_on "$WORK/data" tag history feature/kept:1 --json)" retention
}

features_verified() {
  grep -h '"verif' "$WORK/server.log" | tail -n 3
  expect_match 'the log' "$(cat "$WORK/server.log")" 'verif'
}

# Names that were pushed here are nobody else's business. Of synced it may be asked for manifests: `skopeo sync`
# looks for a tag, with a token to pull, before it pushes it; nobody can tell that from a pull (docs/decisions/0022).
features_upstream_told_nothing() {
  expect_no_match 'asked upstream' "$(grep -o '"path":"[^"]*"' "$WORK/feature-upstream.log" | sort | uniq -c)" \
    '/v2/(synced/[^/]*/(blobs|tags|referrers)|skopeo|podman|containerd|crane|oras|charts|cosign|hand|docker|limits|feature|ten)/'
}

features_mirror_serves() {
  run_crane validate --remote "$REGISTRY/library/app:1"
  run_crane validate --remote "$REGISTRY/docker.io/library/app:1"
  expect_equal digest "$(run_crane digest "$REGISTRY/docker.io/library/app:1")" "$list_digest"
}

# The upstream goes after it was asked once, so that something of it is here.
prepare_features() {
  check 'features: the mirror serves what its upstream has' features_mirror_serves
  if is_down; then stop_process "$feature_upstream_pid"; fi
}

test_features() {
  check 'features: the mirror serves what it has' features_mirror_serves
  check 'features: the quota counts what was pushed' features_quota_counts
  check 'features: a push over a quota is refused' features_quota_refuses
  check 'features: a tag that may not move stays' features_immutable
  check 'features: retention keeps the newest two and what may not go' features_retention_and_undo
  check 'features: what is stored was verified meanwhile' features_verified
  check 'features: the upstream was told no name that was pushed here' features_upstream_told_nothing
}
