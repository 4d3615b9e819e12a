# shellcheck shell=bash disable=SC2154
# skopeo: whole lists, synchronising, deleting, listing.

run_skopeo() { timeout 120 skopeo --insecure-policy --tmpdir "$WORK/tmp" "$@"; }

skopeo_copy_all() {
  run_skopeo copy --all --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/skopeo/list:1"
  expect_equal 'digest of the list' "$(manifest_digest skopeo/list 1)" "$list_digest"
  local digest
  for digest in $(jq -r '.manifests[].digest' "$WORK/tmp/list.json"); do
    expect_equal 'digest of a platform' "$(manifest_digest skopeo/list "$digest")" "$digest"
  done
}

skopeo_raw() {
  run_skopeo inspect --raw --tls-verify=false "docker://$REGISTRY/skopeo/list:1" >"$WORK/tmp/raw.json"
  cmp "$WORK/tmp/raw.json" "$WORK/tmp/list.json"
}

skopeo_inspect() {
  local text
  text=$(run_skopeo inspect --tls-verify=false --override-arch arm64 "docker://$REGISTRY/skopeo/list:1")
  expect_equal architecture "$(jq -r .Architecture <<<"$text")" arm64
  expect_equal digest "$(jq -r .Digest <<<"$text")" "$list_digest"
  expect_equal tags "$(jq -c .RepoTags <<<"$text")" '["1"]'
  expect_equal layers "$(jq '.Layers | length' <<<"$text")" 2
}

# Between two repositories of one registry, and into the older list format, whose bytes are other bytes.
skopeo_copy_between() {
  run_skopeo copy --all --src-tls-verify=false --dest-tls-verify=false \
    "docker://$REGISTRY/skopeo/list:1" "docker://$REGISTRY/skopeo/copy:1"
  expect_equal 'digest of the copy' "$(manifest_digest skopeo/copy 1)" "$list_digest"
}

skopeo_docker_format() {
  run_skopeo copy --format v2s2 --override-arch amd64 --src-tls-verify=false --dest-tls-verify=false \
    "docker://$REGISTRY/skopeo/list:1" "docker://$REGISTRY/skopeo/schema2:1"
  expect_equal type "$(manifest_type skopeo/schema2 1)" application/vnd.docker.distribution.manifest.v2+json
  rm -rf "$WORK/tmp/schema2"
  run_skopeo copy --src-tls-verify=false "docker://$REGISTRY/skopeo/schema2:1" "dir:$WORK/tmp/schema2"
  expect_equal 'manifest pulled back' "$(sha256_of "$WORK/tmp/schema2/manifest.json")" "$(manifest_digest skopeo/schema2 1)"
}

skopeo_pull_back() {
  run_skopeo copy --all --src-tls-verify=false "docker://$REGISTRY/skopeo/list@$list_digest" "oci:$WORK/tmp/back:list"
  expect_equal 'digest of the list pulled back' "$(jq -r '.manifests[0].digest' "$WORK/tmp/back/index.json")" "$list_digest"
  diff -r "$layout/blobs" "$WORK/tmp/back/blobs"
}

skopeo_list_tags() {
  local tag tags
  for tag in 10 9 a.b Z latest; do
    run_skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false \
      "docker://$REGISTRY/skopeo/list@$amd64_digest" "docker://$REGISTRY/skopeo/tags:$tag"
  done
  tags=$(run_skopeo list-tags --tls-verify=false "docker://$REGISTRY/skopeo/tags" | jq -c .Tags)
  expect_equal tags "$tags" '["10","9","Z","a.b","latest"]'
}

# A whole repository to a folder, then the folder to a place below another prefix.
skopeo_sync() {
  run_skopeo sync --all --src docker --dest dir --src-tls-verify=false "$REGISTRY/skopeo/list" "$WORK/tmp/sync"
  run_skopeo sync --all --src dir --dest docker --dest-tls-verify=false "$WORK/tmp/sync" "$REGISTRY/synced"
  expect_equal 'digest after dir' "$(manifest_digest synced/list 1)" "$list_digest"
  run_skopeo sync --all --src docker --dest docker --src-tls-verify=false --dest-tls-verify=false \
    "$REGISTRY/skopeo/tags" "$REGISTRY/synced"
  expect_equal 'tags after registry to registry' "$(tags_of synced/tags | tr '\n' ' ')" '10 9 Z a.b latest '
}

# skopeo deletes by digest: every tag of it goes, the other repositories keep theirs.
skopeo_delete() {
  run_skopeo delete --tls-verify=false "docker://$REGISTRY/skopeo/copy:1"
  expect_equal 'the copy' "$(manifest_status skopeo/copy 1)" 404
  expect_equal 'the original' "$(manifest_status skopeo/list 1)" 200
  expect_failure run_skopeo inspect --tls-verify=false "docker://$REGISTRY/skopeo/copy:1"
}

test_skopeo() {
  check 'skopeo: copy --all pushes a list of two platforms' skopeo_copy_all
  check 'skopeo: inspect --raw gives the bytes that were pushed' skopeo_raw
  check 'skopeo: inspect picks a platform, names digest and tags' skopeo_inspect
  check 'skopeo: copy --all from one repository to another' skopeo_copy_between
  check 'skopeo: copy --format v2s2 and back' skopeo_docker_format
  check 'skopeo: copy --all back by digest, every blob equal' skopeo_pull_back
  check 'skopeo: list-tags, in order' skopeo_list_tags
  check 'skopeo: sync to a folder, from a folder, from registry to registry' skopeo_sync
  check 'skopeo: delete removes the image from its repository alone' skopeo_delete
}
