import { readContent } from './check-served.js'
import { type Blob, type Image, type Manifest, makeBlob, makeImage, makeIndex } from './content.js'
import { differs, type Effect, isAbsent, type Key } from './model.js'
import type { Random } from './random.js'
import type { Session } from './sessions.js'
import type { Talk, TimedReply } from './talk.js'
import { uploadBlob } from './uploads.js'

/** What clients do, and how often. */
const actions = {
  pushImage: 40,
  retag: 8,
  pushIndex: 5,
  deleteTag: 9,
  deleteManifest: 6,
  prune: 10,
  deleteBlob: 5,
  readBack: 12,
  pushWrongDigest: 2,
  pushIncomplete: 2,
}

const tagNames = ['latest', '1', '1.0', '1.0.1', 'edge', 'nightly'] as const

/** Manifests of a repository beyond which pruning takes one away. */
const manyManifests = 6

/** Where a client acts, and with what. */
export interface Place {
  readonly repository: string
  /** Images that everybody pushes here; none where new ones are made. */
  readonly images: readonly Image[]
  /** Layers that many images have. */
  readonly layers: readonly Blob[]
  /** A repository that may hold layers of these images already. */
  readonly mountFrom: string
  /** A repository that only somebody else pushes to. */
  readonly foreign: string | undefined
  /** Takes an upload session that is left open, on purpose or by an error. */
  readonly keep: (session: Session, error?: unknown) => void
}

/** Does one thing. @throws GivenUp */
export async function act(talk: Talk, random: Random, place: Place): Promise<void> {
  await new Turn(talk, random, place).run()
}

class Turn {
  readonly #talk: Talk
  readonly #random: Random
  readonly #place: Place

  constructor(talk: Talk, random: Random, place: Place) {
    this.#talk = talk
    this.#random = random
    this.#place = place
  }

