import type { Writable } from 'node:stream'
import type { Copier } from '../../storage/blob-store.js'
import type { OpenBlob } from '../registry/blobs.js'
import type { Fill } from './fill.js'
import { toRefusal } from './refusals.js'

/** Reads a blob that is still coming in: its file stays the same when the upload becomes a blob. */
export class FillReader implements OpenBlob {
  readonly size: number
  readonly #fill: Fill
  #bytes: Copier | undefined
  #isClosed = false

  /** @param fill that the caller has entered @param size of the blob, in bytes */
  constructor(fill: Fill, size: number) {
    this.#fill = fill
    this.size = size
  }

  /**
   * A part that ends before the blob does could be wrong and complete: it waits until the blob has been found
   * right. What reaches the blob's end never gets its last byte before.
   * @throws RegistryError for what ended the fill: nothing has been sent yet, the client can be told
   */
  async ready(end: number): Promise<void> {
    try {
      if (end < this.size - 1 || this.size === 0) await this.#fill.right()
      else await this.#fill.reached(0)
    } catch (error) {
      throw toRefusal(error, 'BLOB_UNKNOWN')
    }
  }

  async copyTo(sink: Writable, start: number, end: number): Promise<void> {
    let position = start
    while (position <= end) {
      const shown = await untilClosed(sink, this.#fill.reached(position))
      const until = Math.min(shown - 1, end)
      this.#bytes ??= await this.#fill.openBytes()
      await this.#bytes.copyTo(sink, position, until)
      position = until + 1
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#fill.leave()
    await this.#bytes?.close()
  }
}

/** A client that leaves is not kept waiting for. */
function untilClosed<T>(sink: Writable, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const onClose = () => reject(new Error('the connection closed before the reply ended'))
    if (sink.destroyed) return onClose()
    sink.once('close', onClose)
    promise.then(resolve, reject).finally(() => sink.off('close', onClose))
  })
}
