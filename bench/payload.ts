import { createHash, type Hash, randomBytes } from 'node:crypto'

export const MIB = 1024 * 1024
/** The Docker engine streams a layer in writes of 32 KiB, each of which becomes one chunk on the wire. */
const CHUNK = 32 * 1024
const SERIAL_BYTES = 16

const block = randomBytes(MIB)
const framedBlock = frame(block)
let serials = 0

/** Content that has never been sent before, with its digest known before the first byte is written. */
export interface Payload {
  readonly size: number
  readonly digest: string
  /** The content in parts; all but the last few bytes are shared by all payloads of this process. */
  parts(): Iterable<Buffer>
  /** The same, framed for a chunked body. */
  framedParts(): Iterable<Buffer>
}

/** The digest of bytes at hand, as registries write it. */
export function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/**
 * Makes `count` payloads of `size` bytes. They differ in their last 16 bytes, so that the hash of everything before
 * is computed once however many there are. `size` is at least 32 bytes and, above 1 MiB, a multiple of 1 MiB.
 */
export function makePayloads(size: number, count: number): Payload[] {
  if (size < 2 * SERIAL_BYTES || (size > MIB && size % MIB !== 0)) {
    throw new RangeError(`no payload can have ${size} bytes`)
  }
  const prefix = hashPrefix(size - SERIAL_BYTES)
  return Array.from({ length: count }, () => makePayload(size, prefix))
}

function hashPrefix(length: number): Hash {
  const hash = createHash('sha256')
  let left = length
  for (; left >= block.length; left -= block.length) hash.update(block)
  return hash.update(block.subarray(0, left))
}

function makePayload(size: number, prefix: Hash): Payload {
  serials += 1
  const serial = Buffer.from(String(serials).padStart(SERIAL_BYTES, '0'))
  const digest = `sha256:${prefix.copy().update(serial).digest('hex')}`
  const whole = Math.ceil(size / MIB) - 1
  const tailLength = size - whole * MIB - SERIAL_BYTES
  return {
    size,
    digest,
    *parts() {
      for (let i = 0; i < whole; i += 1) yield block
      yield block.subarray(0, tailLength)
      yield serial
    },
    *framedParts() {
      for (let i = 0; i < whole; i += 1) yield framedBlock
      yield frame(Buffer.concat([block.subarray(0, tailLength), serial]))
    },
  }
}

function frame(bytes: Buffer): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; at < bytes.length; at += CHUNK) {
    const chunk = bytes.subarray(at, at + CHUNK)
    parts.push(Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from('\r\n'))
  }
  return Buffer.concat(parts)
}