  async run(): Promise<void> {
    await this[this.#random.weighted(actions)]()
  }

  // Pushing

  async pushImage(): Promise<void> {
    const { images, layers } = this.#place
    const image = this.#random.pick(images) ?? makeImage(this.#random, layers, this.#subject())
    for (const blob of image.blobs) {
      if (!(await this.#pushBlob(blob))) return
    }
    await this.#putManifest(image.manifest, this.#tags())
  }

  #subject(): string | undefined {
    return this.#random.chance(0.15) ? this.#random.pick(this.#present('manifest'))?.name : undefined
  }

  /** As docker does: what is there already is not sent. @returns whether the blob is there */
  async #pushBlob(blob: Blob): Promise<boolean> {
    const { repository, mountFrom, keep } = this.#place
    if (this.#random.chance(0.5) && (await this.#isThere(this.#key('blob', blob.digest)))) return true
    const destination = { repository, mountFrom: this.#random.chance(0.25) ? mountFrom : undefined }
    return uploadBlob(this.#talk, this.#random, blob, destination, keep)
  }

  /** One tag in the path, or the digest in the path and any number of tags behind it. */
  async #putManifest(manifest: Manifest, tags: readonly string[]): Promise<void> {
    const { repository } = this.#place
    const isByTag = tags.length === 1 && manifest.digest.startsWith('sha256:') && this.#random.chance(0.7)
    const query = tags.map((tag) => `tag=${tag}`).join('&')
    const request = {
      method: 'PUT',
      path: `/v2/${repository}/manifests/${isByTag ? tags[0] : `${manifest.digest}?${query}`}`,
      headers: { 'Content-Type': manifest.mediaType },
      body: manifest.bytes,
    }
    this.#talk.model.manifests.set(manifest.digest, manifest)
    const reply = await this.#talk.change(request, 201, [
      { ...this.#key('manifest', manifest.digest), value: 'present' },
      ...tags.map((tag): Effect => ({ ...this.#key('tag', tag), value: manifest.digest })),
    ])
    if (reply.status === 400) this.#acceptMissing(request, reply, manifest)
    else if (reply.status !== 201) this.#talk.refuse(request, reply, '201')
    else if (reply.headers['docker-content-digest'] !== manifest.digest) {
      this.#talk.refuse(request, reply, `the digest ${manifest.digest}`)
    }
    await this.#lookAgain([
      this.#key('manifest', manifest.digest),
      ...tags.map((tag) => this.#key('tag', tag)),
    ])
  }

  /** Now and then: what was acknowledged shows at once, whichever worker is asked. */
  async #lookAgain(keys: readonly Key[]): Promise<void> {
    const key = this.#random.pick(keys)
    if (key !== undefined && this.#random.chance(0.3)) await this.#read(key, this.#random.chance(0.5))
  }

  /** Refused for a missing part: that must have been missing at some moment of the request. */
  #acceptMissing(request: { method: string; path: string }, reply: TimedReply, manifest: Manifest): void {
    const { errors } = JSON.parse(reply.body.toString()) as { errors: { code: string; detail: string }[] }
    if (errors.some(({ code }) => code !== 'MANIFEST_BLOB_UNKNOWN')) this.#talk.refuse(request, reply, '201')
    for (const { detail } of errors) {
      const kind = manifest.manifests.includes(detail) ? 'manifest' : 'blob'
      const legal = this.#talk.model.legal(this.#key(kind, detail), reply.span)
      if (!legal.has(undefined))
        this.#talk.report(`I1 ${kind} ${detail} is called missing, but it must be there`)
    }
  }

  async retag(): Promise<void> {
    const manifest = this.#someManifest()
    if (manifest !== undefined) await this.#putManifest(manifest, this.#tags())
  }

  async pushIndex(): Promise<void> {
    const children = [this.#someManifest(), this.#someManifest()].filter((child) => child !== undefined)
    if (children.length > 0) await this.#putManifest(makeIndex(this.#random, children), this.#tags())
  }

  // Pushing what must be refused

  async pushWrongDigest(): Promise<void> {
    const { repository } = this.#place
    const claimed = makeBlob(this.#random)
    const body = this.#random.bytes(claimed.bytes.length)
    const request = {
      method: 'POST',
      path: `/v2/${repository}/blobs/uploads/?digest=${claimed.digest}`,
      body,
    }
    const reply = await this.#talk.change(request, 201, [])
    if (reply.status !== 400) this.#talk.refuse(request, reply, '400')
  }

  async pushIncomplete(): Promise<void> {
    const { manifest } = makeImage(this.#random, [])
    const request = {
      method: 'PUT',
      path: `/v2/${this.#place.repository}/manifests/${manifest.digest}?tag=incomplete`,
      headers: { 'Content-Type': manifest.mediaType },
      body: manifest.bytes,
    }
    const reply = await this.#talk.change(request, 201, [])
    if (reply.status !== 400) this.#talk.refuse(request, reply, '400')
  }

  // Deleting

  async deleteTag(): Promise<void> {
    const key = this.#key('tag', this.#random.pick(tagNames) ?? 'latest')
    await this.#delete(key, [{ ...key, value: undefined }])
  }

  async deleteManifest(): Promise<void> {
    const manifest = this.#someManifest()
    if (manifest !== undefined) await this.#deleteManifest(manifest)
  }

  async #deleteManifest({ digest }: Manifest): Promise<void> {
    const key = this.#key('manifest', digest)
    const { repository } = this.#place
    await this.#delete(key, [
      { ...key, value: undefined },
      { kind: 'tags-of', repository, digest },
    ])
  }

  /** Keeps a repository small: takes an old manifest away, and its blobs. */
  async prune(): Promise<void> {
    const present = this.#present('manifest')
    const [oldest] = present
    if (present.length <= manyManifests || oldest === undefined) return
    const manifest = this.#talk.model.manifests.get(oldest.name)
    if (manifest === undefined) return
    await this.#deleteManifest(manifest)
    for (const digest of manifest.blobs) await this.#deleteBlob(digest)
  }

  async deleteBlob(): Promise<void> {
    const blob = this.#random.pick(this.#present('blob'))
    if (blob !== undefined) await this.#deleteBlob(blob.name)
  }

  async #deleteBlob(digest: string): Promise<void> {
    const key = this.#key('blob', digest)
    const reply = await this.#delete(key, [{ ...key, value: undefined }])
    const users = this.#present('manifest', reply).filter(({ name }) =>
      this.#talk.model.manifests.get(name)?.blobs.includes(digest),
    )
    if (reply.status === 405 && users.length === 0) {
      this.#talk.report(`blob ${digest} may not be deleted from ${key.repository}, though nothing needs it`)
    }
    const isNeeded = users.some((user) => !this.#talk.model.legal(user, reply.span).has(undefined))
    if (reply.status === 202 && isNeeded) {
      this.#talk.report(`I2 blob ${digest} was deleted from ${key.repository}, though a manifest needs it`)
    }
  }

  async #delete(key: Key, effects: readonly Effect[]): Promise<TimedReply> {
    const request = { method: 'DELETE', path: pathOf(key) }
    const reply = await this.#talk.change(request, 202, effects)
    const legal = this.#talk.model.legal(key, reply.span, reply.span)
    if (reply.status === 404) {
      if (!legal.has(undefined)) this.#talk.report(differs(key, undefined, legal))
    } else if (reply.status !== 202 && !(reply.status === 405 && key.kind === 'blob')) {
      this.#talk.refuse(request, reply, '202 or 404')
    } else if (isAbsent(legal)) {
      this.#talk.report(`I5 DELETE of ${pathOf(key)} is answered with ${reply.status}, but nothing was there`)
    }
    await this.#lookAgain([key])
    return reply
  }

  // Reading

  async readBack(): Promise<void> {
    const { foreign } = this.#place
    const kind = this.#random.pick(['tag', 'manifest', 'blob'] as const) ?? 'tag'
    const key = this.#random.pick(this.#present(kind))
    if (key !== undefined) await this.#read(key)
    // What others have is not to be had here.
    const other =
      foreign === undefined ? undefined : this.#random.pick(this.#present('blob', undefined, foreign))
    if (other !== undefined) await this.#read(this.#key('blob', other.name))
  }

  async #read(key: Key, fresh = false): Promise<void> {
    const reply = await this.#talk.ask({ method: 'GET', path: pathOf(key), fresh })
    const seen = readContent(key, { reply })
    const legal = this.#talk.model.legal(key, reply.span)
    if ('problem' in seen) this.#talk.report(`I1 ${pathOf(key)}: ${seen.problem}`)
    else if (!legal.has(seen.value)) this.#talk.report(differs(key, seen.value, legal))
  }

