#!/usr/bin/env bash
# shellcheck disable=SC1091,SC2154
# Real clients against a server that asks for users: one line a check, `auth clients: N passed, N failed` at the end,
# non-zero when any failed.
#
#   bash test/clients/auth.sh [GROUP…]
#
# Groups: docker podman skopeo containerd oras crane helm search nginx long, and server, which comes last.
# `long` takes three minutes: a layer that arrives so slowly that the token it was begun with is long dead at its end;
# `quick` is all but that.
#
# Needs what run.sh needs.
#   BOATHOUSE_MAIN=FILE   the server's compiled main.js (default: the project's dist/src/main.js)
#   EVERYTHING=up|down    with every feature switched on, while the mirror's upstream is up, or away
#   KEEP_WORK=1           keep the folder with logs and data

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
groups=(docker podman skopeo containerd oras crane helm search nginx long server)
quick=(docker podman skopeo containerd oras crane helm search nginx server)

unset CLIENT_TEST_REGISTRY # the users are made in the server's own data folder
# shellcheck source=lib.sh
source "$here/lib.sh"
# shellcheck source=install.sh
source "$here/install.sh"
# shellcheck source=images.sh
source "$here/images.sh"
for file in docker podman skopeo containerd oras crane helm nginx server; do
  # shellcheck source=/dev/null
  source "$here/$file.sh"
