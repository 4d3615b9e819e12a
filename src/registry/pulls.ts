import type { MetadataStore, Pull } from '../../storage/metadata-store.js'
import type { Digest } from '../oci/digest.js'
import type { Reference, RepositoryName } from '../oci/reference.js'

/** Milliseconds for which pulls are gathered, so that none of them costs a write. */
const flushInterval = 60_000

/** Pulls that are gathered at the most; then they are written down at once. */
const mostGathered = 10_000

/** Pulls that are written down in one transaction. */
const batch = 200

/**
 * When manifests and tags were last pulled: gathered in memory and written down once a minute. What a crash takes
 * is that minute.
 */
export class PullLog {
  readonly #metadata: Pick<MetadataStore, 'recordPulls'>
  readonly #timer: NodeJS.Timeout
  #gathered = new Map<string, Pull>()
  #writing: Promise<void> = Promise.resolve()

  constructor(metadata: Pick<MetadataStore, 'recordPulls'>) {
    this.#metadata = metadata
    this.#timer = setInterval(() => void this.flush(), flushInterval).unref()
  }

  /** Notes a pull of a manifest, by the reference that was asked for. */
  note(repository: RepositoryName, reference: Reference, digest: Digest): void {
    const tag = reference.kind === 'tag' ? reference.tag : undefined
    this.#gathered.set(`${repository} ${tag ?? ''} ${digest}`, { repository, digest, tag, at: Date.now() })
    if (this.#gathered.size >= mostGathered) void this.flush()
  }

  /** Writes down what was gathered. What cannot be written is dropped: it is no more than a hint. */
  flush(): Promise<void> {
    const pulls = [...this.#gathered.values()]
    this.#gathered = new Map()
    this.#writing = this.#writing.then(async () => {
      try {
        for (let at = 0; at < pulls.length; at += batch) {
          await this.#metadata.recordPulls(pulls.slice(at, at + batch))
        }
      } catch {
        // the store has told others of its trouble
      }
    })
    return this.#writing
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }
}
