/** Bytes of buffers kept for the next stream; more are left to the garbage collector. */
const mostSpare = 16 * 1024 * 1024

const spares = new Map<number, Buffer[]>()
let spareBytes = 0

/** A buffer of exactly this size, used before if there is one: what it holds is nobody's business. */
export function takeBuffer(size: number): Buffer {
  const spare = spares.get(size)?.pop()
  if (spare === undefined) return Buffer.allocUnsafeSlow(size)
  spareBytes -= size
  return spare
}

/** Takes back a buffer that nobody reads or writes any more. */
export function giveBuffer(buffer: Buffer): void {
  if (spareBytes + buffer.length > mostSpare) return
  spareBytes += buffer.length
  const list = spares.get(buffer.length)
  if (list === undefined) spares.set(buffer.length, [buffer])
  else list.push(buffer)
}
