#!/usr/bin/env bash
# The OCI distribution specification's own conformance runner against the server, with everything on: the draft's
# rules and sparse manifests. Prints `conformance: N passed, N failed`; a skip or an error counts as failed.
#
#   bash test/clients/conformance.sh [open|logins]
#
# With `logins` the server asks for users, and the runner fetches a token for each request.
#
# Needs node and go on the path; installs the runner (see install.sh).
#   BOATHOUSE_MAIN=FILE              the server's compiled main.js (default: the project's dist/src/main.js)
#   CONFORMANCE_RUNNER=FILE          a runner that is installed already
#   CLIENT_TEST_REGISTRY=HOST:PORT   aim at a registry that runs already
#   CONFORMANCE_RESULTS=FOLDER       keep report.html, results.yaml and junit.xml here
#   EVERYTHING=up|down               with every feature switched on, while the mirror's upstream is up, or away
#   KEEP_WORK=1                      keep the folder with logs and data

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=install.sh
source "$here/install.sh"

results=${CONFORMANCE_RESULTS:-"$WORK/results"}
runner=${CONFORMANCE_RUNNER:-}

if [ -z "$runner" ]; then
  # shellcheck disable=SC2086 # the fields of a row
  if ! install_go_tool $conformance_tool; then
    printf 'conformance: 0 passed, 1 failed (the runner could not be installed)\n'
    exit 1
  fi
  runner=$(go_tool_path conformance)
fi

give_up() {
  printf 'conformance: 0 passed, 1 failed (%s)\n' "$1"
  exit 1
}

tls=disabled login=()
export HOME="$WORK/home" DOCKER_CONFIG="$WORK/home/.docker"
mkdir -p "$DOCKER_CONFIG"
echo '{}' >"$DOCKER_CONFIG/config.json"
if everything_on; then
  switch_everything_on || give_up 'not everything could be switched on'
  tls=enabled
elif [ "${1:-open}" = logins ]; then
  switch_logins_on
fi
if [ "${#credentials[@]}" -gt 0 ]; then
  login=(OCI_USERNAME=tester OCI_PASSWORD="$user_password" OCI_CACHE_AUTH=false)
fi
start_server 0 'BOATHOUSE_MANIFESTS_SPARSE=conf/**' || give_up 'no server'
if is_down; then stop_process "$feature_upstream_pid"; fi

mkdir -p "$results"
rm -f "$results/results.yaml" "$results/junit.xml"
# An empty folder as the working one: the runner reads a configuration file that lies where it starts.
(
  cd "$WORK/tmp" || exit 1
  env OCI_REGISTRY="$REGISTRY" OCI_TLS=$tls "${login[@]}" OCI_REPO1=conf/a OCI_REPO2=conf/b OCI_VERSION=dev \
    OCI_DATA_SPARSE=true OCI_RESULTS_DIR="$results" timeout 300 "$runner"
) >"$WORK/conformance.log" 2>&1
status=$?

# The runner ends with 0 when it could not even start, so its results are what counts.
if [ ! -s "$results/results.yaml" ] || [ ! -s "$results/junit.xml" ]; then
  tail -n 30 "$WORK/conformance.log"
  printf 'conformance: 0 passed, 1 failed (no results, exit status %d)\n' "$status"
  exit 1
fi

# Every test is a line `<testcase name="…" … status="passed|failed|skipped|error|…">`.
tests=$(grep -o '<testcase [^>]*>' "$results/junit.xml" | sed -E 's/.* name="([^"]*)".* status="([^"]*)".*/\2 \1/')
count() { grep -c -i -E "^($1) " <<<"$tests"; }
total=$(grep -c . <<<"$tests")
pass=$(count 'pass|passed')
fail=$(count 'fail|failed|failure')
error=$(count 'error')
skip=$(count 'skip|skipped')
other=$((total - pass - fail - error - skip))

grep -v -i -E '^(pass|passed) ' <<<"$tests" | sed 's/^/not ok - conformance: /'
grep 'level=WARN' "$WORK/conformance.log" | head -n 40 | cut -c 1-800 | sed 's/^/    /'
# The runner's own summary by endpoint and by kind of data must agree.
summary=$(sed -nE '/^(apis|data):$/,$ s/^  ([A-Z].*): (Skip|FAIL|Fail|Error|Unknown|Disabled)$/\2 \1/p' "$results/results.yaml")
if [ -n "$summary" ]; then printf '    summary: %s\n' "${summary//$'\n'/$'\n    summary: '}"; fi

printf '# %d pass, %d fail, %d error, %d skip, %d other; exit status %d\n' "$pass" "$fail" "$error" "$skip" "$other" "$status"
if [ "${#login[@]}" -gt 0 ] && [ "$(grep -c '"audit":"token".*"user":"tester".*repository:conf/' "$WORK/server.log")" -le 500 ]; then
  give_up 'it did not log in'
fi
printf 'conformance: %d passed, %d failed\n' "$pass" "$((total - pass))"
[ "$pass" -gt 500 ] && [ "$pass" -eq "$total" ] && [ -z "$summary" ] && [ "$status" -eq 0 ]
