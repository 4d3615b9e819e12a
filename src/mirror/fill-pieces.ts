import type { Readable } from 'node:stream'
import type { BlobStore } from '../../storage/blob-store.js'

/** Milliseconds between two looks at whether the disk still has room. */
const floorInterval = 250

/**
 * Bytes that earlier tries have left, those of a worker that was killed included: all are hashed in the end. They are
 * never written anew, since clients may have them.
 */
export async function storedBytes(blobs: Pick<BlobStore, 'openUpload'>, id: string): Promise<number> {
  const reader = await blobs.openUpload(id)
  try {
    return (await reader?.currentSize()) ?? 0
  } finally {
    await reader?.close()
  }
}

/** The bytes of a body behind the first `count`: some upstreams know no ranges. */
export async function* without(body: AsyncIterable<Buffer>, count: number): AsyncGenerator<Buffer> {
  let left = count
  for await (const chunk of body) {
    const rest = chunk.subarray(left)
    left = Math.max(0, left - chunk.length)
    if (rest.length > 0) yield rest
  }
}

/** Whether fewer bytes have come than were said to. */
export function isShort(received: number, size: number | undefined): boolean {
  return size !== undefined && received < size
}

/**
 * Receives a body as long as the disk has room: others fill it, too, and not every upstream says how much it is going
 * to send.
 */
export async function whileRoom<T>(
  body: Readable,
  checkFloor: () => Promise<void>,
  receive: () => Promise<T>,
): Promise<T> {
  let look: Promise<void> | undefined
  const check = async () => {
    await checkFloor().catch((error: Error) => body.destroy(error))
    look = undefined
  }
  const timer = setInterval(() => {
    look ??= check()
  }, floorInterval)
  try {
    return await receive()
  } finally {
    clearInterval(timer)
    await look
  }
}
