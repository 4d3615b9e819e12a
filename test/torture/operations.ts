import type { FakeUpstream } from '../mirror/fake-upstream.js'
import { type Blob, digestOf, type Image, type Manifest } from './content.js'
import type { Effect, Key } from './model.js'
import { Random } from './random.js'
import type { Scene } from './scene.js'
import type { Session } from './sessions.js'

/** What clients ask a running server to do. A variant is the same thing in another place with other bytes. */
export interface RequestOperation {
  readonly name: string
  /** Variables of the server. */
  readonly env?: Readonly<Record<string, string>>
  /** What must be there before. */
  prepare?(scene: Scene, variant: number): Promise<void>
  /**
   * Does it.
   * @param isAgain whether it was tried before, and may have happened
   * @throws GivenUp
   */
  act(scene: Scene, variant: number, isAgain: boolean): Promise<void>
  /** Whether blobs that nobody was told of may come, as with mirrors. */
  readonly isMirror?: boolean
}

const imageType = 'application/vnd.oci.image.manifest.v1+json'

/** More than the first batch that the server writes. */
const layerSize = 70_000

function repositoryOf(variant: number): string {
  return `sweep/v${variant}`
}

function blobOf(scene: Scene, variant: number, name: string, size: number): Blob {
  const bytes = new Random(scene.options.seed, 'sweep', variant, name).bytes(size)
  return { bytes, digest: digestOf(bytes) }
}

function imageOf(scene: Scene, variant: number, name = 'image'): Image {
  const layer = blobOf(scene, variant, `${name} layer`, layerSize)
  const config = blobOf(scene, variant, `${name} config`, 300)
  const describe = (mediaType: string, { digest, bytes }: Blob) => ({ mediaType, digest, size: bytes.length })
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: imageType,
      config: describe('application/vnd.oci.image.config.v1+json', config),
      layers: [describe('application/vnd.oci.image.layer.v1.tar', layer)],
    }),
  )
  const digest = digestOf(bytes)
  const blobs = [layer.digest, config.digest]
  const manifest: Manifest = { bytes, digest, mediaType: imageType, blobs, manifests: [], subject: undefined }
  return { blobs: [layer, config], manifest }
}

function present(kind: Key['kind'], repository: string, name: string): Effect {
  return { kind, repository, name, value: 'present' }
}

/** A blob in one request. */
async function pushAtOnce(scene: Scene, repository: string, { bytes, digest }: Blob): Promise<void> {
  const path = `/v2/${repository}/blobs/uploads/?digest=${digest}`
  await scene.change({ method: 'POST', path, body: bytes }, [201], [present('blob', repository, digest)])
}

async function openSession(scene: Scene, repository: string, { bytes, digest }: Blob): Promise<Session> {
  const path = `/v2/${repository}/blobs/uploads/`
  const { headers } = await scene.change({ method: 'POST', path }, [202], [])
  const id = headers.location?.split('/').at(-1)?.split('?', 1)[0] ?? ''
  const session = scene.model.sessions.open({ id, repository, digest, bytes })
  scene.note(session)
  return session
}

/** Sends a chunk. @returns the status: 404 where a failed sync of the upload's bytes has ended it (R52) */
async function sendChunk(scene: Scene, session: Session, end: number): Promise<number> {
  const { repository, id, bytes, low } = session
  session.high = end
  // An upload whose sync failed is given up: it may be gone with an error.
  if (scene.trouble === 'fault') session.ending = 'unknown'
  const { status } = await scene.change(
    {
      method: 'PATCH',
      path: `/v2/${repository}/blobs/uploads/${id}`,
      headers: { 'Content-Range': `${low}-${end - 1}` },
      body: bytes.subarray(low, end),
    },
    scene.unsynced.has(id) ? [202, 404] : [202],
    [],
  )
  if (status === 202) session.low = end
  session.ending = status === 202 ? 'no' : 'done'
  scene.note(session)
  return status
}

/**
 * Ends an upload. @returns the status: 404 where that is a success, too, of a session whose file had become the blob
 * already when the server died
 */
async function finish(scene: Scene, session: Session, successes: readonly number[] = [201]): Promise<number> {
  const { repository, id, bytes, digest, low } = session
  session.high = bytes.length
  const couldBeGone = scene.model.sessions.mayBeGone(session)
  session.ending = 'unknown'
  const request = {
    method: 'PUT',
    path: `/v2/${repository}/blobs/uploads/${id}?digest=${digest}`,
    body: bytes.subarray(low),
  }
  const blob = { kind: 'blob', repository, name: digest } as const
  scene.learnPossible(blob, 'present')
  const reply = await scene.change(request, couldBeGone ? successes : [201], [])
  if (reply.status === 201) scene.learn(blob, 'present')
  session.ending = 'done'
  scene.note(session)
  return reply.status
}

