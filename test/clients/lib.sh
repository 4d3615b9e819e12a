# shellcheck shell=bash
# What every script of this suite uses: checks and their count, processes and their end, the server under test.
#
# Sourced, never run. The caller has `set -uo pipefail` (not -e: a failed check must not end the run).

passed=0
failed=0
skipped=0
pids=()

# The server's own settings must not leak in from the caller's shell: BOATHOUSE_MAIN alone is ours, and is taken off.
suite_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
server_main=${BOATHOUSE_MAIN:-"$suite_dir/../../dist/src/main.js"}
for name in "${!BOATHOUSE_@}"; do unset "$name"; done

# Everything a run writes lies below one folder, which goes when the run ends (KEEP_WORK=1 keeps it for a look).
WORK=$(mktemp -d -t boathouse-clients.XXXXXXXX)
mkdir -p "$WORK/home" "$WORK/tmp"
export WORK HOME_BEFORE=${HOME:-/} TMPDIR="$WORK/tmp"

# shellcheck source=features.sh
source "$suite_dir/features.sh"

# ---------------------------------------------------------------- checks

# check NAME COMMAND [ARGUMENT…]
# Runs the command (usually a function) in a subshell where the first failing step ends it, counts it, prints one line;
# of a failed one the output follows, indented. Never call it as part of a condition: bash would switch `set -e` off.
check() {
  local name=$1 log="$WORK/check.log" status
  shift
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  status=$?
  if [ "$status" -eq 0 ]; then
    passed=$((passed + 1))
    printf 'ok - %s\n' "$name"
  else
    failed=$((failed + 1))
    printf 'not ok - %s\n    exit status %d\n' "$name" "$status"
    tail -n 40 "$log" | cut -c 1-600 | sed 's/^/    /'
  fi
}

# skip NAME REASON: for what a given target cannot show. Counted, and never used with a server of our own.
skip() {
  skipped=$((skipped + 1))
  printf 'skip - %s (%s)\n' "$1" "$2"
}

