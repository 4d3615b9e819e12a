import type { Worker } from 'node:cluster'

/** The primary's end of a connection. */
interface Handle {
  close(): void
}

/**
 * Closes the connections that are on the way to a worker when it dies, so that their clients can try again. Node's
 * primary lets go of a connection when the worker says that it has taken it: of one that dies before, it would keep
 * the connection for ever, and the client would wait as long. Node tells nobody of these messages but the channel.
 */
export function closeUntaken(worker: Worker): void {
  const untaken = new Map<number, Handle>()
  const channel = worker.process
  const { send } = channel
  channel.send = (...args: unknown[]): boolean => {
    const [message, handle] = args
    const number = numberIn(message, 'seq')
    if (number !== undefined && isHandle(handle)) untaken.set(number, handle)
    return Reflect.apply(send, channel, args)
  }
  channel.on('internalMessage', (message: unknown) => {
    const number = numberIn(message, 'ack')
    if (number !== undefined) untaken.delete(number)
  })
  worker.once('exit', () => {
    for (const handle of untaken.values()) handle.close()
  })
}

function numberIn(message: unknown, field: string): number | undefined {
  if (typeof message !== 'object' || message === null) return undefined
  const value: unknown = Reflect.get(message, field)
  return typeof value === 'number' ? value : undefined
}

function isHandle(value: unknown): value is Handle {
  return typeof value === 'object' && value !== null && 'close' in value && typeof value.close === 'function'
}
