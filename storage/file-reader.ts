import { read } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Writable } from 'node:stream'
import type { BlobReader, UploadReader } from './blob-store.js'
import { giveBuffer, takeBuffer } from './buffer-pool.js'
import { errorCode } from './errors.js'

/**
 * Bytes that are read at once, by the number of streams that run: two such buffers serve one stream. A few
 * streams are fastest with large ones, and slow readers by the hundred must stay cheap. Measured: bench/README.md.
 */
const bufferSizes = [
  { streams: 4, size: 1024 * 1024 },
  { streams: 64, size: 256 * 1024 },
  { streams: Number.POSITIVE_INFINITY, size: 32 * 1024 },
] as const
let activeStreams = 0

function takeReadBuffer(): Buffer {
  const { size } = bufferSizes.find(({ streams }) => activeStreams <= streams) ?? bufferSizes[2]
  return takeBuffer(size)
}

/**
 * Opens a file for {@link BlobReader.copyTo}.
 * @returns undefined when there is no such file
 */
export async function openFileReader(
  path: string,
  flags: number,
): Promise<(BlobReader & UploadReader) | undefined> {
  let file: FileHandle
  try {
    file = await open(path, flags)
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return undefined
    throw error
  }
  try {
    const { size } = await file.stat()
    return new FileReader(file, size)
  } catch (error) {
    await file.close()
    throw error
  }
}

class FileReader implements BlobReader, UploadReader {
  readonly size: number
  readonly #file: FileHandle

  constructor(file: FileHandle, size: number) {
    this.#file = file
    this.size = size
  }

  async currentSize(): Promise<number> {
    return (await this.#file.stat()).size
  }

  /** While one buffer is on its way to the sink, the next is read. */
  async copyTo(sink: Writable, start: number, end: number): Promise<void> {
    activeStreams++
    const outlet = new Outlet(sink)
    let position = start
    let filling = takeReadBuffer()
    let draining = takeReadBuffer()
    let drained: Promise<void> | undefined
    try {
      while (position <= end) {
        const length = Math.min(filling.length, end - position + 1)
        const filled = await readAt(this.#file.fd, filling, length, position)
        if (filled === 0) throw new Error(`file ends at ${position}, before byte ${end}`)
        await drained
        drained = outlet.write(filling.subarray(0, filled))
        drained.catch(() => undefined) // it is awaited above or below; a read may fail first
        const written = filling
        filling = draining
        draining = written
        position += filled
      }
      await drained
      giveBuffer(filling)
      giveBuffer(draining)
    } catch (error) {
      giveBuffer(filling) // the other may still be on its way to the socket
      throw error
    } finally {
      outlet.release()
      activeStreams--
    }
  }

  close(): Promise<void> {
    return this.#file.close()
  }
}

/** The callback form: one third of the promise form's cost on small reads. */
function readAt(fd: number, buffer: Buffer, length: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    read(fd, buffer, 0, length, position, (error, bytes) => (error ? reject(error) : resolve(bytes)))
  })
}

/**
 * Writes to a sink that may go at any moment: a reply whose connection breaks need not call back, so a waiting
 * write listens to the sink's end as well.
 */
class Outlet {
  readonly #sink: Writable
  #fail: ((error: Error) => void) | undefined
  #isClosed: boolean
  readonly #onClose = () => {
    this.#isClosed = true
    this.#fail?.(closed())
  }

  constructor(sink: Writable) {
    this.#sink = sink
    this.#isClosed = sink.destroyed
    sink.once('close', this.#onClose)
  }

  /** Resolves when the sink is done with the bytes, so that their buffer can be used again. */
  write(bytes: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) return reject(closed())
      this.#fail = reject
      this.#sink.write(bytes, (error) => (error ? reject(error) : resolve()))
    })
  }

  release(): void {
    this.#sink.off('close', this.#onClose)
  }
}

function closed(): Error {
  return new Error('the connection closed before the reply ended')
}
