# shellcheck shell=bash disable=SC2154
# containerd of our own, and its command line `ctr`.

containerd_folder=$WORK/containerd

run_ctr() { timeout 120 ctr -a "$containerd_folder/socket" -n boathouse "$@"; }

# trust_with_ctr: https, with our certificate, for the server under test. Only what `ctr_plain` names reads it.
trust_with_ctr() {
  local folder=$WORK/tls/hosts/$REGISTRY
  mkdir -p "$folder"
  printf 'server = "https://%s"\n\n[host."https://%s"]\n  capabilities = ["pull", "resolve", "push"]\n  ca = "%s"\n' \
    "$REGISTRY" "$REGISTRY" "$WORK/tls/certificate.pem" >"$folder/hosts.toml"
}

start_containerd() {
  mkdir -p "$containerd_folder"
  if everything_on; then trust_with_ctr; fi
  cat >"$containerd_folder/config.toml" <<CONF
version = 2
root = "$containerd_folder/root"
state = "$containerd_folder/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "$containerd_folder/socket"
CONF
  start_process "$WORK/containerd.log" containerd -c "$containerd_folder/config.toml"
  wait_until 30 run_ctr version
}

containerd_runs() {
  tail -n 5 "$WORK/containerd.log"
  run_ctr version
}

forget_ctr_images() {
  local left
  run_ctr images ls -q | xargs -r timeout 60 ctr -a "$containerd_folder/socket" -n boathouse images rm --sync
  left=$(run_ctr content ls -q)
  expect_equal 'content left' "$left" ''
}

# Imported from a layout, so that nothing of what is pushed has been in a registry before.
ctr_push() {
  tar -C "$layout" -c . | run_ctr images import --all-platforms --no-unpack --base-name "$REGISTRY/containerd/app" -
  run_ctr images push "${ctr_plain[@]}" "${ctr_login[@]}" "$REGISTRY/containerd/app:1" "$REGISTRY/containerd/app:list"
  expect_equal digest "$(manifest_digest containerd/app 1)" "$list_digest"
}

ctr_pull() {
  forget_ctr_images
  run_ctr images pull "${ctr_plain[@]}" "${ctr_login[@]}" --all-platforms "$REGISTRY/containerd/app:1"
  expect_match images "$(run_ctr images ls)" "^$REGISTRY/containerd/app:1 .* $list_digest "
}

# Pulled content carries its source, so containerd mounts the layers instead of sending them.
ctr_push_elsewhere() {
  run_ctr images tag "$REGISTRY/containerd/app:1" "$REGISTRY/containerd/elsewhere:1"
  run_ctr images push "${ctr_plain[@]}" "${ctr_login[@]}" "$REGISTRY/containerd/elsewhere:1"
  expect_equal digest "$(manifest_digest containerd/elsewhere 1)" "$list_digest"
}

ctr_pull_by_digest() {
  forget_ctr_images
  run_ctr images pull "${ctr_plain[@]}" "${ctr_login[@]}" "$REGISTRY/containerd/elsewhere@$list_digest"
}

# A busy machine may be too slow for containerd's own start of a container: it gets a second try. The image is the same.
ctr_run() {
  local image="$REGISTRY/containerd/elsewhere@$list_digest" printed
  printed=$(run_ctr run --rm "$image" one) || printed=$(run_ctr run --rm "$image" two)
  expect_equal 'what it prints' "$printed" 'built for amd64'
}

test_containerd() {
  start_containerd >"$WORK/containerd-start.log" 2>&1
  check 'containerd: one of our own starts' containerd_runs
  check 'containerd: ctr images push' ctr_push
  check 'containerd: ctr images pull' ctr_pull
  check 'containerd: ctr images push to another repository' ctr_push_elsewhere
  check 'containerd: ctr images pull by digest' ctr_pull_by_digest
  check 'containerd: ctr run of the pulled image' ctr_run
}
