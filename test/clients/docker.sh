# shellcheck shell=bash disable=SC2154
# A real Docker engine of our own (own data, own socket, no networking for containers) and its command line.

docker_socket=$WORK/docker.sock
docker_program=/usr/bin/docker

run_docker() { timeout 240 "$docker_program" -H "unix://$docker_socket" "$@"; }

# start_docker_engine [OPTION…]: further options of dockerd
start_docker_engine() {
  start_process "$WORK/dockerd.log" dockerd --data-root "$WORK/docker/root" --exec-root "$WORK/docker/exec" \
    -H "unix://$docker_socket" --pidfile "$WORK/docker.pid" --iptables=false --ip6tables=false --bridge=none "$@"
  docker_pid=$started
  wait_until 60 run_docker version || {
    tail -n 20 "$WORK/dockerd.log"
    return 1
  }
}

docker_engine_runs() {
  cat "$WORK/engine.log"
  run_docker version
}

# dockerd ends its containerd itself; after a hard end we do.
stop_docker_engine() {
  local containerd_pid
  if [ -z "${docker_pid:-}" ]; then return 0; fi
  containerd_pid=$(cat "$WORK/docker/exec/containerd/containerd.pid" 2>/dev/null)
  stop_process "$docker_pid" 30
  if [ -n "$containerd_pid" ] && grep -q containerd "/proc/$containerd_pid/comm" 2>/dev/null; then kill -KILL "$containerd_pid"; fi
  return 0
}

# forget_images: the engine's store is empty afterwards, so that a pull has to fetch everything.
forget_images() {
  local left
  run_docker container prune -f >/dev/null
  run_docker image prune -af >/dev/null
  left=$(run_docker image ls -aq)
  expect_equal 'images left' "$left" ''
}

pushed_digest() { sed -nE 's/^.*digest: (sha256:[0-9a-f]{64}) size: [0-9]+$/\1/p' | tail -n 1; }

# Three layers: an imported root file system and two commits upon it.
docker_make_image() {
  tar -C "$rootfs" -c . | run_docker import - boathouse-base:1
  run_docker run --name one --network none boathouse-base:1 /bin/sh -c 'echo first > /first'
  run_docker commit one boathouse-one:1
  run_docker run --name two --network none boathouse-one:1 /bin/sh -c 'echo second > /second'
  run_docker commit --change 'CMD ["/bin/cat", "/first", "/second"]' two boathouse-two:1
  run_docker rm one two
  run_docker tag boathouse-two:1 "$REGISTRY/docker/app:1"
  expect_equal layers "$(run_docker image inspect -f '{{len .RootFS.Layers}}' "$REGISTRY/docker/app:1")" 3
}

docker_push() {
  local text
  text=$(run_docker push "$REGISTRY/docker/app:1")
  expect_equal 'layers pushed' "$(grep -c ': Pushed$' <<<"$text")" 3
  pushed_digest <<<"$text" >"$WORK/docker-digest"
  expect_equal digest "$(manifest_digest docker/app 1)" "$(cat "$WORK/docker-digest")"
}

docker_push_again() {
  local text
  text=$(run_docker push "$REGISTRY/docker/app:1")
  expect_equal 'layers already there' "$(grep -c ': Layer already exists$' <<<"$text")" 3
  expect_equal digest "$(pushed_digest <<<"$text")" "$(cat "$WORK/docker-digest")"
}

docker_push_mounted() {
  local text
  run_docker tag "$REGISTRY/docker/app:1" "$REGISTRY/docker/other/app:1"
  text=$(run_docker push "$REGISTRY/docker/other/app:1")
  expect_equal 'layers mounted' "$(grep -c ': Mounted from docker/app$' <<<"$text")" 3
  expect_equal digest "$(pushed_digest <<<"$text")" "$(cat "$WORK/docker-digest")"
}

docker_pull_by_tag() {
  local text
  forget_images
  text=$(run_docker pull "$REGISTRY/docker/app:1")
  expect_equal 'layers pulled' "$(grep -c ': Pull complete$' <<<"$text")" 3
  expect_match output "$text" "^Digest: $(cat "$WORK/docker-digest")\$"
}

docker_run_pulled() {
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$REGISTRY/docker/app:1")" $'first\nsecond'
}

docker_pull_by_digest() {
  local digest
  digest=$(cat "$WORK/docker-digest")
  forget_images
  run_docker pull "$REGISTRY/docker/other/app@$digest"
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$REGISTRY/docker/other/app@$digest")" $'first\nsecond'
}

docker_pull_unknown() {
  local text
  text=$(run_docker pull "$REGISTRY/docker/app:absent" 2>&1) && return 1
  expect_match 'the error' "$text" 'manifest unknown|not found'
}

# Docker must show the registry's sentence, and at once: it tries again for most of a minute what it takes for passing.
docker_push_over_quota() {
  local text begun=$SECONDS
  run_docker tag boathouse-base:1 "$REGISTRY/limits/app:1"
  text=$(run_docker push "$REGISTRY/limits/app:1" 2>&1) && return 1
  expect_match 'the error' "$text" '^denied: quota limits/\*\* is exhausted: [0-9]+ of 64000 bytes are used or on their way, .*push again'
  expect_equal 'soon enough' "$((SECONDS - begun < 45))" 1
}

