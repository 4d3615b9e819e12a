import type { Config } from '../../config/schema.js'
import { describeFailure } from './failure.js'
import { describeDataFailure } from './folder-failure.js'

/** Something that stops the server from starting, in a sentence for the person who started it. */
export class StartError extends Error {
  override readonly name = 'StartError'
}

/** What fails when it is the address that is wrong: files have the same codes. */
const networkCalls = new Set(['listen', 'bind', 'getaddrinfo'])

const reasons: Readonly<Record<string, string>> = {
  EADDRINUSE: 'another program is listening there: stop it, or choose another port with --listen.',
  EACCES: 'this user may not use that port: choose one above 1023 with --listen.',
  EADDRNOTAVAIL: 'this machine does not have that address: choose another with --listen.',
  ENOTFOUND: 'that name has no address: choose another with --listen.',
}

/** Why the server cannot listen, in a sentence that says what to do. */
export function describeStartFailure(error: unknown, config: Config): string {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  const isOfNetwork = error instanceof Error && 'syscall' in error && networkCalls.has(String(error.syscall))
  const reason = isOfNetwork && Object.hasOwn(reasons, code) ? reasons[code] : undefined
  if (reason !== undefined) return `Cannot listen on ${config.listen.host}:${config.listen.port}: ${reason}`
  return (
    describeDataFailure(error, config.data) ??
    describeFailure(error) ??
    (error instanceof Error ? error.message : String(error))
  )
}
