import { setTimeout as delay } from 'node:timers/promises'
import { type Blob, digestOf, type Image, type Manifest, makeBlob, makeImage, makeIndex } from './content.js'
import type { Random } from './random.js'
import type { Reply, Request, Wire } from './wire.js'

/** Repositories in which all clients meet. */
/** Milliseconds after which an upload that nobody touches is over. */
export const uploadLife = 5000

const sharedRepositories = ['shared/one', 'shared/two', 'shared/three']

/** Tags that one client keeps at a time. */
const mostTags = 8

const actions = {
  push: 40,
  pushCommon: 15,
  pushIndex: 10,
  pushReferrer: 8,
  retag: 8,
  untag: 14,
  own: 6,
  leave: 10,
  race: 10,
  linger: 5,
  comeLate: 10,
  pull: 30,
}

/** What was acknowledged and must be there: a tag of this client alone, with all that it leads to. */
interface Held {
  readonly repository: string
  readonly tag: string
  readonly manifest: Manifest
  /** Images below an index, or the image itself. */
  readonly images: readonly Image[]
  /** Manifests that refer to it. */
  readonly referrers: Image[]
}

/** What the clients share. */
export interface Common {
  readonly layers: readonly Blob[]
  readonly images: readonly Image[]
  /** Milliseconds for which the server promises to keep what it has said to be there. */
  readonly grace: number
  readonly report: (violation: string) => void
  readonly counts: Record<'manifests' | 'pulls' | 'mounts' | 'late', number>
}

/** Content that all clients use, so that it is pushed, needed, given up and collected again and again. */
export function makeCommon(random: Random): Pick<Common, 'layers' | 'images'> {
  const layers = Array.from({ length: 24 }, () => makeBlob(random))
  return { layers, images: Array.from({ length: 12 }, () => newImage(random, layers)) }
}

/** What is pushed by a tag is stored under its sha256 digest: here it is to be found under the one that it has. */
function newIndex(random: Random, children: readonly Manifest[]): Manifest {
  for (;;) {
    const index = makeIndex(random, children)
    if (index.digest.startsWith('sha256:')) return index
  }
}

function newImage(random: Random, layers: readonly Blob[], subject?: string): Image {
  for (;;) {
    const image = makeImage(random, layers, subject)
    if (image.manifest.digest.startsWith('sha256:')) return image
  }
}

/** A client that pushes, mounts, tags, deletes and pulls while garbage is collected. */
export class GcClient {
  readonly #name: string
  readonly #random: Random
  readonly #wire: Wire
  readonly #common: Common
  readonly #held: Held[] = []
  readonly #raced: readonly Blob[]
  #lastTag = 0

