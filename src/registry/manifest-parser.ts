import type { Piscina } from 'piscina'
import { type ErrorKind, RegistryError } from '../oci/errors.js'
import { parseManifest } from '../oci/manifest.js'
import { type PackedManifest, packManifest } from '../oci/packed-manifest.js'

/** Manifests up to this many bytes are parsed at once: it takes less than a millisecond. */
const smallManifest = 64 * 1024

/** Large manifests that may wait for the thread; more are refused (429). */
const longestQueue = 64

/** What a thread hands back: errors do not keep their class between threads. */
export type ParseReply =
  | { readonly ok: true; readonly manifest: PackedManifest }
  | { readonly ok: false; readonly kind: ErrorKind; readonly message: string }

/** What a thread is handed. */
export interface ParseRequest {
  readonly bytes: Uint8Array
  readonly contentType: string | undefined
}

/** Parses manifests; large ones on a thread, which starts with the first of them and goes when idle. */
export class ManifestParser {
  #threads: Promise<Piscina<ParseRequest, ParseReply>> | undefined

  /** @throws RegistryError MANIFEST_INVALID, TOOMANYREQUESTS when too many large manifests wait, UNAVAILABLE */
  readonly parse = async (bytes: Uint8Array, contentType: string | undefined): Promise<PackedManifest> => {
    if (bytes.byteLength <= smallManifest) return packManifest(parseManifest(bytes, contentType))
    this.#threads ??= startThreads()
    const threads = await this.#threads.catch((error: unknown) => {
      this.#threads = undefined // there may be descriptors again for the next
      throw new RegistryError('UNAVAILABLE', undefined, { cause: error })
    })
    if (threads.queueSize >= longestQueue) {
      throw new RegistryError('TOOMANYREQUESTS', 'too many large manifests at once: try again later', {
        retryAfter: 1,
      })
    }
    const reply = await threads.run({ bytes, contentType })
    if (!reply.ok) throw new RegistryError(reply.kind, reply.message)
    return reply.manifest
  }

  async close(): Promise<void> {
    await (await this.#threads)?.close()
  }
}

/** Loaded with the first large manifest: most processes never see one. */
async function startThreads(): Promise<Piscina<ParseRequest, ParseReply>> {
  const { Piscina } = await import('piscina')
  return new Piscina({
    filename: new URL('./manifest-parser-thread.js', import.meta.url).href,
    minThreads: 0,
    maxThreads: 1,
    maxQueue: longestQueue,
    idleTimeout: 10_000,
  })
}