async function putManifest(
  scene: Scene,
  repository: string,
  { bytes, digest, mediaType }: Manifest,
  tags: readonly string[],
): Promise<void> {
  const query = tags.length > 1 ? `?${tags.map((tag) => `tag=${tag}`).join('&')}` : ''
  const reference = tags.length === 1 ? tags[0] : digest
  await scene.change(
    {
      method: 'PUT',
      path: `/v2/${repository}/manifests/${reference}${query}`,
      headers: { 'Content-Type': mediaType },
      body: bytes,
    },
    [201],
    [
      present('manifest', repository, digest),
      ...tags.map((name): Effect => ({ kind: 'tag', repository, name, value: digest })),
    ],
  )
}

/** An image in as few requests as possible. */
export async function pushImage(
  scene: Scene,
  variant: number,
  { name = 'image', tags = ['latest'] }: { readonly name?: string; readonly tags?: readonly string[] } = {},
): Promise<Image> {
  const image = imageOf(scene, variant, name)
  const repository = repositoryOf(variant)
  for (const blob of image.blobs) await pushAtOnce(scene, repository, blob)
  await putManifest(scene, repository, image.manifest, tags)
  return image
}

const push: RequestOperation = {
  name: 'push',
  async act(scene, variant) {
    const { blobs, manifest } = imageOf(scene, variant)
    const repository = repositoryOf(variant)
    const [layer, config] = blobs
    if (layer !== undefined) await finish(scene, await openSession(scene, repository, layer))
    if (config !== undefined) await pushAtOnce(scene, repository, config)
    await putManifest(scene, repository, manifest, ['latest'])
  },
}

/** Sessions that a variant has left. */
const left = new WeakMap<Scene, Map<number, Session>>()

function leftBy(scene: Scene): Map<number, Session> {
  const known = left.get(scene) ?? new Map<number, Session>()
  left.set(scene, known)
  return known
}

const chunked: RequestOperation = {
  name: 'chunked-push',
  async act(scene, variant, isAgain) {
    const blob = blobOf(scene, variant, 'chunks', 2 * layerSize + 1000)
    const resumed = isAgain ? await resume(scene, leftBy(scene).get(variant)) : undefined
    if (resumed !== undefined && (await sendRest(scene, resumed, [201, 404])) === 201) return
    const session = await openSession(scene, repositoryOf(variant), blob)
    leftBy(scene).set(variant, session)
    await sendRest(scene, session, [201])
  },
}

/** Sends what is missing of a session, and ends it. @returns the last status */
async function sendRest(scene: Scene, session: Session, successes: readonly number[]): Promise<number> {
  for (const end of [layerSize, 2 * layerSize]) {
    if (session.low >= end) continue
    const status = await sendChunk(scene, session, end)
    if (status === 404) return status
  }
  return finish(scene, session, successes)
}

/** Takes a session up where the server says that it is; undefined when it is legally gone. */
async function resume(scene: Scene, session: Session | undefined): Promise<Session | undefined> {
  if (session === undefined) return undefined
  const request = { method: 'GET', path: `/v2/${session.repository}/blobs/uploads/${session.id}` }
  const reply = await scene.ask(request)
  if (reply.status === 404 && scene.model.sessions.mayBeGone(session)) return undefined
  const range = /^0-(\d+)$/.exec(reply.headers.range ?? '')?.[1]
  if (reply.status !== 204) scene.refuse(request, reply)
  // An empty session is told as 0-0, as one with a byte is.
  const offset = range === '0' && session.low === 0 ? 0 : Number(range) + 1
  if (!(offset >= session.low && offset <= session.high)) {
    scene.report(`I1 upload ${session.id} is at ${offset}: ${session.low} to ${session.high} were sent`)
  }
  session.low = session.high = offset
  return session
}

const mount: RequestOperation = {
  name: 'mount',
  async prepare(scene, variant) {
    await pushAtOnce(scene, `source/v${variant}`, blobOf(scene, variant, 'mounted', 3000))
  },
  async act(scene, variant) {
    const { digest } = blobOf(scene, variant, 'mounted', 3000)
    const repository = repositoryOf(variant)
    const path = `/v2/${repository}/blobs/uploads/?mount=${digest}&from=source/v${variant}`
    await scene.change({ method: 'POST', path }, [201], [present('blob', repository, digest)])
  },
}

const tag: RequestOperation = {
  name: 'tag',
  async prepare(scene, variant) {
    await pushImage(scene, variant, { name: 'old', tags: ['moving'] })
    await pushImage(scene, variant, { tags: [] })
  },
  async act(scene, variant) {
    await putManifest(scene, repositoryOf(variant), imageOf(scene, variant).manifest, ['moving'])
  },
}

