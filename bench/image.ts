import { digestOf, makePayloads, type Payload } from './payload.js'

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'
const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json'
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar+gzip'

/** One image: everything that is sent, with every digest known beforehand. */
export interface Image {
  readonly config: { readonly digest: string; readonly bytes: Buffer }
  readonly layers: readonly Payload[]
  readonly manifest: Buffer
}

/** Makes `count` images with layers of these sizes in bytes; no two share a blob. */
export function makeImages(layerSizes: readonly number[], count: number): Image[] {
  const columns = layerSizes.map((size) => makePayloads(size, count))
  return Array.from({ length: count }, (_, n) =>
    makeImage(columns.flatMap((column) => column.slice(n, n + 1))),
  )
}

function makeImage(layers: readonly Payload[]): Image {
  const bytes = Buffer.from(JSON.stringify(makeConfig(layers)))
  const config = { digest: digestOf(bytes), bytes }
  return { config, layers, manifest: Buffer.from(JSON.stringify(makeManifest(config, layers))) }
}

function makeConfig(layers: readonly Payload[]): object {
  const env = ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'LANG=C.UTF-8']
  return {
    architecture: 'amd64',
    os: 'linux',
    created: '2024-01-01T00:00:00Z',
    config: { Env: env, Entrypoint: ['/app/server'], WorkingDir: '/app', ExposedPorts: { '8080/tcp': {} } },
    rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.digest) },
    history: layers.map((layer) => ({
      created: '2024-01-01T00:00:00Z',
      created_by: `COPY ${layer.digest} /app # buildkit`,
      comment: 'buildkit.dockerfile.v0',
    })),
  }
}

function makeManifest(config: Image['config'], layers: readonly Payload[]): object {
  return {
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: { mediaType: CONFIG_TYPE, digest: config.digest, size: config.bytes.length },
    layers: layers.map(({ digest, size }) => ({ mediaType: LAYER_TYPE, digest, size })),
  }
}