  constructor(name: string, random: Random, wire: Wire, common: Common) {
    this.#name = name
    this.#random = random
    this.#wire = wire
    this.#common = common
    this.#raced = Array.from({ length: 12 }, () => {
      const bytes = random.bytes(200)
      return { bytes, digest: digestOf(bytes) }
    })
  }

  async work(isOver: () => boolean): Promise<void> {
    while (!isOver()) {
      await this.#act(this.#random.weighted(actions))
      if (this.#random.chance(0.05)) await delay(this.#random.int(1, 300))
    }
  }

  /** Pulls all that must be there. */
  async check(): Promise<void> {
    for (const held of this.#held) await this.#pull(held)
  }

  async #act(action: keyof typeof actions): Promise<void> {
    switch (action) {
      case 'push':
        return this.#pushTagged(newImage(this.#random, this.#common.layers))
      case 'pushCommon': {
        const image = this.#random.pick(this.#common.images)
        return image === undefined ? undefined : this.#pushTagged(image)
      }
      case 'pushIndex':
        return this.#pushIndex()
      case 'pushReferrer':
        return this.#pushReferrer()
      case 'retag':
        return this.#retag()
      case 'untag':
        return this.#untag()
      case 'own':
        return this.#ownRepository()
      case 'race':
        return this.#race()
      case 'linger':
        return this.#linger()
      case 'comeLate':
        return this.#comeLate()
      case 'leave':
        return this.#leave()
      case 'pull': {
        const held = this.#random.pick(this.#held)
        return held === undefined ? undefined : this.#pull(held)
      }
    }
  }

  #shared(): string {
    return this.#random.pick(sharedRepositories) ?? 'shared/one'
  }

  #newTag(): string {
    this.#lastTag++
    return `${this.#name}-${this.#lastTag}`
  }

  async #pushTagged(image: Image, repository = this.#shared()): Promise<void> {
    if (this.#held.length >= mostTags) await this.#untag()
    const tag = this.#newTag()
    if (await this.#pushImage(repository, tag, image)) {
      this.#held.push({ repository, tag, manifest: image.manifest, images: [image], referrers: [] })
    }
  }

  async #pushIndex(): Promise<void> {
    const repository = this.#shared()
    const images = [newImage(this.#random, this.#common.layers), this.#random.pick(this.#common.images)]
    const children = images.filter((image) => image !== undefined)
    const begin = performance.now()
    for (const child of children) {
      if (!(await this.#pushImage(repository, child.manifest.digest, child))) return
    }
    const manifests = children.map(({ manifest }) => manifest)
    const index = newIndex(this.#random, manifests)
    const tag = this.#newTag()
    if (await this.#putManifest(repository, tag, index, begin)) {
      this.#held.push({ repository, tag, manifest: index, images: children, referrers: [] })
    }
  }

  async #pushReferrer(): Promise<void> {
    const held = this.#random.pick(this.#held)
    if (held === undefined) return
    const image = newImage(this.#random, this.#common.layers, held.manifest.digest)
    if (await this.#pushImage(held.repository, image.manifest.digest, image)) held.referrers.push(image)
  }

  /** Another tag on the same manifest, and the old one away. */
  async #retag(): Promise<void> {
    const held = this.#random.pick(this.#held)
    if (held === undefined) return
    const tag = this.#newTag()
    if (!(await this.#putManifest(held.repository, tag, held.manifest, performance.now()))) return
    this.#held.splice(this.#held.indexOf(held), 1, { ...held, tag })
    await this.#expect({ method: 'DELETE', path: `/v2/${held.repository}/manifests/${held.tag}` }, [202])
  }

  async #untag(): Promise<void> {
    const held = this.#random.pick(this.#held)
    if (held === undefined) return
    this.#held.splice(this.#held.indexOf(held), 1)
    await this.#expect({ method: 'DELETE', path: `/v2/${held.repository}/manifests/${held.tag}` }, [202])
  }

  /** Where nobody else is: manifests and blobs are deleted by digest. */
  async #ownRepository(): Promise<void> {
    const repository = `own/${this.#name}`
    const image = newImage(this.#random, this.#common.layers)
    if (!(await this.#pushImage(repository, 'x', image))) return
    await this.#expect(
      { method: 'DELETE', path: `/v2/${repository}/manifests/${image.manifest.digest}` },
      [202],
    )
    for (const { digest } of image.blobs) {
      if (this.#random.chance(0.5)) {
        await this.#expect({ method: 'DELETE', path: `/v2/${repository}/blobs/${digest}` }, [202, 404])
      }
    }
  }

  /**
   * Blobs that become garbage all at once and are pushed anew while they are collected: who was told that one is
   * there must get it.
   */
  async #race(): Promise<void> {
    const repository = `race/${this.#name}`
    const blobs = this.#raced
    for (const blob of blobs) await this.#uploadAtOnce(repository, blob)
    await delay(this.#common.grace + this.#random.int(0, 50))
    for (const { digest } of blobs) {
      await this.#expect({ method: 'DELETE', path: `/v2/${repository}/blobs/${digest}` }, [202, 404])
    }
    await delay(this.#random.int(0, 60))
    for (const { digest, bytes } of blobs) {
      const begin = performance.now()
      await this.#uploadAtOnce(repository, { digest, bytes })
      await delay(this.#random.int(0, 10))
      const reply = await this.#expect(
        { method: 'GET', path: `/v2/${repository}/blobs/${digest}` },
        performance.now() - begin < this.#common.grace / 2 ? [200] : [200, 404],
      )
      if (reply?.status === 200 && !reply.body.equals(bytes)) this.#common.report(`${digest} has other bytes`)
    }
  }

  /** Looks at its parts again before their leases end, and pushes the manifest when the first leases are over. */
  async #linger(): Promise<void> {
    const image = newImage(this.#random, [])
    const repository = this.#shared()
    for (const blob of image.blobs) await this.#needBlob(repository, blob)
    await delay(this.#common.grace * 0.7)
    const begin = performance.now()
    for (const blob of image.blobs) await this.#needBlob(repository, blob)
    await delay(this.#common.grace * 0.6)
    await this.#putManifest(repository, this.#newTag(), image.manifest, begin)
  }

  /** Pushes a manifest at the moment when the leases of its parts end: refused or not, but never broken. */
  async #comeLate(): Promise<void> {
    const image = newImage(this.#random, [])
    const repository = this.#shared()
    const tag = this.#newTag()
    for (const blob of image.blobs) await this.#uploadAtOnce(repository, blob)
    await delay(this.#common.grace * 1.1 + this.#random.int(-20, 60))
    if (!(await this.#putManifest(repository, tag, image.manifest, 0))) return
    this.#held.push({ repository, tag, manifest: image.manifest, images: [image], referrers: [] })
  }

  async #uploadAtOnce(repository: string, { digest, bytes }: Blob): Promise<void> {
    const path = `/v2/${repository}/blobs/uploads/?digest=${digest}`
    await this.#expect({ method: 'POST', path, body: bytes }, [201])
  }

  /** Blobs that nobody will name, or an upload that nobody ends. */
  async #leave(): Promise<void> {
    const repository = this.#shared()
    const blob = this.#random.pick(this.#common.layers) ?? makeBlob(this.#random)
    if (this.#random.chance(0.8)) return this.#needBlob(repository, blob)
    const path = `/v2/${repository}/blobs/uploads/`
    await this.#expect({ method: 'POST', path, body: Buffer.alloc(0) }, [202])
  }

  async #pushImage(repository: string, reference: string, image: Image): Promise<boolean> {
    const begin = performance.now()
    for (const blob of image.blobs) await this.#needBlob(repository, blob)
    if (this.#random.chance(0.1)) await delay(this.#random.int(1, this.#common.grace / 2))
    return this.#putManifest(repository, reference, image.manifest, begin)
  }

  /** As clients do it: a look, a mount, an upload. */
  async #needBlob(repository: string, { digest, bytes }: Blob): Promise<void> {
    const head = await this.#expect({ method: 'HEAD', path: `/v2/${repository}/blobs/${digest}` }, [200, 404])
    if (head?.status !== 404) return
    const uploads = `/v2/${repository}/blobs/uploads/`
    if (this.#random.chance(0.3)) {
      const path = `${uploads}?digest=${digest}`
      await this.#expect({ method: 'POST', path, body: bytes }, [201])
      return
    }
    const begin = performance.now()
    const mount = this.#random.chance(0.6) ? `?mount=${digest}&from=${this.#shared()}` : ''
    const started = await this.#expect(
      { method: 'POST', path: `${uploads}${mount}`, body: Buffer.alloc(0) },
      [201, 202],
    )
    if (started?.status === 201) this.#common.counts.mounts++
    if (started?.status !== 202) return
    const location = started.headers.location ?? ''
    const path = `${location}${location.includes('?') ? '&' : '?'}digest=${digest}`
    const put = await this.#expect({ method: 'PUT', path, body: bytes }, [201, 404])
    // An upload that nobody has touched for its time is over.
    if (put?.status === 404 && performance.now() - begin < uploadLife - 1000)
      this.#common.report(`${this.#name}: PUT ${path}: 404 ${put.body.toString().slice(0, 200)}`)
  }

  /** @returns whether it is there now; a refusal is right only when the lease of the oldest part may be over */
  async #putManifest(
    repository: string,
    reference: string,
    manifest: Manifest,
    begin: number,
  ): Promise<boolean> {
    const reply = await this.#expect(
      {
        method: 'PUT',
        path: `/v2/${repository}/manifests/${reference}`,
        headers: { 'Content-Type': manifest.mediaType },
        body: manifest.bytes,
      },
      [201, 400],
    )
    if (reply?.status === 201) {
      this.#common.counts.manifests++
      return true
    }
    if (performance.now() - begin < this.#common.grace) {
      this.#common.report(
        `${repository}:${reference} refused inside the grace: ${reply?.body.toString().slice(0, 300)}`,
      )
    } else {
      this.#common.counts.late++
    }
    return false
  }

  async #pull({ repository, tag, manifest, images, referrers }: Held): Promise<void> {
    this.#common.counts.pulls++
    await this.#has(`/v2/${repository}/manifests/${tag}`, manifest.bytes)
    for (const image of [...images, ...referrers]) {
      await this.#has(`/v2/${repository}/manifests/${image.manifest.digest}`, image.manifest.bytes)
      for (const { digest, bytes } of image.blobs) await this.#has(`/v2/${repository}/blobs/${digest}`, bytes)
    }
  }

  async #has(path: string, bytes: Buffer): Promise<void> {
    const reply = await this.#expect({ method: 'GET', path }, [200])
    if (reply !== undefined && reply.status === 200 && !reply.body.equals(bytes)) {
      this.#common.report(`GET ${path} gives other bytes`)
    }
  }

  async #expect(request: Request, statuses: readonly number[]): Promise<Reply | undefined> {
    const answer = await this.#wire.send(request)
    const { method, path } = request
    if (typeof answer === 'string') {
      this.#common.report(`${this.#name}: ${method} ${path}: no answer (${answer})`)
      return undefined
    }
    if (!statuses.includes(answer.reply.status)) {
      const { status, body } = answer.reply
      this.#common.report(`${this.#name}: ${method} ${path}: ${status} ${body.toString().slice(0, 200)}`)
    }
    return answer.reply
  }
}