docker_push_and_pull_all() {
  local tag text
  forget_images
  run_docker pull "$REGISTRY/docker/app:1"
  for tag in 1 2 latest; do run_docker tag "$REGISTRY/docker/app:1" "$REGISTRY/docker/all:$tag"; done
  run_docker push -a "$REGISTRY/docker/all"
  forget_images
  text=$(run_docker pull -a "$REGISTRY/docker/all")
  expect_equal 'tags here' "$(run_docker image ls --format '{{.Tag}}' "$REGISTRY/docker/all" | sort | tr '\n' ' ')" '1 2 latest '
}

# The list's images live in two other repositories, so that pushing it mounts their layers.
docker_manifest_list() {
  local list="$REGISTRY/docker/list:$1" text
  run_docker pull "$REGISTRY/docker/app:1"
  tar -C "$rootfs" -c . | run_docker import --platform linux/arm64 - "$REGISTRY/docker/arm:1"
  run_docker push "$REGISTRY/docker/arm:1"
  run_docker manifest create "${manifest_insecure[@]}" "$list" "$REGISTRY/docker/app:1" "$REGISTRY/docker/arm:1"
  run_docker manifest annotate --os linux --arch arm64 --variant v8 "$list" "$REGISTRY/docker/arm:1"
  if everything_on; then
    # For an address of this machine docker pushes lists by plain http, whatever the registry speaks.
    text=$(run_docker manifest push --purge "$list" 2>&1) && return 1
    expect_match 'the error' "$text" 'this port speaks HTTPS: use https://'
    run_docker manifest rm "$list"
    docker_list_by_hand "$1"
    return
  fi
  text=$(run_docker manifest push "${manifest_insecure[@]}" --purge "$list")
  expect_equal 'digest of the list' "$(tail -n 1 <<<"$text")" "$(manifest_digest docker/list "$1")"
}

# docker_list_by_hand TAG: the same list as `docker manifest` makes, pushed by the check itself.
docker_list_by_hand() {
  local name file=$WORK/tmp/docker-manifest lines=''
  for name in app:amd64 arm:arm64:v8; do
    get_manifest "docker/${name%%:*}" 1 >"$file"
    lines+=$(jq -c --arg digest "$(sha256_of "$file")" --argjson size "$(stat -c %s "$file")" --arg name "$name" \
      '($name | split(":")) as $parts | {mediaType, size: $size, digest: $digest,
        platform: ({os: "linux", architecture: $parts[1]} + if $parts[2] then {variant: $parts[2]} else {} end)}' "$file")$'\n'
  done
  jq -s '{schemaVersion: 2, mediaType: "application/vnd.docker.distribution.manifest.list.v2+json", manifests: .}' <<<"$lines" >"$file"
  # A list names what its repository has.
  run_skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false "docker://$REGISTRY/docker/app:1" "docker://$REGISTRY/docker/list:amd64"
  run_skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false "docker://$REGISTRY/docker/arm:1" "docker://$REGISTRY/docker/list:arm64"
  push_manifest docker/list "$1" application/vnd.docker.distribution.manifest.list.v2+json "$file"
}

docker_manifest_inspect() {
  local text
  text=$(run_docker manifest inspect "${manifest_insecure[@]}" "$REGISTRY/docker/list:$1")
  expect_equal type "$(jq -r .mediaType <<<"$text")" application/vnd.docker.distribution.manifest.list.v2+json
  expect_equal platforms "$(jq -r '[.manifests[].platform | .architecture + (.variant // "")] | sort | join(" ")' <<<"$text")" 'amd64 arm64v8'
  text=$(run_docker manifest inspect "${manifest_insecure[@]}" "$REGISTRY/docker/app:1")
  expect_equal layers "$(jq '.layers | length' <<<"$text")" 3
}

docker_pull_list() {
  forget_images
  run_docker pull "$REGISTRY/docker/list:1"
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$REGISTRY/docker/list:1")" $'first\nsecond'
}

# The list that skopeo's and containerd's users have: OCI, made elsewhere.
docker_pull_oci_list() {
  forget_images
  run_skopeo copy --all --quiet --dest-tls-verify=false "oci:$layout:list" "docker://$REGISTRY/docker/oci-list:1"
  run_docker pull "$REGISTRY/docker/oci-list:1"
  expect_equal 'what it prints' "$(run_docker run --rm --network none "$REGISTRY/docker/oci-list:1")" 'built for amd64'
}

docker_search_finds() {
  local text
  text=$(run_docker search --format '{{.Name}}' "localhost:$PORT/app")
  expect_match 'names found' "$text" '^docker/app$'
  expect_match 'names found' "$text" '^docker/other/app$'
  expect_no_match 'names found' "$text" '^docker/list$'
  expect_equal 'with a limit' "$(run_docker search --limit 1 --format '{{.Name}}' "localhost:$PORT/app" | wc -l)" 1
}

