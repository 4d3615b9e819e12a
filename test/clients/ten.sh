# shellcheck shell=bash disable=SC2154
# Ten images with layers of 1 byte to 300 MB, pushed and pulled under a quota that they fit in, one that they just meet, and one
# that they just miss. With the engine that docker.sh or keep.sh has started.

ten_sizes=(1 511 512 65536 100001 1048576 4194305 8388608 16777217 314572800)

ten_image() { run_docker image inspect -f '{{.Id}}' "boathouse-ten:$1"; }

ten_make() {
  local number
  mkdir -p "$WORK/ten"
  for number in "${!ten_sizes[@]}"; do
    head -c "${ten_sizes[number]}" /dev/urandom >"$WORK/ten/bytes"
    tar -C "$WORK/ten" -c bytes | run_docker import --change "LABEL number=$number" - "boathouse-ten:$number"
    ten_image "$number" >"$WORK/ten/id-$number"
  done
  rm "$WORK/ten/bytes"
}

# ten_push NUMBER REPOSITORY
ten_push() {
  run_docker tag "boathouse-ten:$1" "$other_registry/$2:1"
  run_docker push "$other_registry/$2:1"
}

ten_push_all() {
  local number
  for number in "${!ten_sizes[@]}"; do ten_push "$number" "ten/image-$number"; done
}

# The image's name is the digest of its configuration, which has those of its layers: the engine has compared all of them.
ten_pull_all() {
  local number image
  run_docker image ls --format '{{.Repository}}:{{.Tag}}' | xargs -r timeout 120 "$docker_program" -H "unix://$docker_socket" image rm -f
  forget_images
  for number in "${!ten_sizes[@]}"; do
    image=$other_registry/ten/image-$number:1
    run_docker pull "$image"
    expect_equal "image $number" "$(run_docker image inspect -f '{{.Id}}' "$image")" "$(cat "$WORK/ten/id-$number")"
    run_docker tag "$image" "boathouse-ten:$number"
  done
}

# ten_bytes: what the ten hold, with their manifests, and what the large layer does, as `TOTAL LARGE`.
ten_bytes() {
  local number REGISTRY=$other_registry
  for number in "${!ten_sizes[@]}"; do
    get_manifest "ten/image-$number" 1 >"$WORK/ten/manifest"
    stat -c %s "$WORK/ten/manifest"
    jq -r '.layers[0].size, .config.size' "$WORK/ten/manifest"
  done | awk '{ total += $1; if ($1 > large) large = $1 } END { printf "%d %d\n", total, large }'
}

# ten_used DATA: what counts against the quota.
ten_used() { boathouse_on "$1" quota --json | jq '[.. | objects | select(.pattern? == "ten/**") | .used][0]'; }

ten_fits() {
  ten_push_all
  ten_pull_all
  ten_bytes >"$WORK/ten/sum"
  expect_equal 'bytes that count' "$(ten_used "$WORK/fits")" "$(cut -d ' ' -f 1 "$WORK/ten/sum")"
}

ten_just_met() {
  ten_push_all
  expect_equal 'bytes that count' "$(ten_used "$WORK/met")" "$(cut -d ' ' -f 1 "$WORK/ten/sum")"
  ten_pull_all
}

ten_refused() {
  local text
  text=$(ten_push "$1" "$2" 2>&1) && return 1
  expect_match 'the error' "$text" "^denied: quota $3 is exhausted: [0-9]+ of [0-9]+ bytes are used or on their way, .*push again"
}

ten_stored() { find "$WORK/missed/blobs" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", sum }'; }
# What was refused is an open upload without a byte, until `uploads.expireAfter`: the client may go on with it.
ten_on_their_way() { find "$WORK/missed/uploads" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d", sum }'; }
ten_stores() { [ "$(ten_on_their_way)" -eq 0 ] && [ "$(ten_stored)" -eq "$1" ]; }

# By a layer that is one byte too large: nothing of it stays.
ten_layer_missed() {
  ten_refused 9 limits/large 'limits/\*\*'
  wait_until 60 ten_stores 0
}

# All ten but for the last byte: the tenth is refused, and what came of it goes when its grace is over.
ten_just_missed() {
  local number
  for number in 0 1 2 3 4 5 6 7 8; do ten_push "$number" "ten/image-$number"; done
  ten_stored >"$WORK/ten/nine"
  ten_used "$WORK/missed" >"$WORK/ten/nine-used"
  ten_refused 9 ten/image-9 'ten/\*\*'
  wait_until 120 ten_stores "$(cat "$WORK/ten/nine")"
  expect_equal 'bytes that count' "$(ten_used "$WORK/missed")" "$(cat "$WORK/ten/nine-used")"
  for number in 0 8; do run_docker pull "$other_registry/ten/image-$number:1"; done
}

# ten_server NAME QUOTAS [NAME=VALUE…]: one that holds nothing yet; the one before it goes.
ten_server() {
  if [ -n "${ten_pid:-}" ]; then stop_process "$ten_pid"; fi
  start_server_beside "$1" BOATHOUSE_QUOTAS="$2" "${@:3}" || return 1
  ten_pid=$other_pid
}

test_ten() {
  local total large
  if ! own_server; then
    skip 'ten: images under a quota' 'not our server'
    return
  fi
  if [ -z "${docker_pid:-}" ]; then
    start_docker_engine >"$WORK/engine.log" 2>&1
    check 'ten: an engine of our own starts' docker_engine_runs
  fi
  check 'ten: images with layers of 1 byte to 300 MB' ten_make
  ten_server fits 'ten/**=2GB'
  check 'ten: pushed and pulled under a quota that they fit in' ten_fits
  read -r total large <"$WORK/ten/sum"
  rm -rf "$WORK/fits"
  ten_server met "ten/**=${total}B"
  check "ten: pushed and pulled under a quota that they just meet, $total bytes" ten_just_met
  rm -rf "$WORK/met"
  ten_server missed "ten/**=$((total - 1))B,limits/**=$((large - 1))B" BOATHOUSE_GC_GRACE=20s BOATHOUSE_GC_INTERVAL=1s
  check 'ten: a layer that is one byte too large is refused with a sentence, and nothing is left' ten_layer_missed
  check 'ten: under a quota that they miss by a byte nine stay, and nothing of the tenth' ten_just_missed
}
