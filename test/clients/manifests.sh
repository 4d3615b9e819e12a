# shellcheck shell=bash disable=SC2154
# Manifests as helm and buildkit write them, made by hand, fetched by hand and by crane: their bytes must come back.

hand_folder=$WORK/by-hand
oci_manifest=application/vnd.oci.image.manifest.v1+json
oci_index=application/vnd.oci.image.index.v1+json

# blob_descriptor REPOSITORY TYPE FILE: pushes the blob, prints its descriptor.
blob_descriptor() {
  local digest
  digest=$(push_blob "$1" "$3")
  printf '{"mediaType":"%s","digest":"%s","size":%d}' "$2" "$digest" "$(stat -c %s "$3")"
}

# expect_round_trip REPOSITORY TAG TYPE FILE: by tag and by digest, by curl and by crane, the bytes that were pushed.
expect_round_trip() {
  local repository=$1 tag=$2 type=$3 file=$4 digest reference
  digest=$(sha256_of "$file")
  push_manifest "$repository" "$tag" "$type" "$file"
  for reference in "$tag" "$digest"; do
    api GET "/v2/$repository/manifests/$reference" "${accept[@]}" -o "$hand_folder/back"
    cmp "$file" "$hand_folder/back"
    expect_equal type "$(manifest_type "$repository" "$reference")" "$type"
    expect_equal digest "$(manifest_digest "$repository" "$reference")" "$digest"
  done
  run_crane manifest "$REGISTRY/$repository:$tag" >"$hand_folder/back"
  expect_equal 'digest of what crane fetched' "$(sha256_of "$hand_folder/back")" "$digest"
}

# No `mediaType` in the body: the Content-Type says what it is.
helm_style() {
  mkdir -p "$hand_folder"
  echo '{"name":"boat","version":"0.1.0","apiVersion":"v2"}' >"$hand_folder/chart.json"
  head -c 2000 /dev/urandom >"$hand_folder/chart.tgz"
  printf '{"schemaVersion":2,"config":%s,"layers":[%s],"annotations":{"org.opencontainers.image.title":"boat"}}' \
    "$(blob_descriptor hand/chart application/vnd.cncf.helm.config.v1+json "$hand_folder/chart.json")" \
    "$(blob_descriptor hand/chart application/vnd.cncf.helm.chart.content.v1.tar+gzip "$hand_folder/chart.tgz")" \
    >"$hand_folder/chart-manifest.json"
  expect_round_trip hand/chart 0.1.0 "$oci_manifest" "$hand_folder/chart-manifest.json"
}

make_cache_parts() {
  echo '{"layers":[{"parent":-1}],"records":[]}' >"$hand_folder/cache.json"
  head -c 3000 /dev/urandom >"$hand_folder/cache-1.tgz"
  head -c 4000 /dev/urandom >"$hand_folder/cache-2.tgz"
}

# An index whose children are blobs, not manifests: layers, and last the cache's own description.
buildkit_index() {
  make_cache_parts
  printf '{"schemaVersion":2,"mediaType":"%s","manifests":[%s,%s,%s]}' "$oci_index" \
    "$(blob_descriptor hand/cache application/vnd.oci.image.layer.v1.tar+gzip "$hand_folder/cache-1.tgz")" \
    "$(blob_descriptor hand/cache application/vnd.oci.image.layer.v1.tar+gzip "$hand_folder/cache-2.tgz")" \
    "$(blob_descriptor hand/cache application/vnd.buildkit.cacheconfig.v0 "$hand_folder/cache.json")" \
    >"$hand_folder/cache-index.json"
  expect_round_trip hand/cache index "$oci_index" "$hand_folder/cache-index.json"
}

# The newer form (image-manifest=true).
buildkit_image() {
  make_cache_parts
  printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s,%s]}' "$oci_manifest" \
    "$(blob_descriptor hand/cache application/vnd.buildkit.cacheconfig.v0 "$hand_folder/cache.json")" \
    "$(blob_descriptor hand/cache application/vnd.oci.image.layer.v1.tar+gzip "$hand_folder/cache-1.tgz")" \
    "$(blob_descriptor hand/cache application/vnd.oci.image.layer.v1.tar+gzip "$hand_folder/cache-2.tgz")" \
    >"$hand_folder/cache-image.json"
  expect_round_trip hand/cache image "$oci_manifest" "$hand_folder/cache-image.json"
}

# As buildkit imports a cache: the index, the description in it, then each layer.
buildkit_import() {
  local digest
  get_manifest hand/cache index >"$hand_folder/imported.json"
  while read -r digest; do
    api GET "/v2/hand/cache/blobs/$digest" -o "$hand_folder/part"
    expect_equal 'digest of a part' "$(sha256_of "$hand_folder/part")" "$digest"
  done < <(jq -r '.manifests[].digest' "$hand_folder/imported.json")
  cmp "$hand_folder/part" "$hand_folder/cache.json"
}

test_manifests() {
  check 'manifests: as helm writes them, without mediaType' helm_style
  check 'manifests: a buildkit cache as an index of blobs' buildkit_index
  check 'manifests: that cache imported, part by part' buildkit_import
  check 'manifests: a buildkit cache as an image' buildkit_image
}