  async #isThere(key: Key): Promise<boolean> {
    const request = { method: 'HEAD', path: pathOf(key) }
    const reply = await this.#talk.ask(request)
    if (reply.status !== 200 && reply.status !== 404) this.#talk.refuse(request, reply, '200 or 404')
    const seen = reply.status === 200 ? 'present' : undefined
    const legal = this.#talk.model.legal(key, reply.span)
    if (!legal.has(seen)) this.#talk.report(differs(key, seen, legal))
    return reply.status === 200
  }

  // Choosing

  #key(kind: Key['kind'], name: string): Key {
    return { kind, repository: this.#place.repository, name }
  }

  /** What may be there now, or at some moment of a request. */
  #present(kind: Key['kind'], during?: TimedReply, repository = this.#place.repository): Key[] {
    return [...this.#talk.model.present(kind, repository, during?.span)]
  }

  #someManifest(): Manifest | undefined {
    const key = this.#random.pick(this.#present('manifest'))
    return key === undefined ? undefined : this.#talk.model.manifests.get(key.name)
  }

  /** No tag, one, or several. */
  #tags(): string[] {
    const count = this.#random.weighted({ 0: 5, 1: 75, 2: 10, 5: 10 })
    const names = Array.from({ length: Number(count) }, () => this.#random.pick(tagNames) ?? 'latest')
    return [...new Set(names)]
  }
}

function pathOf({ kind, repository, name }: Key): string {
  return `/v2/${repository}/${kind === 'blob' ? 'blobs' : 'manifests'}/${name}`
}