done
if [ "${1:-}" = quick ]; then groups=("${quick[@]}"); elif [ $# -gt 0 ]; then groups=("$@"); fi

before_clean_up() { stop_docker_engine; }

give_up() {
  printf 'auth clients: 0 passed, 1 failed (%s)\n' "$1"
  exit 1
}

# ---------------------------------------------------------------- users

admin_password='the admin pulls every rope'
dev_password='pass:word with "odd" signs/+='
guest_password='a guest may look'
wrong_password='not this one'

boathouse() { timeout 60 env "${features[@]}" node "$server_main" "$@" --data "$WORK/data"; }
add_user() { boathouse user add "$1" "${@:3}" <<<"$2"; }

# alice administers, dev pushes to team/**, guest pulls from it, everybody pulls from public/**.
make_users() {
  add_user alice "$admin_password" --admin &&
    add_user dev "$dev_password" --group devs &&
    add_user guest "$guest_password" &&
    boathouse grant push 'team/**' --to group:devs &&
    boathouse grant delete 'team/trash/**' --to user:dev &&
    boathouse grant pull 'team/**' --to user:guest &&
    boathouse grant pull 'public/**' --to anonymous &&
    ci_token=$(boathouse token create --user dev --name ci --scope 'team/ci/**:push')
}

as_alice() { "$@" -u "alice:$admin_password"; }
# status_as NAME:PASSWORD METHOD PATH
status_as() { api_status "$2" "$3" -u "$1" "${accept[@]}"; }

# ---------------------------------------------------------------- docker

docker_as() {
  local who=$1
  shift
  DOCKER_CONFIG="$WORK/docker-$who" run_docker "$@"
}
docker_login() { docker_as "$1" login "$REGISTRY" --username "$2" --password-stdin <<<"$3" 2>&1; }

docker_login_right() {
  expect_match output "$(docker_login dev dev "$dev_password")" '^Login Succeeded$'
  expect_match output "$(docker_login alice alice "$admin_password")" '^Login Succeeded$'
  expect_match output "$(docker_login ci dev "$ci_token")" '^Login Succeeded$'
  # Without refresh tokens the configuration holds what other programs can use, too.
  expect_no_match 'the configuration' "$(cat "$WORK/docker-dev/config.json")" identitytoken
}

docker_login_wrong() {
  local text
  text=$(docker_login wrong dev "$wrong_password") && return 1
  expect_match 'the error' "$text" 'unauthorized|incorrect username or password'
  expect_no_match 'the error' "$text" 'Succeeded'
  text=$(docker_login wrong nobody "$dev_password") && return 1
  expect_match 'the error' "$text" 'unauthorized|incorrect username or password'
  expect_no_match 'the configuration' "$(cat "$WORK/docker-wrong/config.json" 2>/dev/null || true)" '"auth"'
}

docker_make_images() {
  local name
  tar -C "$rootfs" -c . | run_docker import --change 'CMD ["/bin/echo", "an image for those who may"]' - boathouse-auth:1
  for name in team/app public/app private/app team/ci/app team/other public/more; do
    run_docker tag boathouse-auth:1 "$REGISTRY/$name:1"
  done
}

docker_push_with_rights() {
  expect_match digest "$(docker_as dev push "$REGISTRY/team/app:1")" 'digest: sha256:'
  docker_as alice push "$REGISTRY/public/app:1"
  docker_as alice push "$REGISTRY/private/app:1"
  docker_as ci push "$REGISTRY/team/ci/app:1"
  expect_equal 'the admin sees it' "$(status_as "alice:$admin_password" GET /v2/team/app/manifests/1)" 200
}

docker_push_without_rights() {
  local text who image
  for who in nobody dev; do
    for image in private/app public/app nowhere/app; do
      run_docker tag boathouse-auth:1 "$REGISTRY/$image:refused"
      text=$(docker_as "$who" push "$REGISTRY/$image:refused" 2>&1) && return 1
      expect_match "$who pushes $image" "$text" '^denied: '
    done
  done
  text=$(docker_as ci push "$REGISTRY/team/other:1" 2>&1) && return 1
  expect_match 'a token for elsewhere' "$text" '^denied: '
  expect_equal 'nothing was pushed' "$(status_as "alice:$admin_password" GET /v2/nowhere/app/tags/list)" 404
}

docker_pull_without_rights() {
  local text image
  for image in team/app team/none private/app private/none; do
    text=$(docker_as nobody pull "$REGISTRY/$image:1" 2>&1) && return 1
    # Docker's own words for it, the same whether the image is there or not.
    expect_match "$image" "$text" "pull access denied for $REGISTRY/$image, repository does not exist or may require 'docker login'"
  done
  text=$(docker_as dev pull "$REGISTRY/private/app:1" 2>&1) && return 1
  expect_match 'somebody else' "$text" 'denied'
}

docker_pull_with_rights() {
  forget_images
  expect_equal 'an anonymous pull' "$(docker_as nobody run --rm --network none "$REGISTRY/public/app:1")" 'an image for those who may'
  forget_images
  docker_as dev pull "$REGISTRY/team/app:1"
  docker_as dev pull "$REGISTRY/public/app:1"
  docker_as ci pull "$REGISTRY/public/app:1"
}

# The engine pulls without a login and pushes with one, at the same time.
docker_pull_and_push_together() {
  local pids=() pid n
  docker_make_images_again
  for n in 1 2 3; do
    run_docker tag boathouse-auth:1 "$REGISTRY/public/more:$n"
    docker_as alice push "$REGISTRY/public/more:$n" >"$WORK/tmp/push-$n" 2>&1 &
    pids+=($!)
    docker_as nobody pull "$REGISTRY/public/app:1" >"$WORK/tmp/pull-$n" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
  expect_equal tags "$(tags_of public/more | tr '\n' ' ')" '1 2 3 '
}
docker_make_images_again() { run_docker image inspect boathouse-auth:1 >/dev/null 2>&1 || docker_make_images; }

docker_logout() {
  local text
  expect_match output "$(docker_as dev logout "$REGISTRY")" 'Removing login credentials'
  docker_make_images_again
  text=$(docker_as dev push "$REGISTRY/team/app:1" 2>&1) && return 1
  expect_match 'the error' "$text" '^denied: '
  docker_login dev dev "$dev_password"
  docker_as dev push "$REGISTRY/team/app:1"
}

# Other images of the same layers: docker tries to mount them from where it knows them.
docker_mount() {
  local text
  docker_make_images_again
  docker_as alice push "$REGISTRY/private/app:1"
  run_docker tag boathouse-auth:1 "$REGISTRY/team/mounted:1"
  text=$(docker_as dev push "$REGISTRY/team/mounted:1")
  expect_match digest "$text" 'digest: sha256:'
  expect_no_match 'layers' "$text" 'Mounted from private'
}

# What is revoked is over while docker keeps the old login.
docker_disabled_user() {
  local text
  add_user leaver "$guest_password"
  boathouse grant push 'team/**' --to user:leaver
  docker_login leaver leaver "$guest_password"
  docker_make_images_again
  run_docker tag boathouse-auth:1 "$REGISTRY/team/left:1"
  docker_as leaver push "$REGISTRY/team/left:1"
  boathouse user disable leaver
  sleep 1 # the second within which it must be over
  text=$(docker_as leaver push "$REGISTRY/team/left:1" 2>&1) && return 1
  expect_match 'the error' "$text" 'unauthorized|denied'
  text=$(docker_login leaver leaver "$guest_password") && return 1
  expect_match 'the error' "$text" 'unauthorized|incorrect username or password'
}

test_docker() {
  start_docker_engine >"$WORK/engine.log" 2>&1
  check 'docker: an engine of our own starts' docker_engine_runs
  check 'docker: images to push' docker_make_images
  check 'docker: login with the right password, and with an access token' docker_login_right
  check 'docker: login with a wrong password says unauthorized' docker_login_wrong
  check 'docker: push with rights' docker_push_with_rights
  check 'docker: push without rights says denied' docker_push_without_rights
  check "docker: pull without rights says that it may require 'docker login'" docker_pull_without_rights
  check 'docker: pull with rights, and of a public image without a login' docker_pull_with_rights
  check 'docker: anonymous pulls together with authenticated pushes' docker_pull_and_push_together
  check 'docker: no mount from where the user may not pull' docker_mount
  check 'docker: after logout a push says denied, after another login it works' docker_logout
  check 'docker: a disabled user is out within a second' docker_disabled_user
  if use_newer_docker_cli; then
    check "docker: login, right and wrong, with $("$docker_program" --version | cut -d , -f 1)" docker_newer_login
    docker_program=/usr/bin/docker
  fi
}

docker_newer_login() {
  docker_login_right
  docker_login_wrong
  docker_make_images_again
  docker_as dev push "$REGISTRY/team/app:1"
}

# ---------------------------------------------------------------- podman and buildah

podman_as() {
  local who=$1 command=$2
  shift 2
  run_podman "$command" --tls-verify=false --authfile "$WORK/podman-$who.json" "$@"
}

podman_login() {
  expect_match output "$(podman_as dev login --username dev --password-stdin "$REGISTRY" <<<"$dev_password")" 'Login Succeeded'
  local text
  text=$(podman_as wrong login --username dev --password-stdin "$REGISTRY" <<<"$wrong_password" 2>&1) && return 1
  expect_match 'the error' "$text" 'invalid username/password|unauthorized'
}

podman_push_and_pull() {
  mkdir -p "$WORK/data-auth"
  echo 'the podman image' >"$WORK/data-auth/name"
  build_image boathouse-auth-podman "$WORK/data-auth"
  podman_as dev push boathouse-auth-podman "$REGISTRY/team/podman:1"
  forget_podman_images
  podman_as dev pull "$REGISTRY/team/podman:1"
  expect_equal 'what it prints' "$(run_podman run --rm --network none "$REGISTRY/team/podman:1")" 'the podman image'
}

podman_refused() {
  local text
  echo '{}' >"$WORK/podman-nobody.json"
  text=$(podman_as nobody push "$REGISTRY/team/podman:1" "$REGISTRY/team/refused:1" 2>&1) && return 1
  expect_match 'a push' "$text" 'denied|unauthorized|authentication required'
  text=$(podman_as dev push "$REGISTRY/team/podman:1" "$REGISTRY/private/refused:1" 2>&1) && return 1
  expect_match 'a push elsewhere' "$text" 'denied|unauthorized|authentication required'
  run_podman image rm --all --force
  text=$(podman_as nobody pull "$REGISTRY/team/podman:1" 2>&1) && return 1
  expect_match 'a pull' "$text" 'denied|unauthorized|authentication required'
}

podman_anonymous() {
  podman_as nobody pull "$REGISTRY/public/list:1"
}

podman_logout() {
  local text
  run_podman logout --authfile "$WORK/podman-dev.json" "$REGISTRY"
  text=$(podman_as dev pull "$REGISTRY/team/podman:1" 2>&1) && return 1
  expect_match 'the error' "$text" 'denied|unauthorized|authentication required'
}

buildah_push_and_pull() {
  run_buildah login --tls-verify=false --authfile "$WORK/buildah.json" --username dev --password-stdin "$REGISTRY" <<<"$dev_password"
  local container text
  container=$(run_buildah from scratch)
  run_buildah copy "$container" "$rootfs" /
  run_buildah commit "$container" boathouse-buildah
  run_buildah rm "$container"
  run_buildah push --tls-verify=false --authfile "$WORK/buildah.json" boathouse-buildah "docker://$REGISTRY/team/buildah:1"
  run_buildah rmi boathouse-buildah
  run_buildah pull --tls-verify=false --authfile "$WORK/buildah.json" "docker://$REGISTRY/team/buildah:1"
  text=$(run_buildah push --tls-verify=false --creds "dev:$wrong_password" "$REGISTRY/team/buildah:1" "docker://$REGISTRY/team/buildah:2" 2>&1) && return 1
  expect_match 'a wrong password' "$text" 'invalid username/password|unauthorized|authentication required'
}

test_podman() {
  prepare_podman
  check 'podman: login, right and wrong' podman_login
  check 'podman: push and pull' podman_push_and_pull
  check 'podman: refused without login, and elsewhere' podman_refused
  check 'podman: anonymous pull of what is public' podman_anonymous
  check 'podman: logout' podman_logout
  check 'buildah: login, push, pull, and a wrong password' buildah_push_and_pull
}

# ---------------------------------------------------------------- skopeo

skopeo_login() {
  local text
  skopeo login --tls-verify=false --authfile "$WORK/skopeo.json" --username dev --password-stdin "$REGISTRY" <<<"$dev_password"
  text=$(skopeo login --tls-verify=false --authfile "$WORK/skopeo-wrong.json" --username dev --password-stdin "$REGISTRY" <<<"$wrong_password" 2>&1) && return 1
  expect_match 'the error' "$text" 'invalid username/password|unauthorized'
}

skopeo_copy() {
  run_skopeo copy --all --dest-tls-verify=false --dest-authfile "$WORK/skopeo.json" "oci:$layout:list" "docker://$REGISTRY/team/list:1"
  run_skopeo copy --all --src-tls-verify=false --dest-tls-verify=false --src-creds "dev:$dev_password" --dest-creds "alice:$admin_password" \
    "docker://$REGISTRY/team/list:1" "docker://$REGISTRY/private/list:1"
  expect_match tags "$(skopeo list-tags --tls-verify=false --creds "guest:$guest_password" "docker://$REGISTRY/team/list")" '"1"'
  expect_equal digest "$(run_skopeo inspect --tls-verify=false --creds "guest:$guest_password" "docker://$REGISTRY/team/list:1" | jq -r .Digest)" "$list_digest"
  run_skopeo inspect --tls-verify=false --no-creds "docker://$REGISTRY/public/list:1"
}

# By an access token that may push there.
skopeo_token() {
  run_skopeo copy --all --dest-tls-verify=false --dest-creds "dev:$ci_token" "oci:$layout:list" "docker://$REGISTRY/team/ci/list:1"
  local text
  text=$(run_skopeo copy --all --dest-tls-verify=false --dest-creds "dev:$ci_token" "oci:$layout:list" "docker://$REGISTRY/team/list:2" 2>&1) && return 1
  expect_match 'elsewhere' "$text" 'denied|unauthorized|authentication required'
}

skopeo_refused() {
  local creds text
  for creds in "--creds=guest:$wrong_password" --no-creds; do
    text=$(run_skopeo inspect --tls-verify=false "$creds" "docker://$REGISTRY/team/list:1" 2>&1) && return 1
    expect_match "$creds" "$text" 'denied|unauthorized|authentication required|invalid username/password'
  done
}

skopeo_delete() {
  local text
  run_skopeo copy --all --dest-tls-verify=false --dest-authfile "$WORK/skopeo.json" "oci:$layout:list" "docker://$REGISTRY/team/trash/list:1"
  text=$(run_skopeo delete --tls-verify=false --authfile "$WORK/skopeo.json" "docker://$REGISTRY/team/list:1" 2>&1) && return 1
  expect_match 'without the right' "$text" 'denied|unauthorized|authentication required'
  run_skopeo delete --tls-verify=false --authfile "$WORK/skopeo.json" "docker://$REGISTRY/team/trash/list:1"
  expect_equal 'with the right' "$(status_as "alice:$admin_password" GET /v2/team/trash/list/manifests/1)" 404
  expect_equal 'the other' "$(status_as "alice:$admin_password" GET /v2/team/list/manifests/1)" 200
}

test_skopeo() {
  check 'skopeo: login, right and wrong' skopeo_login
  check 'skopeo: copy, list-tags and inspect, each with its own user' skopeo_copy
  check 'skopeo: an access token pushes where it may, and nowhere else' skopeo_token
  check 'skopeo: refused with a wrong password, and without' skopeo_refused
  check 'skopeo: delete with and without the right' skopeo_delete
}

# ---------------------------------------------------------------- containerd

ctr_push_and_pull() {
  tar -C "$layout" -c . | run_ctr images import --all-platforms --no-unpack --base-name "$REGISTRY/team/ctr" -
  run_ctr images push "${ctr_plain[@]}" --user "dev:$dev_password" "$REGISTRY/team/ctr:1" "$REGISTRY/team/ctr:list"
  forget_ctr_images
  run_ctr images pull "${ctr_plain[@]}" --all-platforms --user "dev:$dev_password" "$REGISTRY/team/ctr:1"
  expect_match images "$(run_ctr images ls)" "^$REGISTRY/team/ctr:1 .* $list_digest "
}

ctr_refused() {
  # When a push is refused while ctr still writes, chance decides which of its two errors it shows.
  local text words='insufficient_scope|unauthorized|denied|authorization failed|closed pipe'
  text=$(run_ctr images push "${ctr_plain[@]}" "$REGISTRY/team/ctr:2" "$REGISTRY/team/ctr:1" 2>&1) && return 1
  expect_match 'without a user' "$text" "$words"
  text=$(run_ctr images push "${ctr_plain[@]}" --user "guest:$guest_password" "$REGISTRY/team/ctr:2" "$REGISTRY/team/ctr:1" 2>&1) && return 1
  expect_match 'without the right' "$text" "$words"
  expect_match 'what was refused is not there' "$(curl -s -o /dev/null -w '%{http_code}' -u "dev:$dev_password" "$scheme://$REGISTRY/v2/team/ctr/manifests/2")" '^404$'
  text=$(run_ctr images pull "${ctr_plain[@]}" --user "dev:$wrong_password" "$REGISTRY/team/ctr:1" 2>&1) && return 1
  expect_match 'a wrong password' "$text" 'unauthorized|401'
  text=$(run_ctr images pull "${ctr_plain[@]}" "$REGISTRY/private/app:1" 2>&1) && return 1
  expect_match 'a pull without a user' "$text" 'insufficient_scope|unauthorized|denied|authorization failed'
}

ctr_anonymous() {
  forget_ctr_images
  run_ctr images pull "${ctr_plain[@]}" --all-platforms "$REGISTRY/public/list:1"
}

test_containerd() {
  start_containerd >"$WORK/containerd-start.log" 2>&1
  check 'containerd: one of our own starts' containerd_runs
  check 'containerd: ctr images push and pull with --user' ctr_push_and_pull
  check 'containerd: refused without a user, the right, or the password' ctr_refused
  check 'containerd: anonymous pull of what is public' ctr_anonymous
}

# ---------------------------------------------------------------- oras

oras_login() {
  local text
  mkdir -p "$oras_folder"
  run_oras login "${plain_http[@]}" --registry-config config.json --username dev --password-stdin "$REGISTRY" <<<"$dev_password"
  text=$(run_oras login "${plain_http[@]}" --registry-config wrong.json --username dev --password-stdin "$REGISTRY" <<<"$wrong_password" 2>&1) && return 1
  expect_match 'the error' "$text" 'unauthorized|401'
}

oras_push_and_pull() {
  echo 'some notes' >"$oras_folder/notes.txt"
  echo '{}' >"$oras_folder/sbom.json"
  run_oras push "${plain_http[@]}" --registry-config config.json "$REGISTRY/team/notes:1" notes.txt:text/plain
  run_oras attach "${plain_http[@]}" --registry-config config.json --artifact-type application/vnd.example.sbom+json "$REGISTRY/team/notes:1" sbom.json
  expect_match 'what is attached' "$(run_oras discover "${plain_http[@]}" --registry-config config.json --format tree "$REGISTRY/team/notes:1")" 'sbom'
  rm -rf "$oras_folder/pulled"
  run_oras pull "${plain_http[@]}" --registry-config config.json --output pulled "$REGISTRY/team/notes:1"
  cmp "$oras_folder/notes.txt" "$oras_folder/pulled/notes.txt"
  run_oras repo tags "${plain_http[@]}" --registry-config config.json "$REGISTRY/team/notes"
}

oras_refused() {
  local text
  text=$(run_oras push "${plain_http[@]}" --registry-config none.json "$REGISTRY/team/notes:2" notes.txt:text/plain 2>&1) && return 1
  expect_match 'without login' "$text" '401|403|denied|unauthorized|credential'
  text=$(run_oras push "${plain_http[@]}" --registry-config config.json "$REGISTRY/private/notes:2" notes.txt:text/plain 2>&1) && return 1
  expect_match 'without the right' "$text" '401|403|denied|unauthorized'
  run_oras logout --registry-config config.json "$REGISTRY"
  text=$(run_oras pull "${plain_http[@]}" --registry-config config.json --output never "$REGISTRY/team/notes:1" 2>&1) && return 1
  expect_match 'after logout' "$text" '401|403|denied|unauthorized|credential'
}

test_oras() {
  check 'oras: login, right and wrong' oras_login
  check 'oras: push, attach, discover, pull' oras_push_and_pull
  check 'oras: refused without login, without the right, after logout' oras_refused
}

# ---------------------------------------------------------------- crane

crane_as() {
  local who=$1
  shift
  DOCKER_CONFIG="$WORK/crane-$who" run_crane "$@"
}

crane_push_and_pull() {
  crane_as alice auth login "$REGISTRY" --username alice --password-stdin <<<"$admin_password"
  crane_as guest auth login "$REGISTRY" --username guest --password-stdin <<<"$guest_password"
  crane_as alice push --index "$layout" "$REGISTRY/private/crane:1"
  crane_as alice copy "$REGISTRY/private/crane:1" "$REGISTRY/team/crane:1"
  crane_as guest digest "$REGISTRY/team/crane:1"
  crane_as guest validate --remote "$REGISTRY/team/crane:1"
  crane_as nobody digest "$REGISTRY/public/list:1"
  crane_as alice delete "$REGISTRY/private/crane:1"
}

crane_refused() {
  local text
  text=$(crane_as guest push --index "$layout" "$REGISTRY/team/crane:2" 2>&1) && return 1
  expect_match 'a push' "$text" 'UNAUTHORIZED|DENIED|insufficient_scope'
  text=$(crane_as guest digest "$REGISTRY/private/list:1" 2>&1) && return 1
  expect_match 'a look elsewhere' "$text" 'UNAUTHORIZED|DENIED|401|403'
  text=$(crane_as guest delete "$REGISTRY/team/crane:1" 2>&1) && return 1
  expect_match 'a delete' "$text" 'UNAUTHORIZED|DENIED|insufficient_scope'
  crane_as wrong auth login "$REGISTRY" --username guest --password-stdin <<<"$wrong_password"
  text=$(crane_as wrong digest "$REGISTRY/team/crane:1" 2>&1) && return 1
  expect_match 'a wrong password' "$text" 'UNAUTHORIZED|401'
}

crane_catalog_filtered() {
  expect_no_match 'for a guest' "$(crane_as guest catalog "$REGISTRY")" '^private/'
  expect_match 'for a guest' "$(crane_as guest catalog "$REGISTRY")" '^team/'
  expect_match 'for the admin' "$(crane_as alice catalog "$REGISTRY")" '^private/'
  expect_no_match 'for nobody' "$(crane_as nobody catalog "$REGISTRY")" '^(private|team)/'
  expect_match 'for nobody' "$(crane_as nobody catalog "$REGISTRY")" '^public/'
}

test_crane() {
  check 'crane: login, push, copy, pull, delete' crane_push_and_pull
  check 'crane: refused without the right, and with a wrong password' crane_refused
  check 'crane: the catalog shows what one may pull' crane_catalog_filtered
}

# ---------------------------------------------------------------- helm

helm_login() {
  local text
  mkdir -p "$helm_folder"
  expect_match output "$(run_helm registry login "${plain_http[@]}" --username dev --password-stdin "$REGISTRY" <<<"$dev_password" 2>&1)" 'Login Succeeded'
  expect_match 'the log: it asked by POST' "$(grep '"path":"/auth/token"' "$WORK/server.log" | tail -n 3)" '"method":"POST"'
}

helm_push_and_pull() {
  mkdir -p "$helm_folder/pulled"
  run_helm create ship
  run_helm package ship --version 1.2.3
  run_helm push "${plain_http[@]}" ship-1.2.3.tgz "oci://$REGISTRY/team/charts"
  run_helm pull "${plain_http[@]}" --destination pulled --version 1.2.3 "oci://$REGISTRY/team/charts/ship"
  cmp "$helm_folder/ship-1.2.3.tgz" "$helm_folder/pulled/ship-1.2.3.tgz"
}

helm_refused() {
  local text
  text=$(run_helm push "${plain_http[@]}" ship-1.2.3.tgz "oci://$REGISTRY/private/charts" 2>&1) && return 1
  expect_match 'without the right' "$text" '401|403|denied|unauthorized'
  text=$(run_helm registry login "${plain_http[@]}" --username dev --password-stdin "$REGISTRY" <<<"$wrong_password" 2>&1) && return 1
  expect_match 'a wrong password' "$text" '401|unauthorized|denied'
  run_helm registry logout "$REGISTRY"
  text=$(run_helm push "${plain_http[@]}" ship-1.2.3.tgz "oci://$REGISTRY/team/charts" 2>&1) && return 1
  expect_match 'after logout' "$text" '401|403|denied|unauthorized|credential'
}

test_helm() {
  check 'helm: login, by POST' helm_login
  check 'helm: push and pull' helm_push_and_pull
  check 'helm: refused without the right, with a wrong password, after logout' helm_refused
}

# ---------------------------------------------------------------- search

docker_search_as() { docker_as "$1" search --format '{{.Name}}' "$REGISTRY/l"; }

docker_search_filtered() {
  local text
  DOCKER_CONFIG="$WORK/docker-guest" run_docker login "$REGISTRY" --username guest --password-stdin <<<"$guest_password"
  docker_login alice alice "$admin_password"
  text=$(docker_search_as guest)
  expect_match 'a guest finds' "$text" '^team/list$'
  expect_match 'a guest finds' "$text" '^public/list$'
  expect_no_match 'a guest finds' "$text" '^private/'
  expect_match 'the admin finds' "$(docker_search_as alice)" '^private/list$'
  text=$(docker_search_as nobody)
  expect_match 'nobody in particular finds' "$text" '^public/list$'
  expect_no_match 'nobody in particular finds' "$text" '^(team|private)/'
}

podman_search_as() { podman_as "$1" search --format '{{.Name}}' "$REGISTRY/list"; }

podman_search_filtered() {
  local text
  podman_as guest login --username guest --password-stdin "$REGISTRY" <<<"$guest_password"
  podman_as alice login --username alice --password-stdin "$REGISTRY" <<<"$admin_password"
  text=$(podman_search_as guest)
  expect_match 'a guest finds' "$text" "^$REGISTRY/team/list\$"
  expect_no_match 'a guest finds' "$text" "^$REGISTRY/private/"
  expect_match 'the admin finds' "$(podman_search_as alice)" "^$REGISTRY/private/list\$"
  echo '{}' >"$WORK/podman-nobody.json"
  expect_no_match 'nobody in particular finds' "$(podman_search_as nobody)" "^$REGISTRY/(team|private)/"
  expect_match 'tags' "$(podman_as guest search --list-tags "$REGISTRY/team/list")" ' 1$'
}

# What the two look for, whichever groups have run before.
search_things() {
  local name
  for name in team/list private/list; do
    run_skopeo copy --all --quiet --dest-tls-verify=false --dest-creds "alice:$admin_password" "oci:$layout:list" "docker://$REGISTRY/$name:1"
  done
}

test_search() {
  prepare_podman
  check 'search: things to find' search_things
  if [ -z "${docker_pid:-}" ]; then start_docker_engine >"$WORK/engine.log" 2>&1; fi
  check 'docker: search shows what one may pull' docker_search_filtered
  check 'podman: search shows what one may pull' podman_search_filtered
}

# ---------------------------------------------------------------- a layer that outlives its token

# One layer of 100 MB and four smaller ones, 200 MB in all.
long_image() {
  local name size files=()
  for name in a:100 b:40 c:40 d:10 e:10; do
    size=${name#*:} name=${name%:*}
    mkdir -p "$WORK/long"
    head -c "${size}M" /dev/urandom >"$WORK/long/$name"
    tar -C "$WORK/long" -cf "$WORK/long-$name.tar" "$name"
    files+=(-f "$WORK/long-$name.tar")
  done
  crane_as alice auth login "$REGISTRY" --username alice --password-stdin <<<"$admin_password"
  run_skopeo copy --quiet --dest-tls-verify=false --dest-creds "alice:$admin_password" "oci:$layout:list" "docker://$REGISTRY/team/base:1"
  crane_as alice --platform linux/amd64 append -b "$REGISTRY/team/base:1" "${files[@]}" -t "$REGISTRY/team/long:1"
  rm -rf "$WORK/long" "$WORK"/long-*.tar
}

# In the background, over a line of 1.2 MB/s: the large layer is on its way from the first second to the last, some
# 165 s, and a token is good for 60 s (and 60 s more, for clocks that differ). Sets long_puller.
start_long_pull() {
  start_proxy "$WORK/long-proxy.log" 1200000 0 || return 1
  long_registry=$proxied
  REGISTRY=$long_registry docker_login long guest "$guest_password" >"$WORK/long.log"
  long_began=$SECONDS
  DOCKER_CONFIG="$WORK/docker-long" timeout 400 "$docker_program" -H "unix://$docker_socket" pull "$long_registry/team/long:1" >>"$WORK/long.log" 2>&1 </dev/null &
  long_puller=$!
  pids+=("$long_puller")
}

end_long_pull() {
  wait "$long_puller"
  long_status=$?
  long_took=$((SECONDS - long_began))
}

long_pull_succeeds() {
  cat "$WORK/long.log" "$WORK/long-proxy.log"
  expect_equal 'exit status of docker pull' "$long_status" 0
  expect_match 'the log' "$(cat "$WORK/long.log")" '^Digest: sha256:'
  [ "$long_took" -gt 125 ]
}

# Not by beginning again: each layer was asked for once. And not by the first token alone: others followed.
long_pull_uninterrupted() {
  cat "$WORK/long-proxy.log"
  expect_no_match 'requests' "$(cat "$WORK/long-proxy.log")" '^range '
  expect_equal 'layers asked for twice' "$(grep -E '^request GET /v2/team/long/blobs/' "$WORK/long-proxy.log" | sort | uniq -d)" ''
  [ "$(grep -c '^request GET /auth/token' "$WORK/long-proxy.log")" -gt 2 ]
}

test_long() {
  if [ -z "${docker_pid:-}" ]; then start_docker_engine >"$WORK/engine.log" 2>&1; fi
  check 'long: an image of 200 MB' long_image
  start_long_pull || give_up 'no slow line'
  end_long_pull
  check "long: a pull of $long_took s with tokens of 60 s succeeds" long_pull_succeeds
  check 'long: no layer was begun twice, and tokens were renewed' long_pull_uninterrupted
}

# ---------------------------------------------------------------- all of it

install_clients || give_up 'the clients could not be installed'
# shellcheck disable=SC2031
# From here on no client finds a configuration or credentials of whoever runs this.
export HOME="$WORK/home" DOCKER_CONFIG="$WORK/home/.docker" XDG_CONFIG_HOME="$WORK/home/.config" \
  XDG_CACHE_HOME="$WORK/home/.cache" XDG_DATA_HOME="$WORK/home/.local"
unset REGISTRY_AUTH_FILE DOCKER_HOST DOCKER_CONTEXT CONTAINERD_ADDRESS XDG_RUNTIME_DIR http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

mkdir -p "$DOCKER_CONFIG"
echo "{}" >"$DOCKER_CONFIG/config.json" # podman insists that the file is there
make_images || give_up 'no images to test with'
if everything_on; then
  switch_everything_on || give_up 'not everything could be switched on'
  credentials=() ctr_login=() # the users are this script's own
fi
start_server 0 BOATHOUSE_AUTH=token BOATHOUSE_TOKENS_EXPIRE_AFTER=60s || give_up 'no server'
if is_down; then stop_process "$feature_upstream_pid"; fi
make_users >"$WORK/users.log" 2>&1 || {
  cat "$WORK/users.log"
  give_up 'no users'
}
# The two functions below ask without credentials elsewhere; here the admin asks.
tags_of() { as_alice api GET "/v2/$1/tags/list" | jq -r '.tags // [] | .[]'; }
server_is_ready() {
  expect_equal 'status of /readyz' "$(api_status GET /readyz)" 200
  expect_match metrics "$(api GET /metrics)" '^boathouse_blobs [1-9]'
}
# A public image that every group may need.
run_skopeo copy --all --quiet --dest-tls-verify=false --dest-creds "alice:$admin_password" "oci:$layout:list" \
  "docker://$REGISTRY/public/list:1" || give_up 'the first push failed'

for group in "${groups[@]}"; do "test_$group"; done
finish "auth clients${EVERYTHING:+ with everything on, upstream $EVERYTHING}"
