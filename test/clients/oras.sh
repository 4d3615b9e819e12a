# shellcheck shell=bash
# oras: artifacts, and what is attached to them.

oras_folder=$WORK/oras

run_oras() { (cd "$oras_folder" && timeout 120 "$(go_tool_path oras)" "$@"); }

oras_push() {
  echo 'some notes' >"$oras_folder/notes.txt"
  head -c 3M /dev/urandom >"$oras_folder/data.bin"
  run_oras push "${plain_http[@]}" --artifact-type application/vnd.boathouse.notes "$REGISTRY/oras/notes:1,latest" \
    notes.txt:text/plain data.bin
  expect_equal tags "$(run_oras repo tags "${plain_http[@]}" "$REGISTRY/oras/notes" | tr '\n' ' ')" '1 latest '
  expect_equal 'artifact type' "$(get_manifest oras/notes 1 | jq -r .artifactType)" application/vnd.boathouse.notes
}

oras_pull() {
  run_oras pull "${plain_http[@]}" --output pulled "$REGISTRY/oras/notes:1"
  cmp "$oras_folder/notes.txt" "$oras_folder/pulled/notes.txt"
  cmp "$oras_folder/data.bin" "$oras_folder/pulled/data.bin"
}

oras_attach() {
  echo '{"bill":"of materials"}' >"$oras_folder/sbom.json"
  echo '{"scan":"clean"}' >"$oras_folder/scan.json"
  run_oras attach "${plain_http[@]}" --artifact-type application/vnd.example.sbom+json "$REGISTRY/oras/notes:1" sbom.json:application/json
  run_oras attach "${plain_http[@]}" --artifact-type application/vnd.example.scan --annotation by=scanner "$REGISTRY/oras/notes:1" scan.json:application/json
  # Attached to something attached.
  run_oras attach "${plain_http[@]}" --artifact-type application/vnd.example.signature \
    "$REGISTRY/oras/notes@$(oras_referrer application/vnd.example.sbom+json)" notes.txt:text/plain
}

# oras_referrer TYPE: the digest of what is attached with this type.
oras_referrer() {
  run_oras discover "${plain_http[@]}" --format json --artifact-type "$1" "$REGISTRY/oras/notes:1" | jq -r '.manifests[0].digest // .referrers[0].digest'
}

oras_discover() {
  local text
  text=$(run_oras discover "${plain_http[@]}" --format tree "$REGISTRY/oras/notes:1")
  expect_match 'what is attached' "$text" 'application/vnd.example.sbom\+json'
  expect_match 'what is attached' "$text" 'application/vnd.example.scan'
  expect_match 'what is attached' "$text" 'application/vnd.example.signature'
  text=$(run_oras discover "${plain_http[@]}" --format json --artifact-type application/vnd.example.sbom+json "$REGISTRY/oras/notes:1")
  expect_match 'with a filter' "$text" 'application/vnd.example.sbom\+json'
  expect_no_match 'with a filter' "$text" 'application/vnd.example.scan'
}

oras_pull_attached() {
  run_oras pull "${plain_http[@]}" --output sbom "$REGISTRY/oras/notes@$(oras_referrer application/vnd.example.sbom+json)"
  cmp "$oras_folder/sbom.json" "$oras_folder/sbom/sbom.json"
}

oras_copy() {
  run_oras copy --recursive "${plain_copy[@]}" "$REGISTRY/oras/notes:1" "$REGISTRY/oras/copy:1"
  expect_equal digest "$(manifest_digest oras/copy 1)" "$(manifest_digest oras/notes 1)"
  expect_match 'what is attached to the copy' "$(run_oras discover "${plain_http[@]}" --format tree "$REGISTRY/oras/copy:1")" \
    'application/vnd.example.signature'
  expect_no_fallback_tags oras/copy
}

oras_blobs() {
  local digest
  digest=$(sha256_of "$oras_folder/data.bin")
  run_oras blob push "${plain_http[@]}" "$REGISTRY/oras/blobs@$digest" data.bin
  run_oras blob fetch "${plain_http[@]}" --output fetched.bin "$REGISTRY/oras/blobs@$digest"
  cmp "$oras_folder/data.bin" "$oras_folder/fetched.bin"
  run_oras blob delete "${plain_http[@]}" --force "$REGISTRY/oras/blobs@$digest"
  expect_equal 'the deleted blob' "$(api_status HEAD "/v2/oras/blobs/blobs/$digest")" 404
}

# Deleting what is attached takes it off the list.
oras_delete() {
  run_oras manifest delete "${plain_http[@]}" --force "$REGISTRY/oras/notes@$(oras_referrer application/vnd.example.scan)"
  expect_no_match 'what is attached' "$(run_oras discover "${plain_http[@]}" --format tree "$REGISTRY/oras/notes:1")" 'application/vnd.example.scan'
}

test_oras() {
  mkdir -p "$oras_folder"
  check 'oras: push an artifact with two tags' oras_push
  check 'oras: pull' oras_pull
  check 'oras: attach two artifacts, and one to an attached one' oras_attach
  check 'oras: attach made no fallback tags' expect_no_fallback_tags oras/notes
  check 'oras: discover the tree, and by type' oras_discover
  check 'oras: pull what was attached' oras_pull_attached
  check 'oras: copy --recursive takes everything along' oras_copy
  check 'oras: delete what was attached' oras_delete
  check 'oras: blob push, fetch, delete' oras_blobs
}
