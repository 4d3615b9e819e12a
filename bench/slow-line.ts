import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Target } from './jobs.js'

/** Milliseconds that a timer may be late: a line may be so far ahead of itself. */
const timerGrain = 4

/** A line to a server that carries so many bytes a second at the most, as the internet does, and counts them. */
export class SlowLine {
  readonly #server = createServer((client) => this.#join(client))
  readonly #to: Target
  readonly #bytesPerSecond: number
  /** When the line will have carried what it was given, in milliseconds of the process. */
  #busyUntil = 0
  /** Bytes that came from the server. */
  bytes = 0

  constructor(to: Target, bytesPerSecond: number) {
    this.#to = to
    this.#bytesPerSecond = bytesPerSecond
  }

  async open(): Promise<Target> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    return { host: '127.0.0.1', port: (this.#server.address() as AddressInfo).port }
  }

  close(): void {
    this.#server.close()
  }

  #join(client: Socket): void {
    const server = connect(this.#to.port, this.#to.host)
    for (const [one, other] of [
      [client, server],
      [server, client],
    ] as const) {
      one.on('error', () => other.destroy()).on('close', () => other.end())
    }
    client.on('data', (chunk) => server.write(chunk))
    server.on('data', (chunk) => {
      this.bytes += chunk.length
      const now = performance.now()
      this.#busyUntil = Math.max(now, this.#busyUntil) + (chunk.length / this.#bytesPerSecond) * 1000
      client.write(chunk)
      const ahead = this.#busyUntil - now
      if (ahead < timerGrain) return
      server.pause()
      setTimeout(() => server.resume(), ahead)
    })
  }
}
