import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { digestOf } from './content.js'

/*
 * The attacker of siege.ts: a process of its own, so that its work does not count as the honest clients' waiting.
 * It comes from other addresses of the loopback network than they do, and does all of these at once.
 */

/** What is attacked, as siege.ts prepared it. */
export interface Target {
  readonly port: number
  readonly seconds: number
  /** Path of a manifest of nearly 4 MiB. */
  readonly largeManifest: string
  /** Path of a blob of some MiB. */
  readonly largeBlob: string
  /** Path of a list of referrers with large annotations. */
  readonly referrers: string
  /** A repository with a configuration blob `{}` to push to. */
  readonly repository: string
}

const emptyConfig = digestOf(Buffer.from('{}'))
const dockerManifest = 'application/vnd.docker.distribution.manifest.v2+json'

class Attacker {
  readonly #target: Target
  readonly #end: number
  readonly #over: Promise<void>
  readonly counts = new Map<string, number>()
  #last = 0

  constructor(target: Target) {
    this.#target = target
    this.#end = performance.now() + target.seconds * 1000
    this.#over = delay(target.seconds * 1000)
  }

  get #isOver(): boolean {
    return performance.now() > this.#end
  }

  /** Runs everything at once until the time is over. */
  async run(): Promise<void> {
    const { largeManifest, largeBlob, referrers, repository } = this.#target
    const get = (path: string) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`
    const upload = `/v2/${repository}/blobs/uploads/`
    await Promise.all([
      ...this.#hold(4, 'pipelined manifests', (socket) => socket.write(get(largeManifest).repeat(150))),
      ...this.#hold(4, 'pipelined blobs', (socket) => socket.write(get(largeBlob).repeat(900))),
      ...this.#hold(30, 'manifests that nobody reads', (socket) => socket.write(get(largeManifest))),
      ...this.#hold(10, 'blobs that nobody reads', (socket) => socket.write(get(largeBlob))),
      ...this.#hold(10, 'lists that nobody reads', (socket) =>
        socket.write(get('/metrics').repeat(20) + get(referrers).repeat(20)),
      ),
      ...this.#hold(20, 'silent bodies', (socket) =>
        socket.write(`POST ${upload} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n`),
      ),
      ...this.#hold(100, 'unfinished manifests', (socket) => this.#dribble(socket)),
      ...this.#repeat(2, 'lists of referrers', 500, () => this.#ask(get(referrers))),
      ...this.#repeat(1, 'manifests of many parts', 3000, () => this.#ask(this.#manyParts())),
      ...this.#repeat(2, 'upload sessions', 20, () =>
        this.#ask(`POST ${upload} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n`),
      ),
      ...this.#repeat(1, 'bad paths', 20, () => this.#ask(get('/%zz'))),
      ...this.#repeat(1, 'what is no HTTP', 50, () => this.#ask('HELLO\r\n\r\n')),
    ])
  }

  /** Keeps so many connections that begin something and read nothing; whoever is cut off comes again. */
  #hold(count: number, name: string, begin: (socket: Socket) => void): Promise<void>[] {
    return Array.from({ length: count }, async () => {
      while (!this.#isOver) {
        const socket = this.#open()
        socket.pause()
        socket.once('connect', () => begin(socket))
        const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
        await Promise.race([closed, this.#over])
        socket.destroy()
        this.#count(name)
        await delay(500)
      }
    })
  }

  #repeat(count: number, name: string, pause: number, act: () => Promise<void>): Promise<void>[] {
    return Array.from({ length: count }, async () => {
      while (!this.#isOver) {
        await act()
        this.#count(name)
        await delay(pause)
      }
    })
  }

  /** Sends one request on a connection of its own and reads what comes until it is answered. */
  async #ask(request: string | Buffer): Promise<void> {
    const socket = this.#open()
    socket.once('connect', () => socket.write(request))
    await new Promise<void>((resolve) => {
      socket.once('close', () => resolve())
      socket.once('data', () => resolve())
      socket.setTimeout(30_000, () => resolve())
    })
    socket.destroy()
  }

  /** All of a manifest but its end, and then a byte now and then. */
  #dribble(socket: Socket): void {
    const size = 4 * 1024 * 1024
    socket.write(
      `PUT /v2/${this.#target.repository}/manifests/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${dockerManifest}\r\nContent-Length: ${size}\r\n\r\n`,
    )
    socket.write(Buffer.alloc(size - 100_000, 0x20))
    const timer = setInterval(() => socket.write(' '), 2000)
    socket.once('close', () => clearInterval(timer))
  }

  #manyParts(): Buffer {
    const unknown = randomBytes(8).toString('hex')
    const layers = Array.from({ length: 20_500 }, (_, at) => ({
      mediaType: 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
      digest: digestOf(Buffer.from(`${unknown} ${at}`)),
      size: 1,
    }))
    const config = { mediaType: 'a/b', digest: emptyConfig, size: 2 }
    const body = JSON.stringify({ schemaVersion: 2, mediaType: dockerManifest, config, layers })
    const head = `PUT /v2/${this.#target.repository}/manifests/many HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${dockerManifest}\r\n`
    return Buffer.from(`${head}Content-Length: ${body.length}\r\n\r\n${body}`)
  }

  #open(): Socket {
    const { port } = this.#target
    const localAddress = `127.0.0.${2 + (this.#last++ % 8)}`
    const socket = connect({ host: '127.0.0.1', port, localAddress })
    socket.on('error', () => undefined)
    return socket
  }

  #count(name: string): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + 1)
  }
}

process.once('message', (target: Target) => {
  const attacker = new Attacker(target)
  attacker.run().then(
    () => {
      process.send?.(Object.fromEntries(attacker.counts))
      process.disconnect()
    },
    (error: unknown) => {
      console.error(error)
      process.exit(1)
    },
  )
})
