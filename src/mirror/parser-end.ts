import type { Socket } from 'node:net'

/** What of undici's HTTP parser is touched here. */
interface Parser {
  paused: boolean
  readonly ptr: unknown
  readonly llhttp: { llhttp_resume(ptr: unknown): void }
  resume(): void
}

/**
 * Keeps the process alive when a server ends a connection while the reader of its answer is behind: undici 7 has
 * then paused its parser, and fails an assertion that nobody can catch (nodejs/undici#5360, mended in undici 8,
 * which needs a newer Node). What has arrived is parsed first; it is no more than the socket holds.
 */
export function guardParser<S extends Socket>(socket: S): S {
  const emit = socket.emit.bind(socket) as (event: string | symbol, ...args: unknown[]) => boolean
  socket.emit = (event: string | symbol, ...args: unknown[]) => {
    if (event === 'end' || event === 'error' || event === 'close') unpause(socket)
    return emit(event, ...args)
  }
  return socket
}

function unpause(socket: Socket): void {
  do parserOf(socket)?.resume()
  while (!socket.destroyed && socket.readableLength > 0 && parserOf(socket)?.paused === true)
  // A body without a length pauses it again, with nothing left to parse: now it can be told of the end.
  const parser = parserOf(socket)
  if (parser?.paused !== true || parser.ptr === null) return
  parser.llhttp.llhttp_resume(parser.ptr)
  parser.paused = false
}

/** undici hangs its parser on the socket. */
function parserOf(socket: Socket): Parser | undefined {
  const key = Object.getOwnPropertySymbols(socket).find(({ description }) => description === 'parser')
  const parser: unknown = key === undefined ? undefined : Reflect.get(socket, key)
  return isParser(parser) ? parser : undefined
}

function isParser(value: unknown): value is Parser {
  return typeof value === 'object' && value !== null && 'paused' in value && 'llhttp' in value
}
