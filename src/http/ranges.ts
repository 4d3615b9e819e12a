import { RegistryError } from '../oci/errors.js'
import { UnsatisfiableRangeError } from './errors.js'

/** Positions of the first and the last byte. */
export interface ByteRange {
  readonly start: number
  readonly end: number
}

/** Ranges that one request may name (protocol BL-07). */
const mostRanges = 1000

/**
 * Reads a Range header. A header in another unit or with bad syntax is ignored, as RFC 9110 wants it.
 * @param size of the content, in bytes
 * @returns the ranges that can be satisfied, in the order asked, cut at the content's end; undefined for the whole content
 * @throws UnsatisfiableRangeError when none can be, or one ends before it starts (protocol BL-05)
 * @throws RegistryError TOO_MANY_RANGES when the ranges are too many, or ask for the content more than twice
 */
export function readRanges(header: string | undefined, size: number): ByteRange[] | undefined {
  if (header === undefined || size === 0 || !/^bytes=/i.test(header)) return undefined // BL-11
  const parts = header.slice('bytes='.length).split(',', mostRanges + 1)
  if (parts.length > mostRanges) throw new RegistryError('TOO_MANY_RANGES')
  const specs = parts.map((part) => /^\s*(\d*)-(\d*)\s*$/.exec(part))
  const ranges: ByteRange[] = []
  for (const spec of specs) {
    const [, first = '', last = ''] = spec ?? []
    if (first === '' && last === '') return undefined
    const range = toRange(first, last, size)
    if (range !== undefined) ranges.push(range)
  }
  if (ranges.length === 0) throw new UnsatisfiableRangeError(size)
  const total = ranges.reduce((sum, range) => sum + range.end - range.start + 1, 0)
  if (ranges.length > 1 && total > 2 * size) throw new RegistryError('TOO_MANY_RANGES')
  return ranges
}

/** RFC 9110, 14.1.1: undefined for a range that lies outside. */
function toRange(first: string, last: string, size: number): ByteRange | undefined {
  if (first !== '' && last !== '' && Number(first) > Number(last)) throw new UnsatisfiableRangeError(size)
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first)
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1)
  return start > end ? undefined : { start, end }
}

/**
 * Reads an upload's Content-Range: `<start>-<end>`, or RFC 9110's form of it (protocol UP-41).
 * @throws RegistryError RANGE_INVALID for bad syntax
 */
export function readContentRange(header: string | undefined): ByteRange | undefined {
  if (header === undefined) return undefined
  const [, start, end] = /^(?:bytes )?(\d{1,16})-(\d{1,16})(?:\/(?:\d{1,16}|\*))?$/.exec(header.trim()) ?? []
  if (start === undefined || end === undefined) {
    throw new RegistryError('RANGE_INVALID', 'Content-Range must be <first byte>-<last byte>')
  }
  return { start: Number(start), end: Number(end) }
}
