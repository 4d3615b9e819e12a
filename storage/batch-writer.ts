import type { FileHandle } from 'node:fs/promises'
import type { Readable } from 'node:stream'

/**
 * Bytes that are gathered before they are written with one call. A quarter of it made no clear difference (see
 * bench/README.md); one write for each chunk of the socket costs a trip to a thread for every 64 KiB.
 */
const largeBatch = 1024 * 1024

/** The same when many bodies come in at once, so that all of them together stay small. */
const smallBatch = 128 * 1024
const manyBodies = 32
let activeBodies = 0

/** What a pump is told. */
interface PumpOptions {
  /** Where in the file the body goes. */
  readonly position: number
  /** Position that the body must not pass. */
  readonly limit: number
  /** Sees every chunk before it is written. */
  readonly onChunk: (chunk: Buffer) => void
  /** Hears how far the file is written. */
  readonly onWritten: (position: number) => void
  /** Whether bytes are written as soon as the writes before them are done, however few they are. */
  readonly isEager?: boolean
}

/** How a pump ended: where the file ends now, and why the body did, if it ended early. */
interface PumpResult {
  readonly position: number
  readonly failure: Error | undefined
  readonly overLimit: boolean
}

/**
 * Writes a body to a file in large batches: while one batch is written the next is gathered, and when that is
 * full too the body waits. So at most two batches are in memory, however large the body is.
 *
 * A body that ends early is not an error here: what came is written. The body is never destroyed.
 * @throws the file's error (disk full, I/O error); the body is left paused
 */
export function pumpToFile(body: Readable, file: FileHandle, options: PumpOptions): Promise<PumpResult> {
  return new Promise((resolve, reject) => {
    const batchSize = ++activeBodies > manyBodies ? smallBatch : largeBatch
    let gathered: Buffer[] = []
    let gatheredBytes = 0
    let position = options.position
    let accepted = options.position
    let isWriting = false
    let isEnded = false
    let isSettled = false
    let overLimit = false
    let failure: Error | undefined

    function onData(chunk: Buffer): void {
      if (accepted + chunk.length > options.limit) {
        overLimit = true
        body.pause()
        onEnd()
        return
      }
      accepted += chunk.length
      options.onChunk(chunk)
      gathered.push(chunk)
      gatheredBytes += chunk.length
      const isFull = gatheredBytes >= batchSize
      if (isWriting && isFull) body.pause()
      if (!isWriting && (isFull || options.isEager === true)) void writeBatch()
    }

    async function writeBatch(): Promise<void> {
      const batch = gathered
      gathered = []
      gatheredBytes = 0
      isWriting = true
      try {
        position = await writeFully(file, batch, position)
        options.onWritten(position)
      } catch (error) {
        settle(() => reject(error))
        return
      }
      isWriting = false
      const isDue = isEnded || options.isEager === true
      if (gatheredBytes >= batchSize || (isDue && gatheredBytes > 0)) void writeBatch()
      else if (isEnded) settle(() => resolve({ position, failure, overLimit }))
      if (!isEnded && body.isPaused()) body.resume()
    }

    function onEnd(): void {
      if (isEnded) return
      isEnded = true
      body.off('data', onData)
      if (isWriting) return
      if (gatheredBytes > 0) void writeBatch()
      else settle(() => resolve({ position, failure, overLimit }))
    }

    function onError(error: Error): void {
      failure ??= error
      onEnd()
    }

    function onClose(): void {
      if (!body.readableEnded) failure ??= new Error('the connection closed before the body ended')
      onEnd()
    }

    function settle(how: () => void): void {
      if (isSettled) return
      isSettled = true
      isEnded = true
      activeBodies--
      body.pause()
      body.off('data', onData)
      body.off('end', onEnd)
      body.off('close', onClose)
      // The error listener stays: a body may still fail after its end, and nobody else listens.
      how()
    }

    body.on('error', onError)
    body.on('end', onEnd)
    body.on('close', onClose)
    if (body.destroyed) onClose()
    else if (body.readableEnded) onEnd()
    else {
      body.on('data', onData)
      body.resume()
    }
  })
}

/** Writes all of the buffers at the position; returns the position behind them. */
async function writeFully(file: FileHandle, buffers: Buffer[], start: number): Promise<number> {
  let rest = buffers
  let position = start
  while (rest.length > 0) {
    const { bytesWritten } = await file.writev(rest, position)
    position += bytesWritten
    rest = dropBytes(rest, bytesWritten)
  }
  return position
}

/** The buffers without their first `count` bytes: a write may be shorter than asked. */
function dropBytes(buffers: Buffer[], count: number): Buffer[] {
  let left = count
  let at = 0
  for (let buffer = buffers[at]; buffer !== undefined && left >= buffer.length; buffer = buffers[at]) {
    left -= buffer.length
    at++
  }
  const [first, ...others] = buffers.slice(at)
  return first === undefined ? [] : [first.subarray(left), ...others]
}
