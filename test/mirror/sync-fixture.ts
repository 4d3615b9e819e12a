import { randomBytes } from 'node:crypto'
import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { stringify } from 'yaml'
import { offline, type Run, type RunningCommand, startCommand } from '../commands.js'
import {
  filesBelow,
  openDescriptors,
  type Server,
  type ServerOptions,
  scratchDir,
  startServer,
} from '../harness.js'
import { digest, type FakeUpstream, type FakeUpstreamOptions, startFakeUpstream } from './fake-upstream.js'
import { mirrorOf } from './pair.js'

/** A data folder with one mirror, `docker.io`, its upstream, and what runs commands and servers on them. */
export interface Syncing {
  readonly upstream: FakeUpstream
  readonly data: string
  /** Starts `boathouse` with these words on the folder. */
  start(...words: string[]): RunningCommand
  /** Runs it to its end. */
  run(...words: string[]): Promise<Run>
  serve(options?: ServerOptions): Promise<Server>
}

/** Entries of the setting `sync.images`. */
export type Images = readonly { repository: string; tags: string[]; platforms?: string[] }[]

/** What a folder is set up with. */
export interface SyncingOptions {
  readonly images: Images
  readonly schedule?: string
  readonly mirror?: Record<string, unknown>
  readonly config?: Record<string, unknown>
  readonly upstream?: FakeUpstreamOptions
}

export async function startSyncing(t: Test, options: SyncingOptions): Promise<Syncing> {
  const upstream = await startFakeUpstream(t, options.upstream)
  const { data } = await offline(t)
  const { images, schedule } = options
  const sync = schedule === undefined ? { images } : { images, schedule }
  const config = {
    mirrors: [mirrorOf(upstream, { sync, ...options.mirror })],
    ...options.config,
  }
  const file = join(scratchDir(t), `sync-${upstream.port}.yaml`)
  writeFileSync(file, stringify(config))
  const start = (...words: string[]) => {
    const running = startCommand([...words, '--config', file, '--data', data])
    running.end()
    return running
  }
  return {
    upstream,
    data,
    start,
    run: (...words) => start(...words).done,
    serve: (serving = {}) =>
      startServer(t, { ...serving, data, config: { log: { level: 'info' }, ...config, ...serving.config } }),
  }
}

/** Milliseconds that the start of a command may take on a busy machine. */
export const slow = 30_000

/** One platform's part of an image. */
export interface Part {
  readonly manifest: string
  readonly layer: Buffer
  readonly attestation: string
}

const types = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  index: 'application/vnd.oci.image.index.v1+json',
}

/**
 * Puts an index of these platforms at the upstream, each with a layer of its own, one that all share, and an
 * attestation, as buildkit makes them.
 */
export function addPlatforms(
  upstream: FakeUpstream,
  repository: string,
  tag: string,
  platforms: readonly string[],
): { readonly index: string; readonly shared: Buffer; readonly parts: Readonly<Record<string, Part>> } {
  const shared = randomBytes(50_000)
  const parts: Record<string, Part> = {}
  const entries: Record<string, unknown>[] = []
  for (const platform of platforms) {
    const [os, architecture, variant] = platform.split('/')
    const layer = randomBytes(20_000)
    const manifest = upstream.addImage(repository, undefined, [shared, layer])
    const attestation = upstream.addImage(repository, undefined, [randomBytes(500)])
    parts[platform] = { manifest, layer, attestation }
    const one = { mediaType: types.manifest, size: 700 }
    entries.push({ ...one, digest: manifest, platform: { os, architecture, variant } })
    entries.push({
      ...one,
      digest: attestation,
      platform: { os: 'unknown', architecture: 'unknown' },
      annotations: { 'vnd.docker.reference.digest': manifest },
    })
  }
  const index = { schemaVersion: 2, mediaType: types.index, manifests: entries }
  return { index: upstream.addManifest(repository, tag, index, types.index), shared, parts }
}

/**
 * Lets the first GET of a blob get no further than half of it, until the returned function is called; later ones are
 * answered as they should be.
 */
export function holdBlob(
  upstream: FakeUpstream,
  blob: Buffer,
): { readonly held: () => boolean; release(): void } {
  let held: (() => void) | undefined
  upstream.fault = ({ method, path }) => {
    if (held !== undefined || method !== 'GET' || !path.endsWith(`/blobs/${digest(blob)}`)) return undefined
    return ({ response, reply }) => {
      const half = reply.body.length >> 1
      response.writeHead(200, { 'content-length': String(reply.body.length) })
      response.write(reply.body.subarray(0, half))
      held = () => response.end(reply.body.subarray(half))
    }
  }
  return { held: () => held !== undefined, release: () => held?.() }
}

/** Bytes of the uploads in a data folder. */
export function arrived(data: string): number {
  const files = filesBelow(join(data, 'uploads'))
  return files.reduce((sum, file) => sum + statSync(join(data, 'uploads', file)).size, 0)
}

/** Whether a server reads a blob that is still coming in. */
export function follows(server: Server): boolean {
  return openDescriptors(server.pid).some((target) => target.startsWith(join(server.data, 'uploads/')))
}
