import { resolve } from 'node:path'
import type { Call } from '../stores/trace.js'

/** Something that a program did to files, or said to a client, in the order in which it took effect. */
export type Event =
  | {
      readonly kind: 'write'
      readonly path: string
      readonly offset: number | undefined
      readonly data: Buffer
    }
  | { readonly kind: 'copy'; readonly path: string; readonly from: string; readonly length: number }
  | { readonly kind: 'truncate'; readonly path: string; readonly size: number }
  | { readonly kind: 'create' | 'mkdir' | 'remove' | 'sync'; readonly path: string }
  | { readonly kind: 'rename' | 'link'; readonly path: string; readonly to: string }
  /** The first bytes of an answer were handed to the connection. */
  | { readonly kind: 'answer'; readonly status: number }

/** What strace must be told to watch, beside all that changes files. */
export const recordedBytes = 8 * 1024 * 1024

/**
 * Reads what {@link watch} saw with `bytes`.
 * @param root everything outside of it is left out
 * @throws Error when a call is not understood
 */
export function eventsOf(calls: readonly Call[], root: string): Event[] {
  const timed = calls.flatMap((call) => {
    if (!/^\d+/.test(call.result)) return []
    const event = eventOf(call)
    if (event === undefined || (event.kind !== 'answer' && !event.path.startsWith(`${root}/`))) return []
    // An answer can be heard as soon as it is begun; the rest counts when it is done.
    return [{ event, at: event.kind === 'answer' ? call.begin : call.end }]
  })
  return timed.sort((one, other) => one.at - other.at).map(({ event }) => event)
}

function eventOf(call: Call): Event | undefined {
  const { name, args, result } = call
  const names = strings(args)
  const [path = '', to = ''] = names
  const descriptor = descriptorPath(args)
  if (name === 'openat') {
    if (!args.includes('O_CREAT'))
      return args.includes('O_TRUNC') ? { kind: 'truncate', path, size: 0 } : undefined
    return args.includes('O_TRUNC') ? { kind: 'truncate', path, size: 0 } : { kind: 'create', path }
  }
  if (name.startsWith('mkdir')) return { kind: 'mkdir', path }
  if (name.startsWith('unlink') || name === 'rmdir') return { kind: 'remove', path }
  if (name.startsWith('rename')) return { kind: 'rename', path, to }
  if (name.startsWith('link')) return { kind: 'link', path, to }
  if (name.endsWith('truncate')) {
    const size = Number(/, (\d+)$/.exec(args)?.[1])
    return { kind: 'truncate', path: name === 'truncate' ? path : descriptor, size }
  }
  if (name === 'fsync' || name === 'fdatasync') return { kind: 'sync', path: descriptor }
  if (name === 'write' || name === 'pwrite64' || name === 'writev') return writeOf(call, descriptor)
  if (name === 'copy_file_range' || name === 'sendfile') {
    const [, , one = '', other = ''] = /^(\d+)<([^>]*)>, (?:NULL, )?\d+<([^>]*)>/.exec(args) ?? []
    const [from, into] = name === 'sendfile' ? [other, one] : [one, other]
    return { kind: 'copy', path: decode(into), from: decode(from), length: Number(result) }
  }
  return undefined
}

function writeOf({ name, args, result }: Call, path: string): Event | undefined {
  const start = args.indexOf('"') + 1
  if (start === 0) return undefined
  const text = args.slice(start, args.indexOf('"', start))
  if (!path.startsWith('/')) {
    const head = Buffer.from(text.slice(0, 400).replaceAll('\\x', ''), 'hex').toString('latin1')
    const status = /^HTTP\/1\.1 (\d+)/.exec(head)?.[1]
    return status === undefined ? undefined : { kind: 'answer', status: Number(status) }
  }
  if (name === 'writev') throw new Error(`writev to ${path} is not understood`)
  const data = Buffer.from(text.replaceAll('\\x', ''), 'hex').subarray(0, Number(/^\d+/.exec(result)?.[0]))
  const offset = name === 'pwrite64' ? Number(/, (\d+)$/.exec(args)?.[1]) : undefined
  return { kind: 'write', path, offset, data }
}

/** The texts in quotes, as paths. */
function strings(args: string): string[] {
  if (args.length > 10_000) return []
  return [...args.matchAll(/"([^"]*)"/g)].map(([, text = '']) => resolve(decode(text)))
}

function descriptorPath(args: string): string {
  return decode(/^\d+<([^>]*)>/.exec(args)?.[1] ?? '')
}

function decode(text: string): string {
  return text.startsWith('\\x') ? Buffer.from(text.replaceAll('\\x', ''), 'hex').toString() : text
}
