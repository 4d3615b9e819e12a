import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { Target } from './jobs.js'

/** A line to a server that has a speed and counts what comes over it. */
export interface Line {
  readonly target: Target
  /** Bytes that have come from the server, heads included. */
  received(): number
  close(): Promise<void>
}

const TURN_MS = 10

/** Opens a line of so many bytes a second, shared by all connections; `Infinity` for one that only counts. */
export async function openLine(to: Target, bytesPerSecond: number): Promise<Line> {
  const sockets = new Set<Socket>()
  let received = 0
  let dueAt = 0

  async function carry(from: Socket, into: Socket): Promise<void> {
    for await (const chunk of from as AsyncIterable<Buffer>) {
      received += chunk.length
      dueAt = Math.max(dueAt, performance.now() - TURN_MS) + (1000 * chunk.length) / bytesPerSecond
      const wait = dueAt - performance.now()
      if (wait > 0) await delay(wait)
      if (!into.write(chunk)) await once(into, 'drain')
    }
    into.end()
  }

  const server = createServer((client) => {
    const upstream = connect(to.port, to.host)
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.setNoDelay(true)
      socket.on('close', () => sockets.delete(socket))
    }
    client.on('error', () => upstream.destroy())
    client.on('close', () => upstream.destroy())
    upstream.on('error', () => client.destroy())
    client.pipe(upstream)
    carry(upstream, client).catch(() => undefined)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the line has no port')
  return {
    target: { host: '127.0.0.1', port: address.port },
    received: () => received,
    async close() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}