const multiTag: RequestOperation = {
  name: 'multi-tag',
  async prepare(scene, variant) {
    for (const blob of imageOf(scene, variant).blobs) await pushAtOnce(scene, repositoryOf(variant), blob)
  },
  async act(scene, variant) {
    await putManifest(scene, repositoryOf(variant), imageOf(scene, variant).manifest, ['a', 'b', 'c'])
  },
}

const remove: RequestOperation = {
  name: 'delete',
  async prepare(scene, variant) {
    await pushImage(scene, variant, { tags: ['one', 'two'] })
  },
  async act(scene, variant, isAgain) {
    const repository = repositoryOf(variant)
    const { manifest, blobs } = imageOf(scene, variant)
    const success = isAgain ? [202, 404] : [202]
    const gone = (kind: Key['kind'], name: string): Effect => ({ kind, repository, name, value: undefined })
    const path = `/v2/${repository}/manifests`
    await scene.change({ method: 'DELETE', path: `${path}/one` }, success, [gone('tag', 'one')])
    await scene.change({ method: 'DELETE', path: `${path}/${manifest.digest}` }, success, [
      gone('manifest', manifest.digest),
      { kind: 'tags-of', repository, digest: manifest.digest },
    ])
    for (const { digest } of blobs) {
      const blob = `/v2/${repository}/blobs/${digest}`
      await scene.change({ method: 'DELETE', path: blob }, success, [gone('blob', digest)])
    }
  },
}

const cancel: RequestOperation = {
  name: 'cancel',
  async prepare(scene, variant) {
    const blob = blobOf(scene, variant, 'cancelled', 5000)
    const session = await openSession(scene, repositoryOf(variant), blob)
    leftBy(scene).set(variant, session)
    await sendChunk(scene, session, 4000)
  },
  async act(scene, variant, isAgain) {
    const session = leftBy(scene).get(variant)
    if (session === undefined) return
    const path = `/v2/${session.repository}/blobs/uploads/${session.id}`
    session.ending = 'unknown'
    await scene.change({ method: 'DELETE', path }, isAgain ? [204, 404] : [204], [])
    session.ending = 'done'
    scene.note(session)
  },
}

const refused: RequestOperation = {
  name: 'refused-push',
  async act(scene, variant) {
    const { digest } = blobOf(scene, variant, 'claimed', 3000)
    const { bytes } = blobOf(scene, variant, 'sent', 3000)
    const path = `/v2/${repositoryOf(variant)}/blobs/uploads/?digest=${digest}`
    await scene.change({ method: 'POST', path, body: bytes }, [400], [])
  },
}

async function pullThrough(scene: Scene, path: string): Promise<Buffer> {
  const request = { method: 'GET', path }
  const reply = await scene.ask(request)
  if (reply.status !== 200) scene.refuse(request, reply)
  return reply.body
}

/**
 * Pulls through a mirror: what it keeps was acknowledged to nobody, but may not be wrong.
 * @param upstream runs
 */
export function mirrorFill(upstream: FakeUpstream): RequestOperation {
  const mirror = { name: 'docker.io', url: upstream.url.origin, idleTimeout: '5s' }
  const layers = (scene: Scene, variant: number) =>
    ['large', 'small'].map((name) => blobOf(scene, variant, name, name === 'large' ? layerSize : 900))
  return {
    name: 'mirror-fill',
    isMirror: true,
    env: { BOATHOUSE_MIRRORS: JSON.stringify([mirror]) },
    async act(scene, variant) {
      const bytes = layers(scene, variant).map((layer) => layer.bytes)
      const digest = upstream.addImage(`v${variant}/app`, 'latest', bytes)
      const repository = `docker.io/v${variant}/app`
      scene.learnPossible({ kind: 'tag', repository, name: 'latest' }, digest)
      scene.learnPossible({ kind: 'manifest', repository, name: digest }, 'present')
      const manifest = await pullThrough(scene, `/v2/${repository}/manifests/latest`)
      if (digestOf(manifest) !== digest) scene.report('I3 a manifest came wrong through the mirror')
      for (const { digest: layer, bytes } of layers(scene, variant)) {
        scene.learnPossible({ kind: 'blob', repository, name: layer }, 'present')
        const got = await pullThrough(scene, `/v2/${repository}/blobs/${layer}`)
        if (!got.equals(bytes)) scene.report(`I3 ${layer} came wrong through the mirror`)
      }
    },
  }
}

/** What clients ask for. */
export const requestOperations: readonly RequestOperation[] = [
  push,
  chunked,
  mount,
  tag,
  multiTag,
  remove,
  cancel,
  refused,
]