# finish LABEL: the closing line; its status is the run's.
finish() {
  if [ "$skipped" -gt 0 ]; then printf '%s: %d skipped\n' "$1" "$skipped"; fi
  printf '%s: %d passed, %d failed\n' "$1" "$passed" "$failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

# expect_equal WHAT ACTUAL EXPECTED
expect_equal() {
  if [ "$2" != "$3" ]; then
    printf '%s: got %s, expected %s\n' "$1" "${2:-nothing}" "${3:-nothing}"
    return 1
  fi
}

# expect_match WHAT TEXT PATTERN (an extended regular expression, line by line)
expect_match() {
  if ! grep -Eq -- "$3" <<<"$2"; then
    printf '%s: no line matches %s in:\n%s\n' "$1" "$3" "$2"
    return 1
  fi
}

# expect_no_match WHAT TEXT PATTERN
expect_no_match() {
  if grep -Eq -- "$3" <<<"$2"; then
    printf '%s: a line matches %s:\n' "$1" "$3"
    grep -E -m 10 -- "$3" <<<"$2"
    return 1
  fi
}

# expect_failure COMMAND [ARGUMENT…]: succeeds when the command does not. (A condition switches `set -e` off inside
# the command: give it one program, not a function of several steps.)
expect_failure() {
  if "$@"; then
    printf 'this succeeded and should not have: %s\n' "$*"
    return 1
  fi
}

# ---------------------------------------------------------------- waiting and processes

# wait_until SECONDS COMMAND [ARGUMENT…]: tries ten times a second, fails when the time is over.
wait_until() {
  local tries=$(($1 * 10))
  shift
  while [ "$tries" -gt 0 ]; do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
    tries=$((tries - 1))
  done
  printf 'gave up waiting for: %s\n' "$*"
  return 1
}

# start_process LOG COMMAND [ARGUMENT…]
# In the background, leader of a process group of its own; its id is in $started and it ends with the run.
start_process() {
  local log=$1
  shift
  setsid "$@" >>"$log" 2>&1 </dev/null &
  started=$!
  pids+=("$started")
}

is_running() { kill -0 "$1" 2>/dev/null; }
is_gone() { ! is_running "$1"; }

# stop_process PID [SECONDS]: a polite end, then a hard one for the whole group.
stop_process() {
  local pid=$1
  if is_running "$pid"; then
    kill -TERM "$pid" 2>/dev/null
    wait_until "${2:-15}" is_gone "$pid" >/dev/null || kill -KILL -- "-$pid" 2>/dev/null
  fi
  wait "$pid" 2>/dev/null
  return 0
}

# In the reverse order of their start, so that clients go before the server. Scripts with more to tidy name it in
# `before_clean_up`.
clean_up() {
  local status=$? index mount
  trap - EXIT INT TERM HUP
  if declare -F before_clean_up >/dev/null; then before_clean_up; fi
  for ((index = ${#pids[@]} - 1; index >= 0; index--)); do stop_process "${pids[index]}"; done
  while read -r mount; do umount -l "$mount" 2>/dev/null; done < <(awk -v below="$WORK/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r)
  if [ -n "${KEEP_WORK:-}" ]; then printf 'kept: %s\n' "$WORK"; else rm -rf "$WORK"; fi
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---------------------------------------------------------------- the server under test

# start_server [PORT] [NAME=VALUE…]
# Starts the server on the run's data folder (port 0, the default, picks a free one), waits until it says it is ready
# and sets REGISTRY (host:port), PORT and server_pid. With CLIENT_TEST_REGISTRY nothing starts: that one is used. The
# settings are those of the first start until others are given; with EVERYTHING they come upon those of features.sh.
start_server() {
  local port=${1:-0}
  shift || true
  if [ $# -gt 0 ]; then server_settings=("$@"); fi
  if [ -n "${CLIENT_TEST_REGISTRY:-}" ]; then
    REGISTRY=$CLIENT_TEST_REGISTRY
    PORT=${REGISTRY##*:}
    return 0
  fi
  : >"$WORK/server.out"
  env BOATHOUSE_LOG_FORMAT=json "${server_settings[@]}" "${features[@]}" setsid node "$server_main" serve --listen "127.0.0.1:$port" --data "$WORK/data" \
    >"$WORK/server.out" 2>>"$WORK/server.log" </dev/null &
  server_pid=$!
  pids+=("$server_pid")
  if ! wait_until 120 server_answered; then
    printf 'the server did not start:\n'
    tail -n 20 "$WORK/server.log"
    return 1
  fi
  if ! is_running "$server_pid"; then
    printf 'the server ended at once:\n'
    tail -n 20 "$WORK/server.log"
    return 1
  fi
  PORT=$(sed -nE 's#.* is listening on https?://[^ ]*:([0-9]+)$#\1#p' "$WORK/server.out" | head -n 1)
  REGISTRY=127.0.0.1:$PORT
  make_tester "$WORK/data" && log_in "$REGISTRY" "localhost:$PORT"
}
server_settings=()

# True once there is an outcome: it listens, or it has gone.
server_answered() { grep -qE ' is listening on https?://' "$WORK/server.out" || is_gone "$server_pid"; }

# start_server_beside NAME [NAME=VALUE…]: another one, on the data folder $WORK/NAME; sets other_registry (host:port) and
# other_pid. It ends with the run.
start_server_beside() {
  local name=$1 log="$WORK/$1.log"
  shift
  start_process "$log" env BOATHOUSE_DATA="$WORK/$name" "${features[@]}" "$@" node "$server_main" serve --listen 127.0.0.1:0
  wait_until 60 grep -qE ' is listening on https?://' "$log" || return 1
  other_registry=127.0.0.1:$(sed -nE 's#.* is listening on https?://[^ ]*:([0-9]+)$#\1#p' "$log" | head -n 1)
  other_pid=$started
  make_tester "$WORK/$name" && log_in "$other_registry"
}

# boathouse_on DATA COMMAND [ARGUMENT…]: a command of ours about a data folder.
boathouse_on() {
  local data=$1
  shift
  env "${features[@]}" BOATHOUSE_DATA="$data" node "$server_main" "$@"
}

# kill_server: as a power cut would, every process of it at once.
kill_server() {
  kill -KILL -- "-$server_pid"
  wait "$server_pid" 2>/dev/null
  return 0
}

# start_proxy LOG BYTES_PER_SECOND MARK_BYTES: throttle-proxy.mjs before the server; sets proxied (host:port).
start_proxy() {
  start_process "$1" node "$suite_dir/throttle-proxy.mjs" "$PORT" "$2" "$3" "${proxy_tls[@]}"
  wait_until 30 grep -q '^port ' "$1" || return 1
  proxied=127.0.0.1:$(sed -n 's/^port //p' "$1")
  log_in "$proxied"
}

own_server() { [ -z "${CLIENT_TEST_REGISTRY:-}" ]; }

# ---------------------------------------------------------------- talking to it by hand

# api METHOD PATH [curl arguments…]: the body goes to stdout; a status of 400 or more is a failure.
api() {
  local method=$1 path=$2
  shift 2
  if [ "$method" = HEAD ]; then set -- --head "$@"; else set -- -X "$method" "$@"; fi
  curl -sS --fail-with-body --max-time 120 "${credentials[@]}" "$@" "$scheme://$REGISTRY$path"
}

# api_status METHOD PATH [curl arguments…]: the status alone.
api_status() {
  local method=$1 path=$2
  shift 2
  if [ "$method" = HEAD ]; then set -- --head "$@"; else set -- -X "$method" "$@"; fi
  curl -sS --max-time 120 -o /dev/null -w '%{http_code}' "${credentials[@]}" "$@" "$scheme://$REGISTRY$path"
}

# api_header NAME METHOD PATH [curl arguments…]: one header's value.
api_header() {
  local name=$1
  shift
  api "$@" -D - -o /dev/null | tr -d '\r' | awk -F ': ' -v name="${name,,}" 'tolower($1) == name { print $2; exit }'
}

sha256_of() { printf 'sha256:%s' "$(sha256sum <"$1" | cut -d ' ' -f 1)"; }
sha256_text() { printf 'sha256:%s' "$(sha256sum | cut -d ' ' -f 1)"; }

# As clients do: a request for a manifest names every type it can take.
accept=(-H 'Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json')

# push_blob REPOSITORY FILE: POST, then PUT at the Location; prints the digest.
push_blob() {
  local repository=$1 file=$2 digest location separator='?'
  digest=$(sha256_of "$file")
  location=$(api_header location POST "/v2/$repository/blobs/uploads/" -H 'Content-Length: 0')
  location=${location#"$scheme://$REGISTRY"}
  case $location in *\?*) separator='&' ;; esac
  api PUT "$location${separator}digest=$digest" -H 'Content-Type: application/octet-stream' --data-binary "@$file"
  printf '%s' "$digest"
}

# push_manifest REPOSITORY REFERENCE TYPE FILE
push_manifest() { api PUT "/v2/$1/manifests/$2" -H "Content-Type: $3" --data-binary "@$4"; }

get_manifest() { api GET "/v2/$1/manifests/$2" "${accept[@]}"; }
manifest_digest() { api_header docker-content-digest HEAD "/v2/$1/manifests/$2" "${accept[@]}"; }
manifest_type() { api_header content-type HEAD "/v2/$1/manifests/$2" "${accept[@]}"; }
manifest_status() { api_status GET "/v2/$1/manifests/$2" "${accept[@]}"; }

tags_of() { api GET "/v2/$1/tags/list" | jq -r '.tags // [] | .[]'; }

# expect_no_fallback_tags REPOSITORY: clients write tags `sha256-…` when they believe that a registry has no referrers.
expect_no_fallback_tags() {
  local tags
  tags=$(tags_of "$1")
  expect_no_match "tags of $1" "$tags" '^sha256-'
}
