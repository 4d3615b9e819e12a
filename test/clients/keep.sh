# shellcheck shell=bash disable=SC2154
# Nothing lost: a flipped bit is found and mended by a push; a backup beside pushes is restored, served and pulled from.
# After docker.sh, whose engine and image it uses.

keep_blob() { printf '%s/blobs/sha256/%s/%s' "$1" "${2:7:2}" "${2:7}"; }

# keep_verify: when the server itself is not at it, which with everything on it mostly is.
keep_verify() {
  local tries=0 status
  while [ "$tries" -lt 300 ]; do
    status=0
    boathouse_on "$WORK/data" verify --rate unlimited 2>"$WORK/tmp/verify" || status=$?
    cat "$WORK/tmp/verify" >&2
    grep -q 'Another verification is at work' "$WORK/tmp/verify" || return "$status"
    sleep 0.1
    tries=$((tries + 1))
  done
  return 1
}

keep_layer() { get_manifest docker/keep 1 | jq -r '.layers[-1].digest'; }

keep_pushed() {
  docker_make_image
  run_docker tag "$REGISTRY/docker/app:1" "$REGISTRY/docker/keep:1"
  run_docker push "$REGISTRY/docker/keep:1"
  run_docker push "$REGISTRY/docker/app:1"
}

keep_flipped_bit_found() {
  local layer file text
  layer=$(keep_layer)
  file=$(keep_blob "$WORK/data" "$layer")
  printf '\x5a' | dd of="$file" bs=1 seek=11 conv=notrunc status=none
  text=$(keep_verify) && return 1
  expect_match 'what is said' "$text" "^altered: blob $layer: .*cannot be pulled whole: .*docker/keep:1"
  # HEAD: so whoever pushes sends it. (GET would be a 503 in the log, which the checks of the server look for.)
  expect_equal 'status of the layer' "$(api_status HEAD "/v2/docker/keep/blobs/$layer")" 404
}

keep_push_mends() {
  run_docker push "$REGISTRY/docker/keep:1"
  keep_verify
  forget_images
  run_docker pull "$REGISTRY/docker/keep:1"
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$REGISTRY/docker/keep:1")" $'first\nsecond'
}

keep_backup_while_pushing() {
  local pusher
  for tag in 2 3 4 5 6; do run_docker tag "$REGISTRY/docker/keep:1" "$REGISTRY/docker/keep:$tag"; done
  run_docker push -a "$REGISTRY/docker/keep" &
  pusher=$!
  boathouse_on "$WORK/data" backup "$WORK/backup" --json | jq -e '.missing == [] and .tags > 0'
  wait "$pusher"
  boathouse_on "$WORK/data" backup "$WORK/backup" --json | jq -e '.missing == []'
  boathouse_on "$WORK/restored" restore "$WORK/backup"
  boathouse_on "$WORK/restored" verify --rate unlimited
}

keep_restored_pulls() {
  local tag
  forget_images
  for tag in 1 6; do
    run_docker pull "$other_registry/docker/keep:$tag"
    expect_equal 'what it prints' "$(run_docker run --rm --network none "$other_registry/docker/keep:$tag")" $'first\nsecond'
  done
}

test_keep() {
  if ! own_server; then
    skip 'keep: verify, backup and restore' 'not our server'
    return
  fi
  if [ -z "${docker_pid:-}" ]; then
    start_docker_engine >"$WORK/engine.log" 2>&1
    check 'keep: an engine of our own starts' docker_engine_runs
  fi
  check 'keep: push' keep_pushed
  check 'keep: verify finds a flipped bit and names the tag' keep_flipped_bit_found
  check 'keep: a push mends it, and it is pulled and run' keep_push_mends
  check 'keep: a backup while pushing is restored and verified' keep_backup_while_pushing
  touch "$WORK/restored.tester" # the backup has the users, too
  start_server_beside restored
  check 'keep: the restored registry is pulled from' keep_restored_pulls
}
