# shellcheck shell=bash disable=SC2154
# cosign with a key pair of its own and no transparency log: signatures are found through referrers.

cosign_folder=$WORK/cosign

run_cosign() {
  (cd "$cosign_folder" && COSIGN_PASSWORD=boat timeout 120 "$(go_tool_path cosign)" "$@")
}

sign() { run_cosign sign --key cosign.key --tlog-upload=false --use-signing-config=false --allow-http-registry --yes "$@"; }
verify() { run_cosign verify --insecure-ignore-tlog --allow-http-registry "$@"; }

cosign_image() {
  mkdir -p "$cosign_folder"
  run_cosign generate-key-pair
  run_cosign generate-key-pair --output-key-prefix other
  run_skopeo copy --all --quiet --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/cosign/app:1"
}

cosign_sign() {
  sign "$REGISTRY/cosign/app@$list_digest"
  expect_equal referrers "$(api GET "/v2/cosign/app/referrers/$list_digest" | jq '.manifests | length')" 1
}

cosign_verify() {
  local text
  text=$(verify --key cosign.pub "$REGISTRY/cosign/app:1")
  expect_match 'what was verified' "$text" "$list_digest"
}

# It must have found the signature, and then refused it.
cosign_verify_other_key() {
  local text
  text=$(verify --key other.pub "$REGISTRY/cosign/app:1" 2>&1) && return 1
  expect_match 'the error' "$text" 'failed to verify signature|invalid signature'
}

cosign_verify_unsigned() {
  local text
  text=$(verify --key cosign.pub "$REGISTRY/cosign/app@$amd64_digest" 2>&1) && return 1
  expect_match 'the error' "$text" 'no (matching )?signatures'
}

cosign_attest() {
  echo '{"built":"by hand"}' >"$cosign_folder/predicate.json"
  run_cosign attest --key cosign.key --predicate predicate.json --type custom --tlog-upload=false --use-signing-config=false \
    --allow-http-registry --yes "$REGISTRY/cosign/app@$list_digest"
  run_cosign verify-attestation --key cosign.pub --type custom --insecure-ignore-tlog --allow-http-registry "$REGISTRY/cosign/app:1"
}

test_cosign() {
  check 'cosign: key pairs and an image' cosign_image
  check 'cosign: sign' cosign_sign
  check 'cosign: verify' cosign_verify
  check 'cosign: verify with another key fails' cosign_verify_other_key
  check 'cosign: verify of an unsigned image fails' cosign_verify_unsigned
  check 'cosign: attest and verify-attestation' cosign_attest
  check 'cosign: no fallback tags' expect_no_fallback_tags cosign/app
}
