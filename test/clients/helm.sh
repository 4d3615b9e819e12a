# shellcheck shell=bash
# helm charts in the registry.

helm_folder=$WORK/helm

run_helm() { (cd "$helm_folder" && timeout 120 "$(go_tool_path helm)" "$@"); }

helm_package() {
  mkdir -p "$helm_folder/pulled"
  run_helm create boat
  run_helm package boat --version 1.2.3+build.5
  run_helm package boat --version 1.3.0
}

helm_push() {
  run_helm push "${plain_http[@]}" boat-1.2.3+build.5.tgz "oci://$REGISTRY/charts"
  run_helm push "${plain_http[@]}" boat-1.3.0.tgz "oci://$REGISTRY/charts"
  # A tag cannot have a plus sign: helm writes an underscore.
  expect_equal tags "$(tags_of charts/boat | tr '\n' ' ')" '1.2.3_build.5 1.3.0 '
  expect_equal 'config type' "$(get_manifest charts/boat 1.3.0 | jq -r .config.mediaType)" application/vnd.cncf.helm.config.v1+json
}

helm_pull() {
  run_helm pull "${plain_http[@]}" --destination pulled --version 1.2.3+build.5 "oci://$REGISTRY/charts/boat"
  cmp "$helm_folder/boat-1.2.3+build.5.tgz" "$helm_folder/pulled/boat-1.2.3+build.5.tgz"
}

# A range of versions: helm lists the tags and picks.
helm_show() {
  expect_match chart "$(run_helm show chart "${plain_http[@]}" --version '~1.3' "oci://$REGISTRY/charts/boat")" '^version: 1.3.0$'
}

helm_template() {
  expect_match manifests "$(run_helm template "${plain_http[@]}" --version 1.3.0 one "oci://$REGISTRY/charts/boat")" '^kind: Deployment$'
}

test_helm() {
  check 'helm: package two versions' helm_package
  check 'helm: push' helm_push
  check 'helm: pull, byte for byte' helm_pull
  check 'helm: show chart of the newest in a range' helm_show
  check 'helm: template from the registry' helm_template
}
