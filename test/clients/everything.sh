#!/usr/bin/env bash
# The suites once more, each with every feature switched on together (see features.sh), while the mirror's upstream answers,
# and most of the clients after it has gone: `everything on: N passed, N failed` at the end, non-zero when any failed.
#
#   bash test/clients/everything.sh
#
# Needs what run.sh needs. Two suites run at a time: they share the machine and the tools, and nothing else.

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
bash "$here/install.sh" || {
  printf 'everything on: 0 passed, 1 failed (the clients could not be installed)\n'
  exit 1
}

# suite STATE NAME [ARGUMENT…]: its output goes to a file of its own, behind its name and the time that it took.
suite() {
  local state=$1 name=$2 since=$SECONDS status
  shift 2
  EVERYTHING=$state bash "$here/$name.sh" "$@" >"$logs/$name-$state${1:+-$1}" 2>&1
  status=$?
  printf '# %s %s with the upstream %s: exit status %d after %d s\n' "$name" "$*" "$state" "$status" "$((SECONDS - since))" \
    >>"$logs/$name-$state${1:+-$1}"
}

# Not among them: `server`, which wants a log without errors, where `keep` damages a blob for the running verification to
# find; `ten`, whose quotas are its own; and with the upstream away conformance, whose pulls of names that are not here get
# the 502 of decision 0022, and what `undo`, `keep` and the logins ask in the same way as with it.
clients=(skopeo podman containerd crane oras helm cosign manifests docker)
{
  suite up run "${clients[@]}" keep undo features
  suite up conformance
} &
{
  suite down run "${clients[@]}" features
  suite up mirror
  suite up auth quick
} &
wait

passed=0 failed=0
for log in "$logs"/*; do
  cat "$log"
  line=$(grep -aoE '[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
  if [ -z "$line" ] || { [[ $line == *", 0 failed" ]] && ! grep -q 'exit status 0 ' "$log"; }; then
    printf 'not ok - %s did not end well\n' "${log##*/}"
    line='0 passed, 1 failed'
  fi
  passed=$((passed + ${line%% *}))
  failed=$((failed + $(sed -E 's/.*, ([0-9]+) failed/\1/' <<<"$line")))
done
printf 'everything on: %d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