docker_search_finds_nothing() {
  local text
  text=$(run_docker search --format '{{.Name}}' "localhost:$PORT/nothing-is-called-this")
  expect_equal 'names found' "$text" ''
}

docker_push_large() {
  local text
  forget_images
  head -c 300M /dev/urandom >"$rootfs/large"
  sha256sum <"$rootfs/large" | cut -d ' ' -f 1 >"$WORK/large-sum"
  tar -C "$rootfs" -c . | run_docker import --change 'CMD ["/bin/sha256sum", "/large"]' - "$REGISTRY/docker/large:1"
  rm "$rootfs/large"
  text=$(run_docker push "$REGISTRY/docker/large:1")
  expect_equal 'layers pushed' "$(grep -c ': Pushed$' <<<"$text")" 1
}

docker_large_is_whole() {
  local image=$1
  expect_equal 'checksum inside' "$(run_docker run --rm --network none "$image" | cut -d ' ' -f 1)" "$(cat "$WORK/large-sum")"
}

docker_pull_large() {
  forget_images
  run_docker pull "$REGISTRY/docker/large:1"
  docker_large_is_whole "$REGISTRY/docker/large:1"
}

# A pull over a slow line, in the background; when 80 of the 300 MB have come the server is killed, and started again on
# its port and data. Sets `interrupted_image`; what came of it is for the checks below. (Not a check itself: the
# server's new process must belong to this shell.)
interrupt_pull() {
  local puller
  check 'docker: (before the interrupted pull) the engine is empty' forget_images
  start_proxy "$WORK/proxy.log" $((60 * 1024 * 1024)) $((80 * 1024 * 1024)) || return 1
  interrupted_image=$proxied/docker/large:1
  run_docker pull "$interrupted_image" >"$WORK/interrupted.log" 2>&1 </dev/null &
  puller=$!
  pids+=("$puller")
  if wait_until 60 grep -q '^mark' "$WORK/proxy.log"; then
    kill_server
    start_server "$PORT" || printf 'no server after the kill\n' >>"$WORK/interrupted.log"
  else
    printf 'the proxy saw too few bytes\n' >>"$WORK/interrupted.log"
  fi
  wait "$puller"
  interrupted_status=$?
}

docker_interrupted_pull_succeeds() {
  cat "$WORK/interrupted.log"
  expect_equal 'exit status of docker pull' "$interrupted_status" 0
  docker_large_is_whole "$interrupted_image"
}

# Proof that the kill came in the middle of the layer: the engine asked for the rest of it.
docker_interrupted_pull_resumes() {
  cat "$WORK/proxy.log"
  local offset
  offset=$(sed -nE 's/^range bytes=([0-9]+)-$/\1/p' "$WORK/proxy.log" | head -n 1)
  [ "${offset:-0}" -gt $((10 * 1024 * 1024)) ]
}

# The machine may have a newer command line than Debian's; both must get on with us.
use_newer_docker_cli() {
  local candidate
  while read -r candidate; do
    if [ "$("$candidate" --version)" != "$(/usr/bin/docker --version)" ]; then
      docker_program=$candidate
      return 0
    fi
  done < <(type -ap docker)
  return 1
}

test_docker() {
  start_docker_engine >"$WORK/engine.log" 2>&1
  check 'docker: an engine of our own starts' docker_engine_runs
  check 'docker: makes an image of three layers' docker_make_image
  check 'docker: push' docker_push
  check 'docker: push again says Layer already exists' docker_push_again
  check 'docker: push to another repository says Mounted from' docker_push_mounted
  if own_server; then check 'docker: push over a quota shows it' docker_push_over_quota; fi
  check 'docker: pull by tag' docker_pull_by_tag
  check 'docker: run the pulled image' docker_run_pulled
  check 'docker: pull by digest, and run it' docker_pull_by_digest
  check 'docker: pull of an unknown tag says so' docker_pull_unknown
  check 'docker: push -a and pull -a' docker_push_and_pull_all
  check 'docker: manifest create, annotate and push' docker_manifest_list 1
  check 'docker: manifest inspect' docker_manifest_inspect 1
  check 'docker: pull a list and run the image of this platform' docker_pull_list
  check 'docker: pull an OCI list made elsewhere' docker_pull_oci_list
  if use_newer_docker_cli; then
    check "docker: manifest create and push with $("$docker_program" --version | cut -d , -f 1)" docker_manifest_list 2
    check "docker: manifest inspect with $("$docker_program" --version | cut -d , -f 1)" docker_manifest_inspect 2
    docker_program=/usr/bin/docker
  fi
  check 'docker: search finds names' docker_search_finds
  check 'docker: search for what is not there finds nothing' docker_search_finds_nothing
  check 'docker: push a layer of 300 MB' docker_push_large
  check 'docker: pull a layer of 300 MB, whole' docker_pull_large
  if own_server; then
    interrupt_pull
    check 'docker: a pull survives kill -9 of the server and its restart' docker_interrupted_pull_succeeds
    check 'docker: that pull went on in the middle of the layer' docker_interrupted_pull_resumes
  else
    skip 'docker: a pull survives kill -9 of the server' 'not our server'
  fi
}
