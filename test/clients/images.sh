# shellcheck shell=bash disable=SC2034
# Images made by hand: a root file system around busybox, and an OCI layout with a list of two platforms.

rootfs=$WORK/rootfs
layout=$WORK/layout

make_rootfs() {
  mkdir -p "$rootfs"/{bin,etc,tmp,proc,sys,dev}
  cp "$(command -v busybox)" "$rootfs/bin/busybox"
  local name
  for name in sh cat echo ls sha256sum; do ln -sf busybox "$rootfs/bin/$name"; done
  echo 'root:x:0:0:root:/:/bin/sh' >"$rootfs/etc/passwd"
}

# layout_blob FILE: copies it into the layout; prints its descriptor's digest and size as JSON members.
layout_blob() {
  local digest
  digest=$(sha256_of "$1")
  cp "$1" "$layout/blobs/sha256/${digest#sha256:}"
  printf '"digest":"%s","size":%d' "$digest" "$(stat -c %s "$1")"
}

# layout_image ARCHITECTURE LAYER_TAR…: prints the manifest's descriptor.
layout_image() {
  local architecture=$1 tar layers='' diff_ids=''
  shift
  for tar in "$@"; do
    gzip -n -1 <"$tar" >"$tar.gz"
    layers+="${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",$(layout_blob "$tar.gz")}"
    diff_ids+="${diff_ids:+,}\"$(sha256_of "$tar")\""
  done
  printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/cat","/etc/platform"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$architecture" "$diff_ids" >"$WORK/tmp/config.json"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[%s]}' \
    "$(layout_blob "$WORK/tmp/config.json")" "$layers" >"$WORK/tmp/manifest.json"
  printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"platform":{"architecture":"%s","os":"linux"}}' \
    "$(layout_blob "$WORK/tmp/manifest.json")" "$architecture"
}

make_layout() {
  local architecture manifests='' tree
  mkdir -p "$layout/blobs/sha256"
  tar -C "$rootfs" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$WORK/base.tar" .
  for architecture in amd64 arm64; do
    tree=$WORK/platform-$architecture
    mkdir -p "$tree/etc"
    echo "built for $architecture" >"$tree/etc/platform"
    tar -C "$tree" --sort=name --owner=0 --group=0 --mtime=@0 -cf "$tree.tar" .
    manifests+="${manifests:+,}$(layout_image "$architecture" "$WORK/base.tar" "$tree.tar")"
  done
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' "$manifests" \
    >"$WORK/tmp/list.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"list"}}]}' \
    "$(layout_blob "$WORK/tmp/list.json")" >"$layout/index.json"
  list_digest=$(sha256_of "$WORK/tmp/list.json")
  amd64_digest=$(jq -r '.manifests[0].digest' "$WORK/tmp/list.json")
}

make_images() {
  make_rootfs
  make_layout
}
