# shellcheck shell=bash disable=SC2154
# podman and buildah, with a store of their own.

prepare_podman() {
  cat >"$WORK/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$WORK/podman/root"
runroot = "$WORK/podman/run"
[storage.options]
pull_options = {enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}
CONF
  cat >"$WORK/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
image_copy_tmp_dir = "$WORK/tmp"
lock_type = "file"
static_dir = "$WORK/podman/static"
tmp_dir = "$WORK/podman/tmp"
volume_path = "$WORK/podman/volumes"
CONF
  printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY" >"$WORK/registries.conf"
}

with_podman_settings() {
  timeout 120 env CONTAINERS_STORAGE_CONF="$WORK/storage.conf" CONTAINERS_CONF="$WORK/containers.conf" \
    CONTAINERS_REGISTRIES_CONF="$WORK/registries.conf" "$@"
}
run_podman() { with_podman_settings podman "$@"; }
run_buildah() { with_podman_settings buildah "$@"; }

forget_podman_images() {
  local left
  run_podman image rm --all --force >/dev/null
  left=$(run_podman image ls --quiet)
  expect_equal 'images left' "$left" ''
}

# build_image NAME FOLDER: one layer over the root file system's.
build_image() {
  local container
  container=$(run_buildah from scratch)
  run_buildah copy "$container" "$rootfs" /
  run_buildah commit "$container" "$1-base"
  run_buildah rm "$container"
  container=$(run_buildah from "$1-base")
  run_buildah copy "$container" "$2" /data
  run_buildah config --cmd '/bin/cat /data/name' "$container"
  run_buildah commit "$container" "$1"
  run_buildah rm "$container"
}

podman_build() {
  mkdir -p "$WORK/data-1"
  echo 'the podman image' >"$WORK/data-1/name"
  build_image boathouse-podman "$WORK/data-1"
}

podman_push() {
  run_podman push --tls-verify=false --digestfile "$WORK/podman-digest" boathouse-podman "$REGISTRY/podman/app:1"
  expect_equal digest "$(manifest_digest podman/app 1)" "$(cat "$WORK/podman-digest")"
  run_podman push --tls-verify=false boathouse-podman "$REGISTRY/podman/app:1"
}

podman_pull_by_tag() {
  forget_podman_images
  run_podman pull --tls-verify=false "$REGISTRY/podman/app:1"
  expect_equal 'what it prints' "$(run_podman run --rm --network none "$REGISTRY/podman/app:1")" 'the podman image'
}

podman_pull_by_digest() {
  forget_podman_images
  run_podman pull --tls-verify=false "$REGISTRY/podman/app@$(cat "$WORK/podman-digest")"
}

podman_docker_format() {
  run_podman pull --tls-verify=false "$REGISTRY/podman/app:1"
  run_podman push --format v2s2 --tls-verify=false "$REGISTRY/podman/app:1" "$REGISTRY/podman/schema2:1"
  expect_equal type "$(manifest_type podman/schema2 1)" application/vnd.docker.distribution.manifest.v2+json
}

podman_list() {
  run_podman manifest create boathouse-list
  run_podman manifest add --tls-verify=false boathouse-list "docker://$REGISTRY/podman/app:1"
  run_podman manifest push --all --tls-verify=false boathouse-list "docker://$REGISTRY/podman/list:1"
  run_podman manifest inspect "$REGISTRY/podman/list:1" >"$WORK/tmp/podman-list.json"
  expect_equal 'image in the list' "$(jq -r '.manifests[0].digest' "$WORK/tmp/podman-list.json")" "$(cat "$WORK/podman-digest")"
  run_podman manifest rm boathouse-list
}

podman_search() {
  local text
  text=$(run_podman search --tls-verify=false --format '{{.Name}}' "$REGISTRY/podman")
  expect_match 'names found' "$text" "^$REGISTRY/podman/app\$"
  expect_match 'names found' "$text" "^$REGISTRY/podman/schema2\$"
  text=$(run_podman search --tls-verify=false --format '{{.Name}}' "$REGISTRY/nothing-is-called-this")
  expect_equal 'names found' "$text" ''
}

podman_search_tags() {
  local tag text
  for tag in 2 3; do run_podman push --tls-verify=false "$REGISTRY/podman/app:1" "$REGISTRY/podman/app:$tag"; done
  text=$(run_podman search --tls-verify=false --list-tags "$REGISTRY/podman/app")
  expect_equal tags "$(awk 'NR > 1 { print $2 }' <<<"$text" | tr '\n' ' ')" '1 2 3 '
}

# Two images that share four files of 4 MB; the second has others between them, so that what is new in its layer lies
# in several places.
zstd_push() {
  local number
  mkdir -p "$WORK/chunked-1"
  for number in 1 2 3 4; do head -c 4M /dev/urandom >"$WORK/chunked-1/file-$number"; done
  echo 'the chunked image' >"$WORK/chunked-1/name"
  cp -a "$WORK/chunked-1" "$WORK/chunked-2"
  for number in 1 2 3; do head -c 300K /dev/urandom >"$WORK/chunked-2/file-$number-more"; done
  build_image boathouse-chunked-1 "$WORK/chunked-1"
  build_image boathouse-chunked-2 "$WORK/chunked-2"
  run_buildah push --tls-verify=false --compression-format zstd:chunked boathouse-chunked-1 "docker://$REGISTRY/podman/chunked:1"
  run_podman push --tls-verify=false --compression-format zstd:chunked boathouse-chunked-2 "$REGISTRY/podman/chunked:2"
  local text
  text=$(get_manifest podman/chunked 2)
  expect_equal 'layer type' "$(jq -r '.layers[1].mediaType' <<<"$text")" application/vnd.oci.image.layer.v1.tar+zstd
  expect_match annotations "$(jq -c '.layers[1].annotations' <<<"$text")" 'manifest-position'
}

zstd_pull() {
  forget_podman_images
  run_podman pull --tls-verify=false "$REGISTRY/podman/chunked:1"
  expect_equal 'what it prints' "$(run_podman run --rm --network none "$REGISTRY/podman/chunked:1")" 'the chunked image'
}

# Behind the proxy, to see the requests: the files it has already are not fetched again, the others come by ranges.
zstd_pull_partial() {
  local image=$1/podman/chunked:2 folder
  run_podman --log-level=debug pull --tls-verify=false "$image"
  cat "$WORK/podman-proxy.log"
  grep -Eq '^range bytes=[0-9]+-[0-9]+,[0-9]+-[0-9]+' "$WORK/podman-proxy.log"
  folder=$(run_podman image mount "$image")
  diff -r "$WORK/chunked-2" "$folder/data"
  run_podman image unmount "$image"
}

test_podman() {
  prepare_podman
  check 'buildah: builds an image' podman_build
  check 'podman: push, twice' podman_push
  check 'podman: pull by tag and run' podman_pull_by_tag
  check 'podman: pull by digest' podman_pull_by_digest
  check 'podman: push in Docker format' podman_docker_format
  check 'podman: manifest create, add, push and inspect' podman_list
  check 'podman: search finds names' podman_search
  check 'podman: search --list-tags' podman_search_tags
  check 'buildah: push with zstd:chunked' zstd_push
  check 'podman: pull zstd:chunked and run' zstd_pull
  start_proxy "$WORK/podman-proxy.log" 0 0
  check 'podman: the proxy listens' grep '^port ' "$WORK/podman-proxy.log"
  check 'podman: pull zstd:chunked in parts, by ranges' zstd_pull_partial "$proxied"
}
