/** Bytes that are read from a socket at once, at most. */
const size = 64 * 1024

/** Buffers kept for the next read; more are left to the garbage collector. */
const mostSpare = 64

const spares: Buffer[] = []

/** Bytes of each buffer that somebody still has. */
const lentBytes = new WeakMap<ArrayBufferLike, number>()

/** How a socket reads into buffers that are used again: the `onread` option of `net.connect`. */
export interface ReadOptions {
  readonly buffer: () => Buffer
  readonly callback: (length: number, buffer: Uint8Array) => boolean
}

/**
 * Makes a socket read into buffers that are used again when all that came into them has been given back. What stays in
 * the processor's cache costs a fraction of new memory for each read. Bytes that nobody gives back, such as those of
 * headers, only keep their buffer from being used again.
 * @param push passes on what came, and tells whether more may come
 */
export function readReusing(push: (bytes: Buffer) => boolean): ReadOptions {
  return {
    buffer: () => spares.pop() ?? Buffer.allocUnsafeSlow(size),
    callback: (length, { buffer }) => {
      lentBytes.set(buffer, length)
      return push(Buffer.from(buffer, 0, length))
    },
  }
}

/** Gives back bytes that nobody will look at again. Memory from elsewhere may be given, too: nothing happens to it. */
export function giveBack(bytes: Buffer): void {
  const lent = lentBytes.get(bytes.buffer)
  if (lent === undefined) return
  lentBytes.set(bytes.buffer, lent - bytes.length)
  if (lent > bytes.length || spares.length >= mostSpare) return
  lentBytes.delete(bytes.buffer)
  spares.push(Buffer.from(bytes.buffer))
}
