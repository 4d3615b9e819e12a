import { setTimeout as delay } from 'node:timers/promises'
import { type Blob, digestOf, type Image, type Manifest } from './content.js'
import type { Random } from './random.js'
import type { Reply, Request, Wire } from './wire.js'

/** What came of a step: it was done, or refused for want of space, or too late for the grace of its blobs. */
export type Outcome = 'done' | 'full' | 'late'

/** Milliseconds for which the server keeps a blob that no manifest names. */
export const grace = 10_000

/** A client of a server on a disk that may be full: each answer is success, or the refusal that it should be. */
export class FullClient {
  readonly #wire: Wire
  readonly #report: (violation: string) => void
  /** Uploads that a refusal has left open. */
  readonly #open: string[] = []
  /** Refusals seen, all of the right shape. */
  refusals = 0

  constructor(wire: Wire, report: (violation: string) => void) {
    this.#wire = wire
    this.#report = report
  }

  async #send(request: Request): Promise<Reply | undefined> {
    const answer = await this.#wire.send(request)
    if (typeof answer !== 'string') return answer.reply
    this.#report(`${request.method} ${request.path}: no answer (${answer})`)
    return undefined
  }

  /** Sends what may be refused. */
  async #try(request: Request, success: number): Promise<Reply | 'full' | undefined> {
    const reply = await this.#send(request)
    if (reply === undefined || reply.status === success) return reply
    const text = reply.body.toString()
    if (reply.status !== 507 || !isFullText(text)) {
      this.#report(`${request.method} ${request.path}: ${reply.status} ${text.slice(0, 300)}`)
      return undefined
    }
    this.refusals++
    return 'full'
  }

  async #step(request: Request, success: number): Promise<Outcome> {
    return typeof (await this.#try(request, success)) === 'object' ? 'done' : 'full'
  }

  /** Pushes a blob at once, as a stream or in chunks. */
  async pushBlob(repository: string, { bytes, digest }: Blob, random: Random): Promise<Outcome> {
    const uploads = `/v2/${repository}/blobs/uploads/`
    if (random.chance(0.3)) {
      return this.#step(
        { method: 'POST', path: `${uploads}?digest=${digest}`, body: bytes, fresh: true },
        201,
      )
    }
    const start = await this.#try({ method: 'POST', path: uploads, headers: { 'Content-Length': '0' } }, 202)
    if (typeof start !== 'object') return 'full'
    const path = start.headers.location ?? ''
    const cut = random.chance(0.5) ? bytes.length : random.int(0, bytes.length)
    const first = {
      method: 'PATCH',
      path,
      body: bytes.subarray(0, cut),
      chunked: random.chance(0.5),
      fresh: true,
    }
    const patched = await this.#step(first, 202)
    const rest = bytes.subarray(cut)
    const last = { method: 'PUT', path: `${path}?digest=${digest}`, body: rest, fresh: true }
    if (patched === 'done' && (await this.#step(last, 201)) === 'done') return 'done'
    this.#open.push(path)
    return 'full'
  }

  mount(repository: string, digest: string, from: string): Promise<Outcome> {
    const path = `/v2/${repository}/blobs/uploads/?mount=${digest}&from=${from}`
    return this.#step({ method: 'POST', path, headers: { 'Content-Length': '0' } }, 201)
  }

  putManifest(repository: string, reference: string, manifest: Manifest): Promise<Outcome> {
    const headers = { 'Content-Type': manifest.mediaType }
    const path = `/v2/${repository}/manifests/${reference}`
    return this.#step({ method: 'PUT', path, headers, body: manifest.bytes }, 201)
  }

  /** Pushes an image as far as it gets. */
  async push(repository: string, tag: string, { blobs, manifest }: Image, random: Random): Promise<Outcome> {
    const begun = performance.now()
    const outcomes: Outcome[] = []
    for (const blob of blobs) outcomes.push(await this.pushBlob(repository, blob, random))
    if (outcomes.includes('full')) return 'full'
    if (performance.now() - begun > grace / 2) return 'late' // the machine is busy: the blobs may be on their way out
    return this.putManifest(repository, tag, manifest)
  }

  /** Pushes an image when there is room again, which must succeed within a second. */
  async pushAgain(repository: string, tag: string, image: Image, random: Random): Promise<void> {
    const deadline = performance.now() + 1000
    for (;;) {
      const isLate = performance.now() > deadline
      const outcome = await this.push(repository, tag, image, random)
      if (outcome === 'done') return
      if (isLate && outcome === 'full')
        return this.#report(`${repository}:${tag} is refused a second after there was room again`)
      await delay(20)
    }
  }

  /** Cancels what refusals have left open, when there is room again. */
  async cancelOpen(): Promise<void> {
    for (const path of this.#open.splice(0)) {
      const reply = await this.#send({ method: 'DELETE', path })
      if (reply !== undefined && reply.status !== 204) {
        this.#report(`DELETE ${path}: ${reply.status} ${reply.body.toString().slice(0, 300)}`)
      }
    }
  }

  delete(repository: string, reference: string): Promise<Outcome> {
    return this.#step({ method: 'DELETE', path: `/v2/${repository}/manifests/${reference}` }, 202)
  }

  /** Reads an image, byte for byte. */
  async pull(repository: string, tag: string, { blobs, manifest }: Image): Promise<void> {
    await this.#expect(`/v2/${repository}/manifests/${tag}`, manifest.bytes)
    for (const { digest, bytes } of blobs) await this.#expect(`/v2/${repository}/blobs/${digest}`, bytes)
  }

  async #expect(path: string, bytes: Buffer): Promise<void> {
    const reply = await this.#send({ method: 'GET', path })
    if (reply === undefined) return
    if (reply.status !== 200)
      this.#report(`GET ${path}: ${reply.status} ${reply.body.toString().slice(0, 300)}`)
    else if (!reply.body.equals(bytes)) this.#report(`GET ${path}: other bytes, ${digestOf(reply.body)}`)
  }
}

/** Whether this is the refusal of a full disk, in the protocol's shape. */
function isFullText(text: string): boolean {
  try {
    const { errors } = JSON.parse(text) as { errors: { code: string; message: string }[] }
    const [error] = errors
    return error?.code === 'STORAGE_FULL' && error.message.startsWith('no space left on device: ')
  } catch {
    return false
  }
}
