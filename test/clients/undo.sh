# shellcheck shell=bash disable=SC2154
# What was deleted comes back, and retention gives the disk back: with the engine that docker.sh or keep.sh has started.

# undo_image REFERENCE TEXT: pushes an image of one layer of its own, which prints the text.
undo_image() {
  printf '%s' "$2" >"$rootfs/text"
  tar -C "$rootfs" -c . | run_docker import --change 'CMD ["/bin/cat", "/text"]' - "$1"
  rm "$rootfs/text"
  run_docker push "$1"
}

undo_pulls() {
  forget_images
  run_docker pull "$1"
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$1")" "$2"
}

undo_deleted_image() {
  local digest
  undo_image "$REGISTRY/docker/undo:1" precious
  digest=$(manifest_digest docker/undo 1)
  expect_equal 'status of the delete' "$(api_status DELETE "/v2/docker/undo/manifests/$digest")" 202
  forget_images
  expect_failure run_docker pull "$REGISTRY/docker/undo:1"
  boathouse_on "$WORK/data" tag restore docker/undo:1
  undo_pulls "$REGISTRY/docker/undo:1" precious
}

undo_moved_tag() {
  undo_image "$REGISTRY/docker/undo:1" wrong
  undo_pulls "$REGISTRY/docker/undo:1" wrong
  boathouse_on "$WORK/data" tag restore docker/undo:1
  undo_pulls "$REGISTRY/docker/undo:1" precious
  expect_equal 'changes in the history' "$(boathouse_on "$WORK/data" tag history docker/undo:1 --json | jq length)" 5
}

retention_settings=(
  BOATHOUSE_RETENTION_RULES='[{"repositories":["team/**"],"keep":[{"newest":2}]}]'
  BOATHOUSE_RETENTION_SCHEDULE='0 4 1 1 *' BOATHOUSE_TAGS_UNDO=0s BOATHOUSE_GC_GRACE=10s BOATHOUSE_GC_INTERVAL=1s
)
# With everything on this is an hour; by itself it is the rule that frees.
if everything_on; then retention_settings+=(BOATHOUSE_GC_UNTAGGED=10s); fi

# Read whole first: `grep -q` goes at the first hit, and curl would fail in the middle of writing.
blobs_beside() { expect_match metrics "$(curl -sS "$scheme://$other_registry/metrics")" "^boathouse_blobs $1\$"; }

# Five images of a layer and a config each.
retention_frees_disk() {
  local tag text
  for tag in 1 2 3 4 5; do undo_image "$other_registry/team/app:$tag" "text $tag"; done
  text=$(env "${features[@]}" "${retention_settings[@]}" BOATHOUSE_DATA="$WORK/retained" node "$server_main" retention --dry-run)
  expect_match 'the dry run' "$text" 'team/app:3'
  blobs_beside 10
  env "${features[@]}" "${retention_settings[@]}" BOATHOUSE_DATA="$WORK/retained" node "$server_main" retention --yes
  expect_equal 'tags left' "$(curl -sS "${credentials[@]}" "$scheme://$other_registry/v2/team/app/tags/list" | jq -c .tags)" '["4","5"]'
  wait_until 60 blobs_beside 4
  expect_equal 'files left' "$(find "$WORK/retained/blobs" -type f | wc -l)" 4
  undo_pulls "$other_registry/team/app:4" 'text 4'
}

test_undo() {
  if ! own_server; then
    skip 'undo: deleted and moved tags, retention' 'not our server'
    return
  fi
  if [ -z "${docker_pid:-}" ]; then
    start_docker_engine >"$WORK/engine.log" 2>&1
    check 'undo: an engine of our own starts' docker_engine_runs
  fi
  check 'undo: a deleted image is brought back, pulled and run' undo_deleted_image
  check 'undo: a tag that was pushed over is brought back' undo_moved_tag
  start_server_beside retained "${retention_settings[@]}"
  check 'undo: retention keeps the newest two of five, and the disk comes back' retention_frees_disk
}
