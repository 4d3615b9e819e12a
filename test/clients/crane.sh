# shellcheck shell=bash disable=SC2154
# crane, and with it the library that ko, kaniko and cosign speak to registries with.

run_crane() { timeout 120 "$(go_tool_path crane)" --insecure "$@"; }

crane_push() {
  run_crane push --index "$layout" "$REGISTRY/crane/layout:1"
  run_crane copy "$REGISTRY/crane/layout@$list_digest" "$REGISTRY/crane/list:1"
  expect_equal digest "$(run_crane digest "$REGISTRY/crane/list:1")" "$list_digest"
  expect_equal 'digest of a platform' "$(run_crane digest --platform linux/amd64 "$REGISTRY/crane/list:1")" "$amd64_digest"
}

crane_copy() {
  run_crane copy "$REGISTRY/crane/list:1" "$REGISTRY/crane/copy:1"
  run_crane copy --platform linux/amd64 "$REGISTRY/crane/list:1" "$REGISTRY/crane/copy:amd64"
  run_crane tag "$REGISTRY/crane/copy:amd64" small
  expect_equal digest "$(run_crane digest "$REGISTRY/crane/copy:1")" "$list_digest"
  expect_equal 'digest of the new tag' "$(run_crane digest "$REGISTRY/crane/copy:small")" "$amd64_digest"
}

crane_ls() {
  expect_equal tags "$(run_crane ls "$REGISTRY/crane/copy" | tr '\n' ' ')" '1 amd64 small '
}

crane_catalog() {
  expect_match repositories "$(run_crane catalog "$REGISTRY")" '^crane/copy$'
}

crane_append() {
  echo 'one more' >"$WORK/tmp/more"
  tar -C "$WORK/tmp" -cf "$WORK/tmp/more.tar" more
  run_crane append --base "$REGISTRY/crane/copy:amd64" --new_layer "$WORK/tmp/more.tar" --new_tag "$REGISTRY/crane/appended:1"
  expect_equal layers "$(run_crane manifest "$REGISTRY/crane/appended:1" | jq '.layers | length')" 3
  expect_equal content "$(run_crane export "$REGISTRY/crane/appended:1" - | tar -xO more)" 'one more'
}

crane_validate() {
  run_crane validate --remote "$REGISTRY/crane/list:1"
  run_crane validate --remote "$REGISTRY/crane/appended:1"
}

crane_pull() {
  run_crane pull --format oci "$REGISTRY/crane/list:1" "$WORK/tmp/crane-layout"
  expect_equal digest "$(jq -r '.manifests[0].digest' "$WORK/tmp/crane-layout/index.json")" "$list_digest"
  diff -r "$layout/blobs" "$WORK/tmp/crane-layout/blobs"
}

# By tag: the digest and the other tags stay. By digest: its tags go too.
crane_delete() {
  run_crane delete "$REGISTRY/crane/copy:small"
  expect_equal 'tags without one' "$(run_crane ls "$REGISTRY/crane/copy" | tr '\n' ' ')" '1 amd64 '
  expect_equal 'the digest' "$(manifest_status crane/copy "$amd64_digest")" 200
  run_crane delete "$REGISTRY/crane/appended@$(run_crane digest "$REGISTRY/crane/appended:1")"
  expect_equal 'the tag of a deleted digest' "$(manifest_status crane/appended 1)" 404
}

test_crane() {
  check 'crane: push a layout with a list' crane_push
  check 'crane: copy whole, copy one platform, tag' crane_copy
  check 'crane: ls' crane_ls
  check 'crane: catalog' crane_catalog
  check 'crane: append a layer and export' crane_append
  check 'crane: validate --remote' crane_validate
  check 'crane: pull, every blob equal' crane_pull
  check 'crane: delete a tag, delete a digest' crane_delete
}
