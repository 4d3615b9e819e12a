import { Readable, Writable } from 'node:stream'
import type { BlobReader } from '../../storage/blob-store.js'

/** Bytes that differ at every place, the same at each call: a block moved or repeated is another content. */
export function someBytes(length: number, seed = 1): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  let state = seed * 2654435761
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

/** A body that arrives in these pieces. */
export function bodyOf(...pieces: readonly Uint8Array[]): Readable {
  return Readable.from(pieces, { objectMode: false })
}

/** The bytes cut into pieces of this length. */
export function cut(bytes: Buffer, length: number): Buffer[] {
  const pieces: Buffer[] = []
  for (let at = 0; at < bytes.length; at += length) pieces.push(bytes.subarray(at, at + length))
  return pieces
}

/** A body that breaks after these pieces: its stream fails. */
export function brokenBody(...pieces: readonly Uint8Array[]): Readable {
  return Readable.from(
    (function* () {
      yield* pieces
      throw new Error('the client has gone')
    })(),
    { objectMode: false },
  )
}

/**
 * A sink that keeps what it is given. It looks at the bytes only when it says that it is done with them, as a
 * socket does: a buffer that is filled anew too early shows.
 */
export class Collector extends Writable {
  readonly #pieces: Buffer[] = []

  constructor() {
    super({ highWaterMark: 1 })
  }

  get bytes(): Buffer {
    return Buffer.concat(this.#pieces)
  }

  override _write(piece: Buffer, _encoding: BufferEncoding, done: () => void): void {
    setImmediate(() => {
      this.#pieces.push(Buffer.from(piece))
      done()
    })
  }
}

/** The bytes `start` … `end` of a blob; all of it unless told. */
export async function readBlob(reader: BlobReader, start = 0, end = reader.size - 1): Promise<Buffer> {
  const sink = new Collector()
  await reader.copyTo(sink, start, end)
  return sink.bytes
}
