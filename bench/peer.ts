import { execFileSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeImages } from './image.js'
import { type Target, tagName } from './jobs.js'
import { digestOf } from './payload.js'
import {
  LARGE_REPOSITORY,
  LARGE_TAGS,
  makeRepository,
  REPOSITORIES,
  repositoryName,
  type SeedBlob,
  seedBlob,
} from './scale.js'
import { freePort, type Registry, type Server, startServer } from './server.js'

const PROGRAM = 'docker-registry'

/** The version of the installed peer; throws, saying what to install, when there is none. */
export function peerVersion(): string {
  try {
    const line = execFileSync(PROGRAM, ['--version'], { encoding: 'utf8' })
    return line.trim().split(' ').at(-1) ?? ''
  } catch {
    throw new Error('docker-registry is missing. On Debian: apt-get install docker-registry wrk')
  }
}

// "error" is the quietest level it has.
function configuration(folder: string, port: number, upstream?: Target): string {
  return `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: ${JSON.stringify(folder)}
  cache:
    blobdescriptor: inmemory
  delete:
    enabled: true
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: 127.0.0.1:${port}
  secret: benchmark
  http2:
    disabled: true
${upstream ? `proxy:\n  remoteurl: http://${upstream.host}:${upstream.port}\n` : ''}`
}

async function start(folder: string, upstream?: Target): Promise<Server> {
  mkdirSync(folder, { recursive: true })
  const port = await freePort()
  const file = join(folder, 'config.yml')
  writeFileSync(file, configuration(join(folder, 'data'), port, upstream))
  return startServer({ program: PROGRAM, args: ['serve', file] }, { host: '127.0.0.1', port }, folder)
}

/** Debian's docker-registry on a file system, as quiet and as fast as its settings allow. */
export const peer: Registry = {
  name: 'docker-registry',

  start: (folder) => start(folder),

  startMirror: async (folder, upstream) => ({ ...(await start(folder, upstream)), prefix: '' }),

  // Pushing 100,000 tags one by one takes it minutes, so the folders and links it would make are made directly.
  async seedTags(server: Server, repository: string, count: number) {
    const [image] = makeImages([1024], 1)
    if (!image) throw new Error('no image was made')
    const tags = join(server.folder, 'data/docker/registry/v2/repositories', repository, '_manifests/tags')
    const link = digestOf(image.manifest)
    mkdirSync(tags, { recursive: true })
    for (let n = 0; n < count; n += 1) linkTag(tags, tagName(n), link)
  },

  // One tag and one blob in each of the 10,000 repositories, and the 100,000 tags of the large one.
  async seedLarge(folder: string) {
    const root = join(folder, 'data/docker/registry/v2')
    for (let n = 0; n < REPOSITORIES; n += 1) writeRepository(root, repositoryName(n), 1)
    writeRepository(root, LARGE_REPOSITORY, LARGE_TAGS)
  },

  async collectOffline(folder: string, blobs: number) {
    const root = join(folder, 'data/docker/registry/v2')
    writeRepository(root, 'bench/kept', 1)
    for (let n = 0; n < blobs; n += 1) writeBlob(root, seedBlob('bench/garbage', n))
    const file = join(folder, 'config.yml')
    writeFileSync(file, configuration(join(folder, 'data'), await freePort()))
    const begin = performance.now()
    execFileSync(PROGRAM, ['garbage-collect', file], { stdio: ['ignore', 'ignore', 'pipe'], maxBuffer: 1e9 })
    return (performance.now() - begin) / 1000
  },
}

function linkTag(tags: string, tag: string, digest: string): void {
  mkdirSync(`${tags}/${tag}/current`, { recursive: true })
  writeFileSync(`${tags}/${tag}/current/link`, digest)
}

function writeBlob(root: string, { digest, bytes }: SeedBlob): void {
  const hex = digest.slice('sha256:'.length)
  const folder = `${root}/blobs/sha256/${hex.slice(0, 2)}/${hex}`
  mkdirSync(folder, { recursive: true })
  writeFileSync(`${folder}/data`, bytes)
}

function writeRepository(root: string, name: string, tagCount: number): void {
  const { blobs, manifests } = makeRepository(name, 1, tagCount)
  const folder = join(root, 'repositories', name)
  const link = (kind: string, digest: string) => {
    const place = join(folder, kind, digest.replace(':', '/'))
    mkdirSync(place, { recursive: true })
    writeFileSync(join(place, 'link'), digest)
  }
  for (const blob of blobs.slice(0, 2)) {
    writeBlob(root, blob)
    link('_layers', blob.digest)
  }
  for (const { digest, bytes, tags } of manifests) {
    writeBlob(root, { digest, bytes })
    link('_manifests/revisions', digest)
    for (const tag of tags) linkTag(join(folder, '_manifests/tags'), tag, digest)
  }
}
